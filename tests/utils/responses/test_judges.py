import http.server
import json
import threading

import numpy as np
import pytest

from utils.responses.judges import judge_by_server, judge_texts
from utils.responses.preference import answer_odds


@pytest.fixture
def server():
    """Answers with what is last in its list of answers, and keeps what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(
                (self.path, dict(self.headers), json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            )
            said = answers.pop()
            self.send_response(200 if said is not None else 500)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]} if said else {}).encode())

        def log_message(self, *_args):
            pass

    asked, answers = [], []
    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/v1/", asked, answers
    running.shutdown()
    running.server_close()


def test_marks_of_a_server(server):
    url, asked, answers = server
    answers += ["no idea", "250", "About 7.5.", "80"]
    marks = judge_by_server(url, "judge", ["a", "b", "c", "d"], "openness", key="k", progress=False)
    np.testing.assert_array_equal(marks, [80, 7.5, np.nan, np.nan])
    path, headers, sent = asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer k"
    assert 'Somebody said: "a"' in sent["messages"][0]["content"]
    assert "openness" in sent["messages"][0]["content"]


def test_a_server_that_fails_or_is_not_there(server):
    url, _, answers = server
    answers += [None, None]
    for _ in range(2):
        with pytest.raises(OSError, match="gave no answer"):
            judge_by_server(url, "judge", ["a"], "openness", progress=False)
    with pytest.raises(OSError, match="check the address"):
        judge_by_server("http://127.0.0.1:9/v1", "judge", ["a"], "openness", progress=False)


def test_a_local_model_is_asked_about_each_text(tiny):
    lm = tiny(max_position_embeddings=512)
    odds = judge_texts(lm, ["I like cats.", "I fear dogs."], "openness", progress=False)
    question = (
        'Somebody said: "I fear dogs."\n\nDoes this sound like somebody with a high degree of openness? Answer with "Yes" or '
        '"No" and nothing else.'
    )
    assert odds[1] == pytest.approx(answer_odds(lm, [question], ("Yes", "No"), progress=False)[0], abs=1e-5)
