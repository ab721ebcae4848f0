import pytest
import torch

from utils.models.prompts import render_chat
from utils.responses.answers import generate_answer


@pytest.mark.parametrize("kind", ["llama", "gpt-2"])
def test_each_token_is_the_models_most_likely_next_one(tiny, kind):
    lm = tiny(kind)
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = "<|user|>"
    ids = list(lm.tokenizer(render_chat(lm.tokenizer, "Cats?"))["input_ids"])
    answer = generate_answer(lm, "Cats?", max_tokens=4)
    expected = []
    for _ in range(4):
        with torch.no_grad():
            expected.append(int(lm.model(torch.tensor([[*ids, *expected]])).logits[0, -1].argmax()))
    assert answer == lm.tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_answers_longer_than_the_context_window(tiny):
    with pytest.raises(ValueError, match="the context window has left"):
        generate_answer(tiny(), "Cats?", max_tokens=500)
