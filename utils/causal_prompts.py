"""The prompts of a causal check, and what nodes are overwritten with there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from utils.causal.plan import Replacements
from utils.causal.scoring import mean_residuals
from utils.causal.settings import Check
from utils.models.load import LanguageModel
from utils.options import Scope
from utils.persona_prompts import persona_prompt
from utils.responses.measures import Readout, agreement_readout, likelihood_readout
from utils.statements.splits import HeldOut

# Statements of a side that means are taken over.
_BACKGROUND = 40


@dataclass(frozen=True)
class PersonaPrompts:
    """What the statements of a persona say.

    Attributes
    ----------
    h1, h0
        Of the pairs that are measured on, pair by pair.
    rest_h1, rest_h0
        Some of the others.
    """

    persona: str
    h1: tuple[str, ...]
    h0: tuple[str, ...]
    rest_h1: tuple[str, ...]
    rest_h0: tuple[str, ...]

    @classmethod
    def of(cls, held: HeldOut, texts: Sequence[str]) -> "PersonaPrompts":
        """``texts`` are those of all statements, in their order."""

        def pick(places: np.ndarray) -> tuple[str, ...]:
            return tuple(texts[int(at)] for at in places)

        rest_h1, rest_h0 = (
            # Spread over all, as the order goes by persona where several make up a side.
            pick(side[np.linspace(0, len(side) - 1, min(_BACKGROUND, len(side))).astype(int)])
            for side in (held.rest.h1, held.rest.h0)
        )
        return cls(held.persona, pick(held.h1), pick(held.h0), rest_h1, rest_h0)

    def readout(self, tokenizer: PreTrainedTokenizerBase, check: Check, texts: Sequence[str] | None = None) -> Readout:
        """A check's measure of other texts, or of the measured ones, the persona's before those of the other side."""
        make = likelihood_readout if check.measure == "likelihood" else agreement_readout
        system = persona_prompt(self.persona) if check.prompt == "persona" else None
        return make(tokenizer, [*self.h1, *self.h0] if texts is None else texts, system=system)

    def difference(self, scores: Float[np.ndarray, "n prompts"]) -> Float[np.ndarray, "n pairs"]:
        """The persona's statement minus the other one, of scores of the measured texts."""
        return scores[:, : len(self.h1)] - scores[:, len(self.h1) :]


def find_replacements(
    lm: LanguageModel, prompts: PersonaPrompts, check: Check, layer: int, *, scope: Scope = "all", rng: int = 0
) -> Replacements:
    """What nodes of a layer can be overwritten with in the prompts of a check, see :class:`Replacements`.

    All of it comes from the same request and the same tokens as those that are changed, so that an overwritten node gets
    a value that it could have there. Means and other statements come from under the neutral prompt also where the check
    asks for the persona: they would keep what asking adds to all statements alike. Matched statements are under the
    check's own prompt.
    """

    def read(asked: Check, texts: Sequence[str] | None) -> np.ndarray:
        return mean_residuals(lm, prompts.readout(lm.tokenizer, asked, texts), layer, scope=scope)

    neutral, n = replace(check, prompt="neutral"), len(prompts.h1)
    own, h1, h0 = read(check, None), read(neutral, prompts.rest_h1), read(neutral, prompts.rest_h0)
    generator = np.random.default_rng([rng, layer, 4])
    other = [h0[generator.integers(len(h0), size=n)], h1[generator.integers(len(h1), size=n)]]
    return Replacements(h0.mean(axis=0), np.concatenate(other), np.concatenate([own[n:], own[:n]]))
