"""Prompts: multiple-choice questions, identities, and asking for a persona in words or by examples of what it says."""

from collections.abc import Sequence

import jinja2
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import PreTrainedTokenizerBase

from utils.models.prompts import Prompt, encode_texts, render_chat
from utils.statements.load import topic_of

LETTERS = "ABCD"

# A private-use character: no template holds it.
_MARK = "\ue000"


def question_text(question: pd.Series) -> str:
    """What the user says: the question, its options one a line, and what form the answer is to have."""
    options = "\n".join(f"{letter}. {question[letter]}" for letter in LETTERS)
    return f"Question: {question['question']}\n{options}\nAnswer with the letter of the correct option."


def with_article(identity: str) -> str:
    """The identity with its article, *an* before a vowel letter."""
    return f"{'an' if identity[:1].lower() in 'aeiou' else 'a'} {identity}"


def identity_prompt(identity: str) -> str:
    """The system turn that assigns an identity: ``You are {a/an} {identity}.`` and nothing else."""
    if not identity.strip():
        raise ValueError("the identity is empty; give a noun phrase such as 'nurse'.")
    return f"You are {with_article(identity)}."


def render_questions(
    tokenizer: PreTrainedTokenizerBase, questions: pd.DataFrame, *, system: str | None = None
) -> list[str]:
    """The texts of the prompts, up to where the model is to name a letter."""
    needed = ["id", "question", *LETTERS]
    missing = [name for name in needed if name not in questions]
    if missing or not len(questions):
        raise ValueError(
            f"there are no questions to ask: {f'no column {missing[0]}' if missing else 'the frame is empty'}; "
            "give a frame as load_questions returns it."
        )
    return [render_chat(tokenizer, question_text(row), system=system) for _, row in questions.iterrows()]


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, questions: pd.DataFrame, *, system: str | None = None, marked: str | None = None
) -> list[Prompt]:
    """Tokenise questions; ``start`` and ``stop`` of each prompt bound the tokens of ``marked``.

    Parameters
    ----------
    system
        The system turn; without it, the template's own default stays.
    marked
        A part of ``system``; without it, the last character of the prompt counts as marked.

    Raises
    ------
    ValueError
        Something is missing in the questions, or the template does not show ``system`` as it is.
    """
    texts = render_questions(tokenizer, questions, system=system)
    if marked is None:
        return encode_texts(tokenizer, texts, [(len(text) - 1, len(text)) for text in texts])
    begin = (system or "").rindex(marked)
    spans = []
    for text in texts:
        place = text.find((system or "").strip())
        if place < 0:
            raise ValueError(f"the chat template changes the system turn {system!r}; its tokens cannot be found.")
        spans.append((place + begin, place + begin + len(marked)))
    return encode_texts(tokenizer, texts, spans)


def letter_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token of each option letter as it would follow a prompt.

    A space goes before the letters where the chat template puts one before an answer.

    Parameters
    ----------
    text
        A prompt as :func:`render_questions` returns it.

    Raises
    ------
    ValueError
        A letter is not one token there, or two letters are the same token.
    """
    space = _space_before_answers(tokenizer)
    ending = (len(text) - 1, len(text))
    texts = [text, *(f"{text}{space}{letter}" for letter in LETTERS)]
    prompt, *answered = [found.ids for found in encode_texts(tokenizer, texts, [ending] * len(texts))]
    for letter, ids in zip(LETTERS, answered, strict=True):
        if ids[:-1] != prompt:
            raise ValueError(
                f"the option letter {letter} is not a single token of this tokenizer behind {text[-12:]!r}; "
                "answers cannot be read from one token, use another model."
            )
    tokens = [ids[-1] for ids in answered]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"the option letters share tokens ({tokens}); this tokenizer does not tell them apart.")
    return tokens


def check_identities(identities: Sequence[str]) -> None:
    """Refuse the same identity twice, whatever its capitals and blanks."""
    plain = [" ".join(identity.lower().split()) for identity in identities]
    repeated = [identity for identity, key in zip(identities, plain, strict=True) if plain.count(key) > 1]
    if repeated:
        raise ValueError(f"the identities {repeated[0]!r} and {repeated[1]!r} are the same; give two that differ.")


def _space_before_answers(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (jinja2.exceptions.TemplateError, ValueError):
        return ""
    before, mark, _ = text.partition(_MARK)
    return " " if mark and before.endswith(" ") and not render_chat(tokenizer, "1 + 1?")[-1].isspace() else ""


def persona_prompt(persona: str) -> str:
    """A system prompt that asks for a persona by its name."""
    words = persona.replace("-", " ")
    if persona.startswith("subscribes-to-"):
        return f"You are someone who {words}. Speak as that person."
    if topic_of(persona) == "personality":
        return f"You are someone with a high degree of {words}. Speak as that person."
    return f"You are someone who is {persona if persona.startswith('anti-') else words}. Speak as that person."


def examples_prompt(examples: Sequence[str], system: str | None = None) -> str:
    """A system prompt that shows what the model is to sound like, behind ``system`` where there is one."""
    shown = "\n".join(f"- {example}" for example in examples)
    return "\n\n".join([*([system] if system else []), f"These are things that you have said before:\n{shown}"])


def retrieve_examples(examples: Sequence[str], queries: Sequence[str], n: int) -> list[list[str]]:
    """The n examples nearest to each query, by the cosine of their TF-IDF vectors; ties go to the first.

    Raises
    ------
    ValueError
        Fewer examples than are asked for.
    """
    if not 1 <= n <= len(examples):
        raise ValueError(f"{n} examples are asked for and there are {len(examples)}; expected from 1 to that.")
    examples = list(examples)
    vectoriser = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(examples)
    nearness = (vectoriser.transform(queries) @ vectoriser.transform(examples).T).toarray()
    order = (-nearness).argsort(axis=1, kind="stable")[:, :n]
    return [[examples[place] for place in row] for row in order]
