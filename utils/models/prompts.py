"""Statements as token ids: the model's own chat template, exactly one BOS, and where the statement's tokens lie."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import jinja2
from transformers import PreTrainedTokenizerBase

from utils.options import Role

logger = logging.getLogger(__name__)

# A private-use character: no template and no statement holds it.
_MARK = "\ue000"
# Some templates write today's date into the prompt; activations must not depend on the day they are computed on.
_FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt; the statement's own tokens are ``ids[start:stop]``."""

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """What stands before and after a statement, and under which role it was put there.

    ``role`` is the role that was used: ``system``, ``user``, ``raw``, or ``user (no system role)`` where the template
    has no system role and the statement went into the user turn.
    """

    before: str
    after: str
    role: str


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
        if parts := _render(tokenizer, "system"):
            return Template(*parts, "system")
        logger.warning("the chat template has no system role; statements go into the user turn")
        role_used = "user (no system role)"
    else:
        role_used = "user"
    parts = _render(tokenizer, "user")
    if parts is None:
        raise ValueError("the chat template does not show what the user says; use role='raw'.")
    return Template(*parts, role_used)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, statements: Sequence[str], template: Template) -> list[Prompt]:
    """Tokenise statements inside a template; ``start`` and ``stop`` of each prompt bound the statement."""
    texts = [template.before + text + template.after for text in statements]
    begin = len(template.before)
    return encode_texts(tokenizer, texts, [(begin, begin + len(statement)) for statement in statements])


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[Prompt]:
    """Tokenise whole texts, exactly one BOS each, and find the tokens of a span of their characters.

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
    batch = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    prompts = []
    for text, (first, last), ids, offsets in zip(
        texts, spans, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        inside = [i for i, (begin, end) in enumerate(offsets) if begin < last and end > first and end > begin]
        if not inside:
            raise ValueError(f"no token of the prompt belongs to {text[first:last]!r}.")
        bos = _missing_bos(tokenizer, text)
        shift = len(bos)
        prompts.append(Prompt((*bos, *ids), inside[0] + shift, inside[-1] + 1 + shift))
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
    Without a chat template, the two are joined by an empty line and followed by a line end.
    """
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


def _render(tokenizer: PreTrainedTokenizerBase, role: str) -> tuple[str, str] | None:
    text = _apply_template(tokenizer, [{"role": role, "content": _MARK}])
    before, mark, after = (text or "").partition(_MARK)
    return (before, after) if mark else None


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str | None:
    """The rendered turns and the beginning of an answer; None where the template refuses them."""
    try:
        template = _FIXED_DATE + tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
        )
    except (jinja2.exceptions.TemplateError, ValueError):
        return None


def _missing_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The BOS id where the tokenizer would add one and the text does not bring it."""
    if tokenizer.bos_token_id is None or text.startswith(str(tokenizer.bos_token)):
        return []
    adds = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [cast(int, tokenizer.bos_token_id)] if adds else []
