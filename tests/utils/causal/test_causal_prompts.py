import numpy as np
import pytest
import torch

from utils.causal.interventions import scope_mask
from utils.causal.measure import PersonaPrompts, find_replacements
from utils.causal.settings import Check
from utils.responses.wording import persona_prompt

PROMPTS = PersonaPrompts(
    "openness", ("I like cats.", "I like dogs."), ("No cats.", "No dogs."), ("So I like it.",) * 2, ("No.",) * 2
)
CHECK = Check("patch", "self_report", "persona")


@pytest.fixture
def lm(tiny):
    return tiny(max_position_embeddings=512)


def mean_by_hand(lm, check, text, layer):
    readout = PROMPTS.readout(lm.tokenizer, check, [text])
    with torch.no_grad():
        hidden = lm.model(torch.tensor([readout.prompts[0].ids]), output_hidden_states=True).hidden_states[layer][0]
    return hidden[scope_mask(readout, "all")[0]].mean(0).numpy()


def test_matched_statements_are_under_the_checks_prompt_and_means_under_the_neutral_one(lm):
    found = find_replacements(lm, PROMPTS, CHECK, 2)
    asked = persona_prompt("openness")
    assert asked in lm.tokenizer.decode(PROMPTS.readout(lm.tokenizer, CHECK).prompts[0].ids)
    for row, text in enumerate([*PROMPTS.h0, *PROMPTS.h1]):  # for the persona's statements those of the other side
        np.testing.assert_allclose(found.matched[row], mean_by_hand(lm, CHECK, text, 2), atol=1e-4)
    neutral = Check("patch", "self_report", "neutral")
    np.testing.assert_allclose(found.mean, mean_by_hand(lm, neutral, "No.", 2), atol=1e-4)
    for row, text in enumerate(["No."] * 2 + ["So I like it."] * 2):
        np.testing.assert_allclose(found.resampled[row], mean_by_hand(lm, neutral, text, 2), atol=1e-4)


def test_differences_are_the_persona_minus_the_other_side():
    np.testing.assert_array_equal(PROMPTS.difference(np.array([[5.0, 7.0, 1.0, 2.0]])), [[4.0, 5.0]])
