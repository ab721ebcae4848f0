"""What goes into every linear layer when a model reads a persona's statements: moments of its inputs, in one pass.

For each side (the persona's positive and negative statements, or two personas) and each linear layer, sums over real
tokens (no padding) and over statements are kept, in float64: five numbers an input, however many statements there are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import transformers
from jaxtyping import Float

from utils.models.language_model import LanguageModel
from utils.models.prompts import encode_prompts, find_template
from utils.options import Role, Side
from utils.records import read_record, write_record
from utils.statements.splits import list_texts, name_seen
from utils.subnetworks.input_sums import NORM, RATE, RATE_SQUARES, SQUARES, SUM, sum_inputs
from utils.subnetworks.linears import Linear, find_linears

SIDES: tuple[Side, Side] = ("positive", "negative")
Statements = pd.DataFrame | Sequence[str]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Moments of the inputs of linear layers on two sets of statements.

    Attributes
    ----------
    linears
        The layers that were watched.
    sums
        By side and name of the layer, (5, in) float64: see :mod:`utils.subnetworks.input_sums`.
    n_statements, n_tokens
        By side.
    config
        Model, fingerprint, template and versions; JSON values.
    seen
        Pairs and digests of the texts it was made from, see :func:`name_seen`.
    """

    linears: tuple[Linear, ...]
    sums: Mapping[Side, Mapping[str, np.ndarray]]
    n_statements: Mapping[Side, int]
    n_tokens: Mapping[Side, int]
    config: dict[str, Any]
    seen: frozenset[str]

    def mean(self, side: Side, name: str) -> Float[np.ndarray, " d"]:
        """Mean of each input over tokens."""
        return self.sums[side][name][SUM] / self.n_tokens[side]

    def variance(self, side: Side, name: str) -> Float[np.ndarray, " d"]:
        """Variance of each input over tokens (divided by their number)."""
        mean_square = self.sums[side][name][SQUARES] / self.n_tokens[side]
        return np.maximum(mean_square - self.mean(side, name) ** 2, 0)

    def rms(self, side: Side, name: str) -> Float[np.ndarray, " d"]:
        """Root of the mean square of each input over tokens."""
        return np.sqrt(self.sums[side][name][SQUARES] / self.n_tokens[side])

    def norm(self, side: Side, name: str) -> Float[np.ndarray, " d"]:
        """Euclidean norm of each input over all tokens."""
        return np.sqrt(self.sums[side][name][SQUARES])

    def norm_moments(
        self, side: Side, name: str, *, length_normalised: bool = True
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Mean and variance over statements of each input's norm, by default divided by √tokens."""
        sums, n = self.sums[side][name], self.n_statements[side]
        first, second = (sums[RATE], sums[RATE_SQUARES]) if length_normalised else (sums[NORM], sums[SQUARES])
        mean = first / n
        return mean, np.maximum(second / n - mean**2, 0)

    def save(self, path: str | Path) -> None:
        """Write the sums and, in the header, everything else, as one safetensors file."""
        tensors = {f"{side}/{name}": value for side in SIDES for name, value in self.sums[side].items()}
        record = {
            "linears": [asdict(linear) for linear in self.linears],
            "n_statements": dict(self.n_statements),
            "n_tokens": dict(self.n_tokens),
            "config": self.config,
            "seen": sorted(self.seen),
        }
        write_record(Path(path), "calibration", tensors, record)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            No such file; a truncated file or one of another kind.
        """
        tensors, record = read_record(Path(path), "calibration")
        linears = read_linears(record["linears"])
        sums: dict[Side, dict[str, np.ndarray]] = {
            side: {linear.name: tensors[f"{side}/{linear.name}"] for linear in linears} for side in SIDES
        }
        return cls(
            linears, sums, record["n_statements"], record["n_tokens"], record["config"], frozenset(record["seen"])
        )


def calibrate(
    lm: LanguageModel,
    positive: Statements,
    negative: Statements,
    *,
    role: Role = "system",
    head: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> Calibration:
    """Run two sets of statements through a model, once, and keep the moments of every linear layer's input.

    Parameters
    ----------
    positive, negative
        Statements of the two sides, or of two personas: texts, or frames of :func:`utils.statements.load_statements`,
        whose pairs are then kept so that nothing is evaluated on them.
    role
        The turn of the chat template that holds the statement, or ``raw``. All tokens of the prompt count.
    head
        Also watch the language-modelling head.
    batch_size
        Statements a batch; ``auto`` chooses by length and device.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        A side without statements, an input that is not finite, or a model that masks cannot cover
        (:func:`utils.subnetworks.linears.find_linears`).
    """
    options = {"role": role, "head": head, "batch_size": batch_size, "progress": progress}
    return calibrate_labellings(lm, [(positive, negative)], **options)[0]


def calibrate_labellings(
    lm: LanguageModel,
    labellings: Sequence[tuple[Statements, Statements]],
    *,
    role: Role = "system",
    head: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> list[Calibration]:
    """Calibrate on several pairs of sides, such as the true ones and shuffled ones; each statement is run once in all.

    Parameters and errors as of :func:`calibrate`, a labelling being its ``(positive, negative)``.
    """
    sides = [(side, statements) for labelling in labellings for side, statements in zip(SIDES, labelling, strict=True)]
    texts = [list_texts(statements) for _, statements in sides]
    for (side, _), own in zip(sides, texts, strict=True):
        if not own:
            raise ValueError(f"the {side} side has no statements to calibrate on; give at least one.")
    linears = tuple(find_linears(lm, head=head))
    template = find_template(lm.tokenizer, role)
    unique = list(dict.fromkeys(text for own in texts for text in own))
    prompts = encode_prompts(lm.tokenizer, unique, template)
    counted = [Counter(own) for own in texts]
    counts = np.array([[count[text] for text in unique] for count in counted], float)
    config = {
        "model": lm.name,
        "revision": lm.revision or "",
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "role": template.role,
        **({"thinking": template.thinking} if template.thinking else {}),
        "template": [template.before, template.after],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    sums = sum_inputs(lm, linears, prompts, counts, batch_size=batch_size, progress=progress)
    tokens = counts @ np.array([len(prompt.ids) for prompt in prompts])
    found = []
    for place in range(0, len(sides), 2):
        rows = dict(zip(SIDES, (place, place + 1), strict=True))
        found.append(
            Calibration(
                linears,
                {side: {name: value[row] for name, value in sums.items()} for side, row in rows.items()},
                {side: len(texts[row]) for side, row in rows.items()},
                {side: int(tokens[row]) for side, row in rows.items()},
                dict(config),
                frozenset().union(*(name_seen(sides[row][1]) for row in rows.values())),
            )
        )
    return found


def read_linears(rows: list[dict[str, Any]]) -> tuple[Linear, ...]:
    """Linear layers from JSON."""
    return tuple(Linear(**{**row, "shape": tuple(row["shape"])}) for row in rows)
