"""A persona's subnetwork: one bit a weight, what it was made from, and the model with all other weights cut."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.models.checkpoints import DEFAULT_MODEL
from utils.models.language_model import LanguageModel
from utils.models.load import load_model
from utils.records import read_record, write_record
from utils.subnetworks.calibration import read_linears
from utils.subnetworks.linears import Linear
from utils.subnetworks.pruning import PrunedWeights, count_kept, unpack


@dataclass(frozen=True, eq=False)
class PersonaMask:
    """Which weights of which linear layers are kept; weights of other layers are never touched.

    Attributes
    ----------
    bits
        By linear layer: (out * in / 8,) uint8, the bits of ``np.packbits`` over the rows of the (out, in) matrix.
    config
        Where it comes from: model, fingerprint, score, side, sparsity and calibration; JSON values.
    seen
        Names of the statements that it was made from, see :func:`utils.subnetworks.calibration.name_seen`.
    """

    bits: Mapping[Linear, np.ndarray]
    config: Mapping[str, Any]
    seen: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        made = [self.config.get(name) for name in ("score", "side", "sparsity")]
        said = ", ".join(str(value) for value in made if value is not None)
        return f"PersonaMask({said}: {len(self.bits)} linear layers of {self.config['model']})"

    @contextlib.contextmanager
    def applied(self, lm: LanguageModel, gamma: float = 0.0) -> Iterator["AppliedMask"]:
        """The model as the subnetwork alone: other weights of the covered layers are multiplied by ``gamma``.

        On the way out, also after an exception or Ctrl-C, the weights are bit for bit what they were. Meanwhile only
        the values that were cut are held. ``with mask.applied(lm) as active: active.switch(other)`` goes over to
        another mask of the same model.

        Raises
        ------
        ValueError
            The mask is of another model, or of this one with other weights (another dtype, or a mask applied already).
        """
        self.check_model(lm)
        applied = AppliedMask(lm, str(self.config["fingerprint"]))
        try:
            applied.switch(self, gamma)
            yield applied
        finally:
            applied.restore()

    def __call__(self, lm: LanguageModel) -> contextlib.AbstractContextManager["AppliedMask"]:
        """As :meth:`applied`, so that a mask is a condition of :func:`utils.responses.evaluate`."""
        return self.applied(lm)

    def check_model(self, lm: LanguageModel) -> None:
        """Raise a ValueError unless the mask was made for this model as it is now."""
        if (found := lm.fingerprint) != self.config["fingerprint"]:
            raise ValueError(
                f"the mask was made for {self.config['model']} in {self.config['dtype']} (fingerprint "
                f"{self.config['fingerprint']}), and this is {lm.name} in {str(lm.dtype).removeprefix('torch.')} ({found}): "
                "load the model and dtype it was made for, and apply one mask at a time."
            )

    def save(self, path: str | Path) -> None:
        """Write bits and provenance as one safetensors file, 1/8 byte a weight."""
        record = {
            "linears": [asdict(linear) for linear in self.bits],
            "config": dict(self.config),
            "seen": sorted(self.seen),
        }
        tensors = {linear.name: bits for linear, bits in self.bits.items()}
        write_record(Path(path), "mask", tensors, record)

    @classmethod
    def load(cls, path: str | Path) -> "PersonaMask":
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            No such file; a truncated file or one of another kind.
        """
        tensors, record = read_record(Path(path), "mask")
        linears = read_linears(record["linears"])
        return cls({linear: tensors[linear.name] for linear in linears}, record["config"], frozenset(record["seen"]))

    def save_model(self, path: str | Path, lm: LanguageModel | None = None, *, gamma: float = 0.0) -> None:
        """Write the masked model and its tokenizer as a plain transformers checkpoint.

        Parameters
        ----------
        path
            A new folder.
        lm
            The model; by default it is loaded by the name in the mask's record.

        Raises
        ------
        FileExistsError
            There is something at ``path`` already.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} is there already; choose another folder or remove it.")
        if lm is None:
            name = str(self.config["model"])
            revision = str(self.config["revision"]) or None
            lm = load_model(None if name == DEFAULT_MODEL else name, dtype=self.config["dtype"], revision=revision)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            with self.applied(lm, gamma), _config_kept(lm):
                lm.model.save_pretrained(scratch)
            lm.tokenizer.save_pretrained(scratch)
            scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def kept(self, linear: Linear) -> np.ndarray:
        """(out, in) bool of one layer."""
        return unpack(self.bits[linear], linear.shape).numpy()

    def table(self) -> pd.DataFrame:
        """One row a linear layer: ``name, layer, part, weights, kept``."""
        return pd.DataFrame(
            {
                "name": linear.name,
                "layer": linear.layer,
                "part": linear.part,
                "weights": linear.shape[0] * linear.shape[1],
                "kept": count_kept(bits),
            }
            for linear, bits in self.bits.items()
        )

    @property
    def sparsity(self) -> float:
        """Share of the covered weights that is cut."""
        table = self.table()
        return 1 - table["kept"].sum() / table["weights"].sum()

    def __and__(self, other: "PersonaMask") -> "PersonaMask":
        return self._combine(other, np.bitwise_and, "&")

    def __or__(self, other: "PersonaMask") -> "PersonaMask":
        return self._combine(other, np.bitwise_or, "|")

    def jaccard(self, other: "PersonaMask") -> pd.Series:
        """The share of the weights kept by either mask that both keep, by layer; NaN where neither keeps any."""
        table = self.overlap(other)
        return table.set_index("layer")["jaccard"]

    def overlap(self, other: "PersonaMask") -> pd.DataFrame:
        """How far two masks agree, one row a layer.

        Returns
        -------
        DataFrame
            ``layer, weights, kept, kept_other, both``, ``jaccard`` and ``expected_jaccard``, that of two masks which keep as
            many weights of every matrix independently of each other.
        """
        self._check_alike(other)
        rows = []
        for linear, bits in self.bits.items():
            n, a, b = linear.shape[0] * linear.shape[1], count_kept(bits), count_kept(other.bits[linear])
            both = count_kept(bits & other.bits[linear])
            rows.append((linear.layer, n, a, b, both, a * b / n))
        names = ["layer", "weights", "kept", "kept_other", "both", "expected"]
        table = pd.DataFrame(rows, columns=names).groupby("layer").sum().reset_index()
        either = table["kept"] + table["kept_other"]
        table["jaccard"] = table["both"] / (either - table["both"])
        table["expected_jaccard"] = table["expected"] / (either - table["expected"])
        return table.drop(columns="expected")

    def _combine(self, other: "PersonaMask", operation: np.ufunc, sign: str) -> "PersonaMask":
        self._check_alike(other)
        bits = {linear: operation(own, other.bits[linear]) for linear, own in self.bits.items()}
        shared = {name: value for name, value in self.config.items() if other.config.get(name) == value}
        config = {**shared, "operation": sign, "of": [dict(self.config), dict(other.config)]}
        return PersonaMask(bits, config, self.seen | other.seen)

    def _check_alike(self, other: "PersonaMask") -> None:
        if self.config["fingerprint"] != other.config["fingerprint"]:
            raise ValueError(
                f"the masks are of different models, {self.config['model']} and {other.config['model']} (or of one model "
                "with different weights); make both with one model."
            )
        if self.bits.keys() != other.bits.keys():
            raise ValueError("the masks cover different layers; make both with one scope.")


class AppliedMask(PrunedWeights):
    """A model under a mask, see :meth:`PersonaMask.applied`."""

    def __init__(self, lm: LanguageModel, fingerprint: str):
        super().__init__(lm)
        self._fingerprint = fingerprint

    def switch(self, mask: PersonaMask, gamma: float = 0.0) -> None:
        """Go over to another mask of the same model."""
        if mask.config["fingerprint"] != self._fingerprint:
            raise ValueError("the mask was made for another model than the one that is masked; make it anew.")
        if not math.isfinite(gamma):
            raise ValueError(f"gamma is what weights are multiplied by, a finite number such as 0, and not {gamma}.")
        self.cut(mask.bits, gamma)


@contextlib.contextmanager
def _config_kept(lm: LanguageModel) -> Iterator[None]:
    """Undo what saving writes into the model's own config, which is part of its fingerprint."""
    values = dict(vars(lm.model.config))
    try:
        yield
    finally:
        vars(lm.model.config).clear()
        vars(lm.model.config).update(values)
