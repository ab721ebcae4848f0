import pytest
from patched import EQUAL, LONGER, make_questions, make_wide
from tiny import make_tokenizer

from utils.models.prompts import Prompt
from utils.patching.alignment import align, check_segments, pair_prompts


def pair_of(base, source):
    """Prompts with tokens 1 2 before and 8 9 10 after what is given."""
    prompts = [Prompt((1, 2, *ids, 8, 9, 10), 2, 2 + len(ids)) for ids in (base, source)]
    return align("q", *prompts)


def test_the_last_persona_token_goes_to_the_last():
    pair = pair_of([21, 22], [31, 32, 33, 34])
    assert pair.places("before") == ([0, 1], [0, 1])
    assert pair.places("persona") == ([2, 3], [4, 5])
    assert pair.places("question") == ([4, 5], [6, 7])
    assert pair.places("last") == ([6], [8])
    assert pair.places("after") == ([4, 5, 6], [6, 7, 8])
    assert pair.places("all") == ([0, 1, 2, 3, 4, 5, 6], [0, 1, 4, 5, 6, 7, 8])


def test_what_has_no_partner_is_in_no_place():
    """Of a longer base, the first persona tokens stay what they are."""
    pair = pair_of([21, 22, 23], [31])
    assert pair.places("persona") == ([4], [2])
    assert pair.places("all") == ([0, 1, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("identities", [EQUAL, LONGER])
def test_behind_the_persona_every_token_meets_itself(identities):
    tokenizer = make_wide().tokenizer
    for pair in pair_prompts(tokenizer, *identities, make_questions()):
        for segment in ("before", "question", "last"):
            to, taken = pair.places(segment)
            assert [pair.base.ids[i] for i in to] == [pair.source.ids[i] for i in taken]
        texts = [tokenizer.decode(p.ids[p.start : p.stop]).strip() for p in (pair.base, pair.source)]
        assert texts == [f"a {identity}" for identity in identities]


@pytest.mark.parametrize(
    ("base", "source", "message"),
    [
        (Prompt((1, 2, 3, 4), 1, 2), Prompt((7, 2, 3, 4), 1, 2), r"other tokens before the persona \(1 and 1\)"),
        (Prompt((1, 2, 3, 4), 1, 2), Prompt((1, 2, 3, 3, 4), 1, 2), r"other tokens after the persona \(2 and 3\)"),
        (Prompt((1, 2), 1, 2), Prompt((1, 3), 1, 2), r"ends with the persona"),
    ],
)
def test_what_cannot_be_aligned_is_refused(base, source, message):
    with pytest.raises(ValueError, match=message):
        align("q", base, source)


@pytest.mark.parametrize("other", ["nurse", "Nurse ", " nurse"])
def test_identical_identities(other):
    with pytest.raises(ValueError, match="are the same"):
        pair_prompts(make_tokenizer(), "nurse", other, make_questions())


def test_unknown_segment(unchecked):
    with pytest.raises(ValueError, match=r"unknown segments \['end'\]; expected some of before, persona"):
        check_segments(["last", "end"])
