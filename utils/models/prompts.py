"""Statements as token ids: the model's own chat template, what the tokenizer puts in front once, and where the statement lies."""

import logging
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from utils.options import Role

logger = logging.getLogger(__name__)

Thinking = Literal["", "switched off", "closed"]

_TOGETHER = 1024  # texts that are tokenised at once
# A private-use character: no template and no statement holds it.
_MARK = "\ue000"
# What templates are known to change in a text: blanks at its ends, line ends, what HTML and JSON escape, ends of thoughts.
_PROBE = " \n<a href=\"b\">&amp; 'c' {x} {{ y }}\\n</think>\t\u00e9 \n"
# Some templates write the date into the prompt; activations must not depend on the day they are computed on. What is passed to
# a template is taken as data, so that the function that tells the date is written in the template's language. Its last line
# end belongs to it: the template goes on as at its own beginning.
_FIXED_DATE = datetime(2024, 7, 26)
_DIRECTIVES = {f"%{letter}": _FIXED_DATE.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSyYF"}
_DIRECTIVES |= {f"%-{key[1:]}": value.lstrip("0") or "0" for key, value in _DIRECTIVES.items()}
_DATE_MACRO = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{key}', '{value}')" for key, value in _DIRECTIVES.items())
    + " }}{%- endmacro %}\n"
)
# How a template that lets the model think first is told not to: Qwen3, SmolLM3 and GLM; DeepSeek and Granite.
_WITHOUT_THINKING = {"enable_thinking": False, "thinking": False}
_THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
_CONTROLS: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, re.Pattern[str]]]" = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt; the statement's own tokens are ``ids[start:stop]``."""

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """What stands before and after a statement, and under which role it was put there.

    Attributes
    ----------
    role
        The role that was used: ``system``, ``user``, ``raw``, or ``user (no system role)`` where the template has no system
        role and the statement went into the user turn.
    verbatim
        Whether the template shows texts as they are. Where it trims or escapes them, each is rendered by itself.
    thinking
        What was done about thoughts before an answer: ``switched off`` by the template's own means, ``closed`` behind a
        prompt that had opened them, or nothing.
    """

    before: str
    after: str
    role: str
    verbatim: bool = True
    thinking: Thinking = ""


def find_template(tokenizer: PreTrainedTokenizerBase, role: Role = "system") -> Template:
    """Work out what the tokenizer's chat template puts around a statement.

    Parameters
    ----------
    tokenizer
        Of the model at hand. Without a chat template, every role becomes ``raw``, with a warning.
    role
        The turn that holds the statement. The prompt ends where the model would begin to answer.

    Raises
    ------
    ValueError
        Unknown role, or a template that drops the statement.
    """
    if role not in ("system", "user", "raw"):
        raise ValueError(f"unknown role {role!r}; expected system, user or raw.")
    if role == "raw":
        return Template("", "", "raw")
    if not tokenizer.chat_template:
        logger.warning("the tokenizer has no chat template; statements are given to the model as they are")
        return Template("", "", "raw")
    if role == "system":
        if parts := _find_parts(tokenizer, "system", "system"):
            return parts
        logger.warning("the chat template has no system role; statements go into the user turn")
        role_used = "user (no system role)"
    else:
        role_used = "user"
    parts = _find_parts(tokenizer, "user", role_used)
    if parts is None:
        raise ValueError("the chat template does not show what the user says; use role='raw'.")
    return parts


def encode_prompts(tokenizer: PreTrainedTokenizerBase, statements: Sequence[str], template: Template) -> list[Prompt]:
    """Tokenise statements inside a template; ``start`` and ``stop`` of each prompt bound the statement.

    Raises
    ------
    ValueError
        A statement that holds a control token, or that the template refuses; and as :func:`encode_texts`.
    """
    check_plain(tokenizer, statements)
    if template.verbatim:
        texts = [template.before + text + template.after for text in statements]
        begin = len(template.before)
        return encode_texts(tokenizer, texts, [(begin, begin + len(statement)) for statement in statements])
    texts = [_render_statement(tokenizer, text, template) for text in statements]
    return encode_texts(tokenizer, texts, [_find_inner(text, template) for text in texts])


def _render_statement(tokenizer: PreTrainedTokenizerBase, statement: str, template: Template) -> str:
    role = "system" if template.role == "system" else "user"
    text = _apply_template(tokenizer, [{"role": role, "content": statement}])
    if text is None:
        raise ValueError(f"the chat template refuses the statement {_shorten(statement)!r}; use role='raw'.")
    return text


def _find_inner(text: str, template: Template) -> tuple[int, int]:
    """First character of what the template shows of a statement, and the one after its last."""
    begin = _common_length(text, template.before)
    behind = _common_length(text[begin:][::-1], template.after[::-1])
    return begin, len(text) - behind


def _common_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Refuse texts of users that hold a control token, which would be read as one and not as what was written.

    Control tokens are the tokenizer's special tokens, and what was added to it and its chat template writes.

    Raises
    ------
    ValueError
        The first such text, and the token.
    """
    pattern = _control_pattern(tokenizer)
    for text in texts:
        if found := pattern.search(text):
            raise ValueError(
                f"{_shorten(text, found.start())!r} holds {found.group()!r}, which is a control token of this tokenizer; "
                "take it out or write it in another way."
            )


def spell_controls(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a blank inside each control token, so that it is read as text; for what models say."""
    return _control_pattern(tokenizer).sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)


