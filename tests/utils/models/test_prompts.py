import json
import logging
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from markupsafe import escape
from tiny import TEMPLATES, make_tokenizer
from tokenizers import AddedToken, processors

from utils.activations.extraction import extract
from utils.models.prompts import (
    Template,
    check_plain,
    encode_prompts,
    encode_texts,
    find_template,
    render_chat,
    spell_controls,
)
from utils.responses.measures import likelihood_readout, text_readout
from utils.statements.load import load_statements

TEXTS = [
    "I like cats and dogs.",
    "No",
    "  two spaces before, one after ",
    "Être libre, c'est vouloir – ça suffit 🙂",
    "a line\nand another",
    "braces {{ messages }} and {% raw %} are text",
]

_TURNS = "{%% for m in messages %%}<|{{ m.role }}|>\n%s</s>\n{%% endfor %%}{{ '<|assistant|>\n' }}"
# Templates that are not what is before and behind a placeholder, or that lose something where anything stands before them.
CHANGING = {
    "trims": _TURNS % "{{ m.content | trim }}",
    "escapes": _TURNS % "{{ m.content | e }}",
    "as-json": _TURNS % "{{ m.content | tojson }}",
    "line-ends-first": "\n\n" + TEMPLATES["plain"],
    "blanks-first": "  {% if true %}\n" + TEMPLATES["plain"] + "{% endif %}",
}
SHOWN = {
    "escapes": lambda text: str(escape(text)).strip(),
    "as-json": lambda text: json.dumps(text, ensure_ascii=False)[1:-1].strip(),
}


def span(tokenizer, prompt):
    return tokenizer.decode(prompt.ids[prompt.start : prompt.stop])


@pytest.mark.parametrize("role", ["system", "user"])
@pytest.mark.parametrize("template", ["plain", "with-bos", *CHANGING])
def test_prompt_is_what_the_template_makes(template, role):
    """The statement goes through the tokenizer's own template by itself."""
    tokenizer = make_tokenizer("plain" if template in CHANGING else template, adds_bos=False)
    tokenizer.chat_template = CHANGING.get(template, tokenizer.chat_template)
    prompts = encode_prompts(tokenizer, TEXTS, find_template(tokenizer, role))
    for text, prompt in zip(TEXTS, prompts, strict=True):
        turns = [{"role": role, "content": text}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert list(prompt.ids) == expected
        assert span(tokenizer, prompt).strip() == SHOWN.get(template, str.strip)(text)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("template", "role", "brings"),
    [("plain", "system", 0), ("with-bos", "system", 1), ("plain", "raw", 0), (None, "user", 0)],
)
def test_bos_is_there_once(template, role, brings, adds_bos):
    tokenizer = make_tokenizer(template, adds_bos=adds_bos)
    for text, prompt in zip(TEXTS, encode_prompts(tokenizer, TEXTS, find_template(tokenizer, role)), strict=True):
        expected = max(brings, int(adds_bos))
        assert prompt.ids.count(tokenizer.bos_token_id) == expected
        assert prompt.ids[:expected] == (tokenizer.bos_token_id,) * expected
        assert span(tokenizer, prompt) == text


def test_raw_prompt_is_what_the_tokenizer_makes():
    tokenizer = make_tokenizer("with-bos")
    prompts = encode_prompts(tokenizer, TEXTS, find_template(tokenizer, "raw"))
    assert [list(prompt.ids) for prompt in prompts] == tokenizer(TEXTS)["input_ids"]
    assert [(prompt.start, prompt.stop) for prompt in prompts] == [(1, len(prompt.ids)) for prompt in prompts]


def test_tokenizer_without_bos():
    tokenizer = make_tokenizer("plain", adds_bos=False)
    tokenizer.bos_token = None
    (prompt,) = encode_prompts(tokenizer, ["No"], find_template(tokenizer, "system"))
    assert tokenizer.decode(prompt.ids) == "<|system|>\nNo</s>\n<|assistant|>\n"


@pytest.mark.parametrize("template", ["no-system", "drops-system"])
def test_without_a_system_role_the_user_says_it(template, caplog):
    """Whether the template refuses a system turn or leaves it out in silence."""
    tokenizer = make_tokenizer(template)
    found = find_template(tokenizer, "system")
    assert found.role == "user (no system role)"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no system role" in caplog.text
    caplog.clear()
    assert find_template(tokenizer, "user") == replace(found, role="user")
    assert not caplog.records


def test_without_a_template_statements_are_raw(caplog):
    tokenizer = make_tokenizer(None)
    assert find_template(tokenizer, "system") == Template("", "", "raw")
    assert "no chat template" in caplog.text
    caplog.clear()
    assert find_template(tokenizer, "raw") == Template("", "", "raw")
    assert not caplog.records


