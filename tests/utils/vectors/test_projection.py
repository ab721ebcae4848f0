import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sided import make_vectors

from utils.models.prompts import render_chat
from utils.vectors.projection import correlate_answers, project, read_answers, read_tokens, summarise_tokens
from utils.vectors.steering import add_vectors, steering


def test_projections_are_those_of_hidden_states(tiny):
    lm = tiny()
    vectors = make_vectors(lm).at([1, 2])
    tokens = read_tokens(lm, vectors, "Cats?", "I like dogs.")
    ids = lm.tokenizer(render_chat(lm.tokenizer, "Cats?") + "I like dogs.")["input_ids"]
    with torch.no_grad():
        states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    expected = states[2][0].numpy() @ vectors.units[1, 1] / 3.0
    own = tokens[(tokens["layer"] == 2) & (tokens["persona"] == "terse")]
    np.testing.assert_allclose(own["projection"], expected, atol=1e-5)
    assert "".join(own["token"]).endswith("I like dogs.")
    assert "".join(own.loc[own["part"] == "answer", "token"]) == "I like dogs."
    summary = summarise_tokens(tokens).set_index(["layer", "persona"]).loc[(2, "terse")]
    n = (own["part"] == "prompt").sum()
    assert summary["before"] == pytest.approx(expected[n - 1], abs=1e-5)
    assert summary["answer"] == pytest.approx(expected[n:].mean(), abs=1e-5)
    alone = read_tokens(lm, vectors, "Cats?")
    assert (alone["part"] == "prompt").all()


def test_inside_steering_the_steered_stream_is_read(tiny):
    lm = tiny()
    vectors = make_vectors(lm)["warm"].at(2)
    plain = read_tokens(lm, vectors, "Cats?")["projection"].to_numpy()
    with steering(lm, add_vectors(lm, vectors, 0.25)):
        steered = read_tokens(lm, vectors, "Cats?")["projection"].to_numpy()
    np.testing.assert_allclose(steered[1:] - plain[1:], 0.25, atol=1e-5)
    assert steered[0] == plain[0]


def test_project_is_linear_and_in_residual_lengths(tiny):
    vectors = make_vectors(tiny())
    along = (vectors.units[:, :1] * vectors.norms[:, None, None]).astype(np.float32)
    np.testing.assert_allclose(project(2 * along, vectors)[:, 0, 0], 2, atol=1e-5)


def test_answers_are_read_before_and_while_they_are_said(tiny):
    lm = tiny()
    vectors = make_vectors(lm).at(2)
    found = read_answers(lm, vectors, ["Cats?", "Dogs?"], [None, "You like cats."], max_tokens=4, progress=False)
    assert set(found["system"]) <= {"", "You like cats."}
    row = found[(found["system"] == "You like cats.") & (found["persona"] == "warm")].iloc[0]
    before = summarise_tokens(read_tokens(lm, vectors, row["question"], system="You like cats.")).set_index("persona")
    assert row["before"] == pytest.approx(before.loc["warm", "before"], abs=1e-5)
    said = summarise_tokens(read_tokens(lm, vectors, row["question"], row["answer"])).set_index("persona")
    assert row["said"] == pytest.approx(said.loc["warm", "answer"], abs=1e-5)


def test_correlation_in_all_and_within_a_system_prompt():
    generator = np.random.default_rng(0)
    rows = []
    for shift in range(3):  # prompts move both; within a prompt nothing is shared
        for question in range(12):
            before, said = shift + 0.2 * generator.normal(size=2)
            rows.append({"system": str(shift), "question": str(question), "before": before, "said": said})
    table = pd.DataFrame(rows).assign(layer=1, persona="a")
    (found,) = correlate_answers(table, n_bootstrap=200).to_dict("records")
    assert found["correlation"] == pytest.approx(spearmanr(table["before"], table["said"]).statistic)
    assert found["low"] < found["correlation"] < found["high"]
    assert found["correlation"] > 0.7
    assert abs(found["within"]) < 0.5


def test_a_text_longer_than_the_window(tiny):
    lm = tiny()
    with pytest.raises(ValueError, match="context window has 128"):
        read_tokens(lm, make_vectors(lm), "cats " * 200)