def _control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    # Some tokenizers have thousands, and the list of them takes long to ask for.
    state = (len(tokenizer), tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else "")
    known = _CONTROLS.get(tokenizer)
    if known is not None and known[0] == state:
        return known[1]
    added = [token for token in tokenizer.added_tokens_decoder.values() if len(token.content.strip()) > 1]
    names = sorted({token.content for token in added if token.special or token.content in state[1]}, key=len)
    pattern = re.compile("|".join(map(re.escape, reversed(names))) or r"(?!)")
    _CONTROLS[tokenizer] = (state, pattern)
    return pattern


def _shorten(text: str, at: int = 0) -> str:
    first = max(0, at - 20)
    return ("…" if first else "") + text[first : first + 60] + ("…" if len(text) > first + 60 else "")


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[Prompt]:
    """Tokenise whole texts and find the tokens of a span of their characters.

    In front stands, once, what the tokenizer itself puts before a text (a BOS; ``[gMASK]<sop>``), whether or not the chat
    template writes it.

    A text is tokenised in one piece, since tokenising parts one by one can split it differently; the tokens of a
    span are those that overlap its characters.

    Parameters
    ----------
    texts
        As :func:`render_chat` returns them, maybe with an answer behind.
    spans
        First character and the one after the last, one span a text.

    Raises
    ------
    ValueError
        A span without tokens, or a tokenizer that does not report where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise ValueError("this tokenizer does not report where its tokens lie; a fast tokenizer is needed.")
    leading = _leading_tokens(tokenizer)
    prompts = []
    for start in range(0, len(texts), _TOGETHER):  # all at once would hold the offsets of every token
        part = list(texts[start : start + _TOGETHER])
        batch = tokenizer(
            part,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        own = zip(part, spans[start : start + _TOGETHER], batch["input_ids"], batch["offset_mapping"], strict=True)
        for text, (first, last), ids, offsets in own:
            inside = [i for i, (begin, end) in enumerate(offsets) if begin < last and end > first and end > begin]
            if not inside:
                raise ValueError(f"no token of the prompt belongs to {text[first:last]!r}.")
            missing = _missing_tokens(leading, tuple(ids[: len(leading)]))
            shift = len(missing)
            prompts.append(Prompt((*missing, *ids), inside[0] + shift, inside[-1] + 1 + shift))
    return prompts


def render_chat(tokenizer: PreTrainedTokenizerBase, user: str, *, system: str | None = None) -> str:
    """The text of a conversation up to where the model begins to answer, through the tokenizer's own chat template.

    Parameters
    ----------
    user
        What the user says.
    system
        The system turn; where the template has none, it goes in front of what the user says. Without it, the
        template's own default stays.

    Notes
    -----
    Without a chat template, the two are joined by an empty line and followed by a line end. Where a model would think
    before it answers, the thoughts are switched off or closed, so that what comes next is the answer.

    Raises
    ------
    ValueError
        The template does not show what the user says, or there are control tokens in it.
    """
    check_plain(tokenizer, [user, system or ""])
    folded = user if system is None else f"{system}\n\n{user}"
    if not tokenizer.chat_template:
        return folded + "\n"
    turns = [{"role": "user", "content": user}]
    if system is not None:
        text = _apply_template(tokenizer, [{"role": "system", "content": system}, *turns])
        if text is not None and system.strip() in text:
            return text
        turns = [{"role": "user", "content": folded}]
    text = _apply_template(tokenizer, turns)
    if text is None or user.strip() not in text:
        raise ValueError("the chat template does not show what the user says; use a tokenizer with another template.")
    return text


def _find_parts(tokenizer: PreTrainedTokenizerBase, role: str, role_used: str) -> Template | None:
    """The template around a text in one turn; None where it does not show the text."""
    turns = [{"role": role, "content": _MARK}]
    text = _apply_template(tokenizer, turns)
    before, mark, after = (text or "").partition(_MARK)
    if not mark:
        return None
    probed = _apply_template(tokenizer, [{"role": role, "content": _PROBE}])
    return Template(before, after, role_used, probed == before + _PROBE + after, _describe_thinking(tokenizer, turns))


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str | None:
    """The rendered turns and the beginning of an answer; None where the template refuses them."""
    text = _run_template(tokenizer, turns, **_WITHOUT_THINKING)
    if text is None:
        return None
    closed = _close_thoughts(text)
    if closed != text:
        _note_closed(str(tokenizer.chat_template))
    return closed


def _run_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str | None:
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            options["chat_template"] = _DATE_MACRO + template
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))
    except (jinja2.exceptions.TemplateError, ValueError):
        return None


def _close_thoughts(text: str) -> str:
    """A prompt that ends in the middle of thoughts, with their end behind it."""
    bare = text.rstrip()
    ending = next((close for opening, close in _THOUGHTS.items() if bare.endswith(opening)), None)
    return text if ending is None else f"{bare}\n\n{ending}\n\n"


def _describe_thinking(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> Thinking:
    quiet = _run_template(tokenizer, turns, **_WITHOUT_THINKING)
    if quiet is None:
        return ""
    if _close_thoughts(quiet) != quiet:
        return "closed"
    return "switched off" if quiet != _run_template(tokenizer, turns) else ""


@lru_cache
def _note_closed(_template: str) -> None:
    """Say it once for each template."""
    logger.warning("the chat template opens a thought behind the prompt; it is closed, so that the answer comes next")


def _leading_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text."""
    made = tokenizer("x", return_special_tokens_mask=True)
    ids, special = (cast(list[int], made[name]) for name in ("input_ids", "special_tokens_mask"))
    return tuple(ids[: next((i for i, added in enumerate(special) if not added), len(ids))])


def _missing_tokens(leading: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...]:
    """The part of the leading tokens that the ids do not begin with."""
    if ids[:1] == leading[:1]:
        return ()
    heads = (leading[:kept] for kept in range(len(leading) + 1))
    return next(head for head in heads if (head + ids)[: len(leading)] == leading)