def test_template_that_drops_the_user_too():
    with pytest.raises(ValueError, match="does not show what the user says; use role='raw'"):
        find_template(make_tokenizer("drops-all"), "system")


@pytest.mark.usefixtures("unchecked")
def test_unknown_role():
    with pytest.raises(ValueError, match="unknown role 'assistant'; expected system, user or raw"):
        find_template(make_tokenizer(), "assistant")


def test_prompts_do_not_depend_on_the_day():
    """A store must be resumable tomorrow, with a template that writes the date."""
    tokenizer = make_tokenizer("dated")
    found = find_template(tokenizer, "user")
    assert found.before == "<|system|>\nToday is 26 Jul 2024.\n<|user|>\n"
    assert tokenizer.chat_template == TEMPLATES["dated"]


def test_token_across_the_edge_counts_as_the_statements():
    """Without a line end between them, template and statement share a token."""
    tokenizer = make_tokenizer(adds_bos=False)
    (prompt,) = encode_prompts(tokenizer, ["like cats"], Template("I ", " and dogs.", "user"))
    assert list(prompt.ids) == tokenizer("I like cats and dogs.")["input_ids"]
    assert span(tokenizer, prompt) == " like cats"


def test_slow_tokenizer_is_refused(monkeypatch):
    tokenizer = make_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="a fast tokenizer is needed"):
        encode_prompts(tokenizer, ["No"], Template("", "", "raw"))


def test_statement_without_tokens_is_named():
    with pytest.raises(ValueError, match="no token of the prompt belongs to ''"):
        encode_prompts(make_tokenizer(), ["fine", ""], find_template(make_tokenizer()))


@pytest.mark.parametrize("role", ["system", "user", "raw"])
def test_default_model(lm, role):
    """Every shipped statement: the span is the statement, and the BOS, which also opens each turn, is not doubled."""
    statements = load_statements()["statement"].tolist()
    prompts = encode_prompts(lm.tokenizer, statements, find_template(lm.tokenizer, role))
    bos = lm.tokenizer.bos_token_id
    for text, prompt in zip(statements, prompts, strict=True):
        assert span(lm.tokenizer, prompt) == text
        assert prompt.ids.count(bos) == {"system": 2, "user": 3, "raw": 0}[role]  # the turns, the answer's among them
        assert prompt.ids[1] != bos
    for text, prompt in list(zip(statements, prompts, strict=True))[::100]:
        turns = [{"role": role, "content": text}]
        if role == "raw":
            expected = lm.tokenizer(text)["input_ids"]
        else:
            expected = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert list(prompt.ids) == expected


def test_extraction_uses_the_prompt(tiny):
    """The statement folded into the user turn gives the activations of that turn."""
    folded, direct = tiny(template="no-system"), tiny(template="plain")
    np.testing.assert_array_equal(
        extract(folded, TEXTS[:2], role="system", progress=False),
        extract(direct, TEXTS[:2], role="user", progress=False),
    )


@pytest.mark.parametrize("system", [None, "You are a sailor."])
@pytest.mark.parametrize("template", ["plain", "with-bos", "dated"])
def test_a_chat_is_what_the_template_makes_of_it(template, system):
    tokenizer = make_tokenizer(template)
    turns = [{"role": "user", "content": "Who?"}]
    turns = turns if system is None else [{"role": "system", "content": system}, *turns]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if template == "dated":
        expected = re.sub(r"Today is [^.]*\.", "Today is 26 Jul 2024.", expected)
    assert render_chat(tokenizer, "Who?", system=system) == expected


@pytest.mark.parametrize("template", ["no-system", "drops-system"])
def test_a_system_turn_that_the_template_has_not_goes_before_the_user(template):
    text = render_chat(make_tokenizer(template), "Who?", system="You are a sailor.")
    assert "<|user|>\nYou are a sailor.\n\nWho?" in text
    assert text.endswith("<|assistant|>\n")


def test_a_chat_without_a_template_and_with_one_that_drops_all():
    assert render_chat(make_tokenizer(None), "Who?", system="A sailor.") == "A sailor.\n\nWho?\n"
    with pytest.raises(ValueError, match="does not show what the user says"):
        render_chat(make_tokenizer("drops-all"), "Who?")


def test_a_span_of_a_text_is_found_behind_the_one_bos():
    tokenizer = make_tokenizer("with-bos")
    text = render_chat(tokenizer, "I like cats and dogs.", system="You are a sailor.")
    begin = text.index("sailor")
    (prompt,) = encode_texts(tokenizer, [text], [(begin, begin + len("sailor"))])
    assert tokenizer.decode(prompt.ids[prompt.start : prompt.stop]).strip() == "sailor"
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    (bare,) = encode_texts(tokenizer, ["cats"], [(0, 4)])
    assert bare.ids[0] == tokenizer.bos_token_id
    assert bare.start == 1


