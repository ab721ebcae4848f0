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


def test_nothing_of_the_checkpoints_sampling_settings_is_used_and_they_stay(tiny):
    lm = tiny()
    plain = lm.generate(["Cats?", "Dogs and cats?"], max_tokens=6)
    own = lm.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.do_sample, own.temperature = 5.0, 1, True, 9.0
    assert lm.generate(["Cats?", "Dogs and cats?"], max_tokens=6) == plain
    assert lm.model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_batches_in_any_order_give_what_each_question_gives(tiny):
    lm = tiny()
    questions = ["Cats and dogs and all that?", "Cats?", "And dogs, or people?"]
    alone = [lm.generate(question, max_tokens=5)[0] for question in questions]
    assert lm.generate(questions, max_tokens=5, batch_size=2) == alone


def test_streamed_pieces_make_the_answer(tiny):
    lm = tiny()
    pieces = []
    answer = lm.generate("Cats?", max_tokens=8, on_text=pieces.append)
    assert "".join(pieces).strip() == answer[0]
    with pytest.raises(ValueError, match="one alone with on_text"):
        lm.generate(["Cats?", "Dogs?"], on_text=pieces.append)


def test_sampled_answers_follow_the_seed_and_leave_the_generator_as_it_was(tiny):
    lm = tiny()
    state = torch.get_rng_state()
    first, again, other = (lm.generate("Cats?", max_tokens=9, temperature=2.0, rng=rng)[0] for rng in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("option", "value"), [("temperature", -1.0), ("batch_size", 0), ("max_tokens", 0)])
def test_options_out_of_range(tiny, option, value):
    with pytest.raises(ValueError, match=option):
        tiny().generate("Cats?", **{option: value})
