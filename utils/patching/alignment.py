"""Which tokens of one prompt correspond to which of another, where only the identity differs."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from transformers import PreTrainedTokenizerBase

from utils.models.prompts import Prompt
from utils.options import Segment
from utils.responses.wording import check_identities, encode_questions, identity_prompt, with_article

SEGMENTS: tuple[Segment, ...] = ("before", "persona", "question", "last", "after", "all")


@dataclass(frozen=True)
class Pair:
    """One question under two identities; ``start`` and ``stop`` of each prompt bound the identity with its article."""

    id: str
    base: Prompt
    source: Prompt

    def places(self, segment: Segment) -> tuple[list[int], list[int]]:
        """Places in the base and in the source that correspond to each other.

        ``before``: in front of the persona. ``persona``: the identity with its article; where one has more tokens than
        the other, last token goes to last token, and the first ones of the longer are in no place. ``question``: behind
        the persona, without the last token. ``last``: the last token, where the model is about to answer. ``after``:
        ``question`` and ``last``. ``all``: everything.
        """
        if segment == "all":
            parts = [self.places(part) for part in ("before", "persona", "after")]
            return [i for part, _ in parts for i in part], [i for _, part in parts for i in part]
        held = min(self.base.stop - self.base.start, self.source.stop - self.source.start)
        bounds = [_bounds(prompt, segment, held) for prompt in (self.base, self.source)]
        return list(range(*bounds[0])), list(range(*bounds[1]))


def _bounds(prompt: Prompt, segment: Segment, held: int) -> tuple[int, int]:
    length = len(prompt.ids)
    return {
        "before": (0, prompt.start),
        "persona": (prompt.stop - held, prompt.stop),
        "question": (prompt.stop, length - 1),
        "last": (length - 1, length),
        "after": (prompt.stop, length),
    }[segment]


def align(name: str, base: Prompt, source: Prompt) -> Pair:
    """Pair two prompts of one question.

    Raises
    ------
    ValueError
        They differ elsewhere than in the persona, or do not end behind it: a patch would move unlike tokens.
    """
    for what, own, other in (
        ("before", base.ids[: base.start], source.ids[: source.start]),
        ("after", base.ids[base.stop :], source.ids[source.stop :]),
    ):
        if own != other:
            raise ValueError(
                f"question {name!r}: the prompts of the two identities have other tokens {what} the persona "
                f"({len(own)} and {len(other)}), so that they cannot be aligned; choose another pair of identities."
            )
    if base.stop >= len(base.ids):
        raise ValueError(f"question {name!r}: the prompt ends with the persona; no token is left to answer from.")
    return Pair(name, base, source)


def pair_prompts(tokenizer: PreTrainedTokenizerBase, base: str, source: str, questions: pd.DataFrame) -> list[Pair]:
    """Each question under ``You are {a/an} {identity}.`` for two identities, aligned.

    Raises
    ------
    ValueError
        The identities are the same, or the prompts cannot be aligned.
    """
    check_identities([base, source])
    prompts = [
        encode_questions(tokenizer, questions, system=identity_prompt(identity), marked=with_article(identity))
        for identity in (base, source)
    ]
    return [align(str(name), *both) for name, *both in zip(questions["id"], *prompts, strict=True)]


def check_segments(segments: Sequence[Segment]) -> list[Segment]:
    """The segments, each once; ValueError for one that is not known."""
    unknown = [segment for segment in segments if segment not in SEGMENTS]
    if unknown or not segments:
        raise ValueError(f"unknown segments {unknown}; expected some of {', '.join(SEGMENTS)}.")
    return list(dict.fromkeys(segments))
