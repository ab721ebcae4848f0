"""Persona vectors: for each persona and layer, the direction along which its two sides differ, and what it came from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from utils.models.language_model import LanguageModel
from utils.options import VectorMethod
from utils.records import read_record, write_record
from utils.statements.contrasts import Contrast
from utils.statements.names import find_names
from utils.statements.splits import name_seen
from utils.vectors.differences import find_directions, side_differences

_KIND = "persona_vectors"
_PROVENANCE = ("model", "revision", "fingerprint", "model_dtype", "role", "position", "component", "template")


@dataclass(frozen=True, eq=False)
class PersonaVectors:
    """Directions in the residual stream, by layer and persona; ``a + b``, ``-a``, ``2 * a`` and ``a.without(b)`` make others.

    Attributes
    ----------
    values
        (layer, persona, node). The length is how far the sides lie apart along the direction, on average over pairs.
    layers, personas
        What the first two axes are; layers are numbered as everywhere.
    norms
        (layer,) mean length of the residual stream over the statements: the unit of strengths and of projections.
    record
        Where they come from: model, fingerprint, token position, method, pairs; JSON values.
    seen
        Names of the statements that they were fitted on, see :func:`utils.statements.splits.name_seen`.
    """

    values: Float[np.ndarray, "layer persona node"]
    layers: tuple[int, ...]
    personas: tuple[str, ...]
    norms: Float[np.ndarray, " layer"]
    record: dict[str, Any]
    seen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.personas))
        if self.values.shape[:2] != shape or self.norms.shape != shape[:1]:
            raise ValueError(
                f"values of {self.values.shape} and norms of {self.norms.shape} do not go with {shape[0]} layers and "
                f"{shape[1]} personas."
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.norms).all()):
            raise ValueError("the vectors are not finite; fit them on finite activations.")
        self.values.setflags(write=False)
        self.norms.setflags(write=False)

    def __repr__(self) -> str:
        shown = ", ".join(self.personas[:2]) + (", …" if len(self.personas) > 2 else "")
        layers = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"layers {self.layers[0]}–{self.layers[-1]}"
        return (
            f"PersonaVectors({shown}: {len(self.personas)} × {layers} × {self.values.shape[2]} nodes, "
            f"{self.record.get('method', 'unknown method')}, {self.record.get('model', 'unknown model')})"
        )

    def __getitem__(self, personas: str | Sequence[str]) -> "PersonaVectors":
        """The vectors of one persona or several, in that order."""
        wanted = find_names("persona", [personas] if isinstance(personas, str) else personas, self.personas)
        places = [self.personas.index(name) for name in wanted]
        return replace(self, values=self.values[:, places], personas=tuple(wanted))

    def at(self, layers: int | Sequence[int]) -> "PersonaVectors":
        """The vectors of one layer or several."""
        wanted = [layers] if isinstance(layers, int | np.integer) else list(layers)
        if outside := [layer for layer in wanted if layer not in self.layers]:
            raise ValueError(f"there are no vectors at layers {outside}; there are {_range(self.layers)}.")
        places = [self.layers.index(layer) for layer in wanted]
        return replace(self, values=self.values[places], norms=self.norms[places], layers=tuple(map(int, wanted)))

    @property
    def units(self) -> Float[np.ndarray, "layer persona node"]:
        """The directions at length 1; zeros stay zeros."""
        length = np.linalg.norm(self.values, axis=2, keepdims=True)
        return np.divide(self.values, length, out=np.zeros_like(self.values), where=length > 0)

    @property
    def lengths(self) -> pd.DataFrame:
        """``layer, persona, length``, the length in units of the residual stream's."""
        length = np.linalg.norm(self.values, axis=2) / self.norms[:, None]
        index = pd.MultiIndex.from_product([self.layers, self.personas], names=["layer", "persona"])
        return pd.Series(length.ravel(), index, name="length").reset_index()

    def cosines(self, layer: int, other: "PersonaVectors | None" = None) -> pd.DataFrame:
        """Cosines of every two vectors at a layer, or of these (rows) with those of another set (columns)."""
        mine, theirs = self.at(layer), (self if other is None else other).at(layer)
        return pd.DataFrame(mine.units[0] @ theirs.units[0].T, index=mine.personas, columns=theirs.personas)

    def __add__(self, other: "PersonaVectors") -> "PersonaVectors":
        _check_alike(self, other)
        names = tuple(f"{a} + {b}" for a, b in zip(*_spread(self, other), strict=True))
        return self._derive(self.values + other.values, names, other)

    def __sub__(self, other: "PersonaVectors") -> "PersonaVectors":
        return self + (-other)

    def __neg__(self) -> "PersonaVectors":
        return self._derive(-self.values, tuple(f"-({name})" if " " in name else f"-{name}" for name in self.personas))

    def __mul__(self, factor: float) -> "PersonaVectors":
        if not np.isfinite(factor):
            raise ValueError(f"a vector times {factor} is not finite; give a finite number.")
        return self._derive(self.values * float(factor), self.personas)

    __rmul__ = __mul__

    def without(self, other: "PersonaVectors") -> "PersonaVectors":
        """What is left after all that lies in the span of another set's vectors is projected out, layer by layer."""
        _check_alike(self, other, any_number=True)
        spans = [_span(those) for those in other.values]
        values = np.stack([own - own @ basis.T @ basis for own, basis in zip(self.values, spans, strict=True)])
        names = tuple(f"{name} without {', '.join(other.personas)}" for name in self.personas)
        return self._derive(values, names, other)

    def orthogonalised(self) -> "PersonaVectors":
        """The set of orthogonal directions nearest to these (Löwdin 1950), each as long as the vector it stands for.

        Raises
        ------
        ValueError
            Vectors that depend on each other linearly.
        """
        rows = []
        for layer, units, own in zip(self.layers, self.units, self.values, strict=True):
            left, singular, right = np.linalg.svd(units, full_matrices=False)
            if singular[-1] < 1e-6 * singular[0] or len(singular) < len(units):
                raise ValueError(f"the vectors at layer {layer} depend on each other; leave one out.")
            rows.append(np.linalg.norm(own, axis=1, keepdims=True) * (left @ right))
        return self._derive(np.stack(rows), self.personas)

    def check_model(self, lm: LanguageModel) -> None:
        """Raise a ValueError unless the vectors were made with this model as it is now."""
        if (found := lm.fingerprint) != self.record.get("fingerprint"):
            raise ValueError(
                f"the vectors are of {self.record.get('model', 'an unknown model')} in "
                f"{self.record.get('model_dtype', 'unknown dtype')} (fingerprint {self.record.get('fingerprint')}), and this is "
                f"{lm.name} in {str(lm.dtype).removeprefix('torch.')} ({found}): load the model and dtype they were made with, "
                "and prepare steering before a mask is applied."
            )

    def save(self, path: str | Path) -> None:
        """Write vectors and provenance as one safetensors file."""
        held = {"layers": list(self.layers), "personas": list(self.personas)}
        held |= {"record": self.record, "seen": sorted(self.seen)}
        tensors = {"values": np.ascontiguousarray(self.values), "norms": np.ascontiguousarray(self.norms)}
        write_record(Path(path), _KIND, tensors, held)

    @classmethod
    def load(cls, path: str | Path) -> "PersonaVectors":
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            No such file, or one that holds no persona vectors or is cut short.
        """
        tensors, held = read_record(Path(path), _KIND)
        try:
            return cls(
                tensors["values"],
                tuple(held["layers"]),
                tuple(held["personas"]),
                tensors["norms"],
                held["record"],
                frozenset(held["seen"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not as persona vectors are saved ({error}); make it again.") from None

    def _derive(
        self, values: np.ndarray, personas: tuple[str, ...], other: "PersonaVectors | None" = None
    ) -> "PersonaVectors":
        seen = self.seen | (other.seen if other is not None else frozenset())
        return replace(self, values=values, personas=personas, seen=seen)


def persona_vectors(
    acts: xr.DataArray,
    contrasts: Sequence[Contrast],
    *,
    layers: Sequence[int] | None = None,
    method: VectorMethod = "mean-difference",
    ridge: float = 1.0,
) -> PersonaVectors:
    """Fit a vector for each persona and layer.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it.
    contrasts
        Whose sides, see :func:`utils.statements.find_contrasts`; :func:`utils.statements.restrict` leaves pairs out to judge on.
    layers
        Of ``acts``; all by default.
    method
        ``mean-difference``: the mean of H1 minus that of H0 (contrastive addition, Rimsky et al. 2024, arXiv 2312.06681;
        persona vectors, Chen et al. 2025, arXiv 2507.21509). ``ridge`` and ``pca``: see
        :func:`utils.vectors.differences.find_directions`; they need pairs.

    Raises
    ------
    ValueError
        No contrasts, an empty side, layers that are not there, no pairs where they are needed, or several token positions.
    """
    if set(acts.dims) != {"layer", "statement", "node"}:
        raise ValueError(
            f"activations have dimensions {', '.join(map(str, acts.dims))}; expected layer, statement and node: choose one "
            "position with acts.sel(position=...)."
        )
    if not contrasts:
        raise ValueError("there are no contrasts to fit vectors on; give those of find_contrasts.")
    for contrast in contrasts:
        if not len(contrast.h0) or not len(contrast.h1):
            raise ValueError(f"persona {contrast.persona!r} has an empty side; give statements of both.")
        if method != "mean-difference" and not contrast.paired:
            raise ValueError(
                f"method {method!r} needs pairs, which persona {contrast.persona!r} lacks; use mean-difference."
            )
    there = [int(layer) for layer in acts["layer"].to_numpy()]
    chosen = there if layers is None else [int(layer) for layer in layers]
    if outside := [layer for layer in chosen if layer not in there]:
        raise ValueError(f"layers {outside} were not extracted; there are {_range(there)}.")
    rows = np.unique(np.concatenate([contrast.rows for contrast in contrasts]))
    values = np.empty((len(chosen), len(contrasts), acts.sizes["node"]), np.float32)
    norms = np.empty(len(chosen), np.float32)
    for place, layer in enumerate(chosen):
        own = acts.sel(layer=layer).to_numpy()
        norms[place] = np.linalg.norm(own[rows].astype(np.float64), axis=1).mean()
        for column, contrast in enumerate(contrasts):
            values[place, column] = _fit(own, contrast, method, ridge)
    record = {name: acts.attrs[name] for name in _PROVENANCE if name in acts.attrs}
    pairs = {contrast.persona: min(len(contrast.h0), len(contrast.h1)) for contrast in contrasts}
    record |= {"method": method, "pairs": pairs, **({"ridge": ridge} if method == "ridge" else {})}
    labels = pd.DataFrame({"statement": acts["text"].to_numpy()[rows], "pair": acts["pair"].to_numpy()[rows]})
    seen = frozenset(name_seen(labels[labels["statement"] != ""]))
    return PersonaVectors(values, tuple(chosen), tuple(each.persona for each in contrasts), norms, record, seen)


def _fit(values: np.ndarray, contrast: Contrast, method: VectorMethod, ridge: float) -> np.ndarray:
    if method == "mean-difference":
        return values[contrast.h1].mean(axis=0, dtype=np.float64) - values[contrast.h0].mean(axis=0, dtype=np.float64)
    differences = side_differences(values, contrast)
    direction = find_directions(differences, np.ones((1, len(differences))), method=method, ridge=ridge)[0]
    length = np.linalg.norm(direction)
    unit = direction / length if length else direction
    return unit * (differences @ unit).mean()


def _span(vectors: np.ndarray) -> np.ndarray:
    """(dimension, node) orthonormal rows with the span of the vectors."""
    _, singular, right = np.linalg.svd(vectors, full_matrices=False)
    return right[singular > 1e-6 * max(singular.max(), 1e-30)]


def _check_alike(a: PersonaVectors, b: PersonaVectors, *, any_number: bool = False) -> None:
    if a.record.get("fingerprint") != b.record.get("fingerprint"):
        raise ValueError(f"vectors of {a.record.get('model')} and of {b.record.get('model')} do not share a space.")
    if a.layers != b.layers:
        raise ValueError(
            f"vectors at {_range(a.layers)} and at {_range(b.layers)} cannot be combined; use .at(layers)."
        )
    if not any_number and 1 not in (len(a.personas), len(b.personas)) and len(a.personas) != len(b.personas):
        raise ValueError(f"{len(a.personas)} and {len(b.personas)} vectors cannot be combined; choose one by its name.")


def _spread(a: PersonaVectors, b: PersonaVectors) -> tuple[tuple[str, ...], tuple[str, ...]]:
    n = max(len(a.personas), len(b.personas))
    return a.personas * (n // len(a.personas)), b.personas * (n // len(b.personas))


def _range(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
