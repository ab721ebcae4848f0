import pytest

from utils.causal.settings import CHECKS, Check, parse_check


def test_a_check_is_read_as_it_is_written():
    for check in CHECKS:
        assert parse_check(str(check)) == check
    assert parse_check("patch") == Check("patch", "likelihood", "neutral")
    assert parse_check("resample / self_report") == Check("resample", "self_report", "neutral")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("push", "'push'"),
        ("steer/loudness", "'loudness'"),
        ("steer/likelihood/angry", "'angry'"),
        ("steer/likelihood/neutral/more", "4 parts"),
        ("", "''"),
    ],
)
def test_a_word_that_is_no_option_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_check(text)
