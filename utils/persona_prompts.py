"""Asking for a persona in words: a system prompt, or examples of what it says."""

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer

from utils.statements.load import topic_of


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
