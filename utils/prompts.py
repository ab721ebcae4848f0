"""Statements as token ids: the model's own chat template, exactly one BOS, and where the statement's tokens lie."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import jinja2
from transformers import PreTrainedTokenizerBase

from utils.choices import Role

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
    """Tokenise statements inside a template.

    The text is tokenised in one piece, since tokenising the parts one by one can split it differently; the
    statement's tokens are those that overlap its characters.
    """
    texts = [template.before + text + template.after for text in statements]
    if not tokenizer.is_fast:
        raise ValueError("this tokenizer does not report where its tokens lie; a fast tokenizer is needed.")
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    bos = _missing_bos(tokenizer, template)
    prompts = []
    for text, statement, ids, offsets in zip(
        texts, statements, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        first, last = len(template.before), len(text) - len(template.after)
        inside = [i for i, (begin, end) in enumerate(offsets) if begin < last and end > first and end > begin]
        if not inside:
            raise ValueError(f"no token of the prompt belongs to the statement {statement!r}.")
        shift = len(bos)
        prompts.append(Prompt((*bos, *ids), inside[0] + shift, inside[-1] + 1 + shift))
    return prompts


def _render(tokenizer: PreTrainedTokenizerBase, role: str) -> tuple[str, str] | None:
    turns = [{"role": role, "content": _MARK}]
    try:
        template = _FIXED_DATE + tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    except (jinja2.exceptions.TemplateError, ValueError):
        return None
    before, mark, after = str(text).partition(_MARK)
    return (before, after) if mark else None


def _missing_bos(tokenizer: PreTrainedTokenizerBase, template: Template) -> list[int]:
    """The BOS id where the tokenizer would add one and the template does not bring it."""
    if tokenizer.bos_token_id is None or template.before.startswith(str(tokenizer.bos_token)):
        return []
    adds = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [cast(int, tokenizer.bos_token_id)] if adds else []
