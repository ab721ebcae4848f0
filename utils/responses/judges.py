"""How much of a persona a text has, by a judge: a local model that is asked, or a server with OpenAI's chat interface.

Neither is used unless it is called. Judges have leanings of their own: give plain answers to the same judge beside steered ones.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from utils.models.language_model import LanguageModel
from utils.models.prompts import spell_controls
from utils.responses.preference import answer_odds

QUESTION = 'Somebody said: "{text}"\n\nDoes this sound like somebody {described}? Answer with "{yes}" or "{no}" and nothing else.'
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def describe_persona(persona: str) -> str:
    """A persona in words that follow *somebody*."""
    words = persona.replace("-", " ")
    return f"who {words}" if persona.startswith("subscribes-to-") else f"with a high degree of {words}"


def judge_texts(
    lm: LanguageModel, texts: Sequence[str], persona: str, *, progress: bool = True
) -> Float[np.ndarray, " texts"]:
    """Log-odds of *Yes* against *No* where a local model is asked whether each text sounds like a persona.

    Parameters
    ----------
    lm
        The judge: best another model than the one that spoke, and outside of any steering.
    """
    plain = [spell_controls(lm.tokenizer, text) for text in texts]
    asked = [QUESTION.format(text=text, described=describe_persona(persona), yes="Yes", no="No") for text in plain]
    return answer_odds(lm, asked, ("Yes", "No"), progress=progress, name="judging")


def judge_by_server(
    url: str,
    model: str,
    texts: Sequence[str],
    persona: str,
    *,
    key: str | None = None,
    timeout: float = 60,
    progress: bool = True,
) -> Float[np.ndarray, " texts"]:
    """Marks from 0 (nothing of the persona) to 100, given by a model on a server with OpenAI's chat interface.

    Texts are sent to that server, one request each, at temperature 0.

    Parameters
    ----------
    url
        Up to ``/v1``, such as ``http://localhost:8000/v1``.
    key
        Sent as a bearer token; none by default.

    Returns
    -------
    ndarray
        NaN where the answer holds no number from 0 to 100.

    Raises
    ------
    OSError
        The server cannot be reached, refuses, or answers something else.
    """
    marks = []
    for text in tqdm(texts, desc="judging", disable=not progress):
        asked = (
            f'Somebody said: "{text}"\n\nHow much does this sound like somebody {describe_persona(persona)}? Answer with one '
            "number from 0 (not at all) to 100 (entirely) and nothing else."
        )
        sent = {"model": model, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": asked}]}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(sent).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                said = json.loads(answer.read())["choices"][0]["message"]["content"]
        except (urllib.error.URLError, KeyError, IndexError, ValueError, TypeError) as error:
            raise OSError(
                f"the judge at {url} gave no answer ({error}); check the address, the model and the key."
            ) from None
        found = _NUMBER.search(str(said))
        mark = float(found.group()) if found else float("nan")
        marks.append(mark if mark <= 100 else float("nan"))
    return np.array(marks)