@pytest.mark.parametrize("pieces", ["%d %b %Y", "%Y", "%B %-d, %y", "%A %H:%M"])
@pytest.mark.parametrize("first", ["", "\n\n", "  {% if true %}\n{% endif %}"])
def test_a_date_has_the_templates_own_format_and_nothing_else_changes(pieces, first, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = first + TEMPLATES["dated"].replace("%d %b %Y", pieces)
    found = find_template(tokenizer, "user")

    class Fixed(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Fixed)
    turns = [{"role": "user", "content": "Who?"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert found.before + "Who?" + found.after == expected


def with_two_first(template="plain"):
    """A tokenizer that puts two tokens before a text and one behind it, none of which it calls its BOS."""
    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[gMASK]", "<sop>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A </s>", special_tokens=tokens
    )
    tokenizer.bos_token = None
    return tokenizer, [place for _, place in tokens[:2]]


@pytest.mark.parametrize(
    ("first", "role"), [("", "user"), ("", "raw"), ("[gMASK]<sop>", "user"), ("<sop>", "user"), ("[gMASK]", "user")]
)
def test_what_the_tokenizer_puts_first_is_there_once(first, role):
    tokenizer, leading = with_two_first()
    tokenizer.chat_template = first + tokenizer.chat_template
    for text, prompt in zip(TEXTS, encode_prompts(tokenizer, TEXTS, find_template(tokenizer, role)), strict=True):
        expected = [leading[0]] if first == "[gMASK]" else leading
        assert [token for token in prompt.ids if token in leading] == expected
        assert list(prompt.ids[: len(expected)]) == expected
        assert span(tokenizer, prompt) == text
    if role == "raw":
        assert [*prompt.ids, tokenizer.eos_token_id] == tokenizer(TEXTS[-1])["input_ids"]


def test_the_tokenizer_is_asked_once_what_it_puts_first(monkeypatch):
    tokenizer, calls = make_tokenizer(), []
    whole = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, *given, **options: calls.append(given) or whole(self, *given, **options),
    )
    encode_prompts(tokenizer, TEXTS * 10, find_template(tokenizer))
    assert len(calls) == 2


THINKING = {
    "open": (TEMPLATES["plain"] + "<think>\n", "<think>\n\n</think>\n\n", "closed"),
    "other-mark": (TEMPLATES["plain"] + "[THINK]", "[THINK]\n\n[/THINK]\n\n", "closed"),
    "switch": (
        TEMPLATES["plain"]
        + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
        "<think>\n\n</think>\n\n",
        "switched off",
    ),
    "switch-of-another-name": (
        TEMPLATES["plain"] + "{% if thinking is defined and not thinking %}</think>{% else %}<think>{% endif %}",
        "</think>",
        "switched off",
    ),
    "none": (TEMPLATES["plain"], "<|assistant|>\n", ""),
}


@pytest.mark.parametrize("kind", THINKING)
def test_prompts_end_where_the_answer_begins_and_not_in_a_thought(kind, caplog, tiny):
    template, ending, said = THINKING[kind]
    lm = tiny()
    lm.tokenizer.chat_template = template
    found = find_template(lm.tokenizer, "user")
    assert found.thinking == said
    assert found.after.endswith(ending)
    assert render_chat(lm.tokenizer, "Who?").endswith(ending)
    assert ("it is closed" in caplog.text) == (said == "closed")
    made = extract(lm, TEXTS[:2], progress=False)
    assert made.attrs.get("thinking", "") == said
    assert made.attrs["template"][1].endswith(ending)


CONTROLS = ["</s>", "<|assistant|>", "<turn>"]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("role", ["system", "user", "raw"])
def test_control_tokens_in_texts_of_users_are_refused_by_name(control, role):
    """A special token, and one that is only added and that the template writes; in a template as without."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<turn>", special=False), AddedToken("cats", special=False), AddedToken("  ")])
    tokenizer.chat_template = "<turn>" + tokenizer.chat_template
    text = f"I like cats,  and {control} dogs."
    match = re.escape(f"holds '{control}', which is a control token of this tokenizer")
    template = find_template(tokenizer, role)
    for read in (
        lambda: encode_prompts(tokenizer, ["fine", text], template),
        lambda: render_chat(tokenizer, text),
        lambda: render_chat(tokenizer, "Who?", system=text),
        lambda: likelihood_readout(tokenizer, [text]),
        lambda: text_readout(tokenizer, [text]),
        lambda: check_plain(tokenizer, [text]),
    ):
        with pytest.raises(ValueError, match=match):
            read()
    encode_prompts(tokenizer, ["I like cats,  and dogs.", spell_controls(tokenizer, text)], template)
    assert control not in spell_controls(tokenizer, text)
