"""The batch plan: in which order statements go through the model, and the store that follows it."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from utils.activations.layout import create_store, restore_labels
from utils.activations.store import ActivationStore, open_existing
from utils.models.prompts import Prompt

logger = logging.getLogger(__name__)

# Padded tokens a batch. On a CPU larger batches gain nothing and smaller ones lose to overhead; a GPU wants more.
_CPU_TOKENS, _GPU_TOKENS = 2048, 16384


@dataclass(frozen=True)
class Plan:
    """Statements in the order in which they go through the model, ``size`` at a time.

    ``rows`` has the statements' labels, ``key`` (of the prompt) and ``order`` (the place in what was asked for).
    """

    rows: pd.DataFrame
    prompts: list[Prompt]
    size: int

    def batches(self) -> list[np.ndarray]:
        """The rows of every batch."""
        return np.split(np.arange(len(self.prompts)), range(self.size, len(self.prompts), self.size))


def make_plan(
    frame: pd.DataFrame, prompts: list[Prompt], batch_size: int | Literal["auto"], device: torch.device
) -> Plan:
    """Sort by length within each persona: little padding, and a persona's rows stay together in the store.

    The longest go first, so that what does not fit into memory shows at once and not after an hour.
    """
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    if batch_size == "auto":
        tokens = _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
        batch_size = max(1, min(len(prompts), tokens // int(np.quantile(lengths, 0.9))))
    elif batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or 'auto', not {batch_size}.")
    first_seen = frame["persona"].map({name: i for i, name in enumerate(frame["persona"].unique())}).to_numpy()
    order = np.lexsort((np.arange(len(frame)), -lengths, first_seen))
    rows = frame.iloc[order].reset_index(drop=True).assign(order=order)
    sorted_prompts = [prompts[i] for i in order]
    rows["key"] = [prompt_key(prompt) for prompt in sorted_prompts]
    return Plan(rows, sorted_prompts, batch_size)


def prompt_key(prompt: Prompt) -> str:
    """A key of the token ids of a prompt and of where its statement lies."""
    return hashlib.sha256(repr((prompt.ids, prompt.start, prompt.stop)).encode()).hexdigest()[:20]


def prepare_store(
    path: Path, plan: Plan, layers: list[int], d_node: int, dtype: str, config: dict[str, Any]
) -> ActivationStore:
    """Open a store that can be resumed, or lay out a new one that keeps what an older one has of the same statements."""
    _finish_replacement(path)
    older = open_existing(path)
    if older is not None:
        differs = [name for name in config if name != "versions" and older.config.get(name) != config[name]]
        if not differs and not older.labels_intact:
            logger.warning("the labels of %s are damaged", path)
            older = restore_labels(older, plan.rows, layers)
    if older is not None:
        same_layers = np.array_equal(older.labels["layer"], layers)  # type: ignore[arg-type]
        if differs or not same_layers:
            what = ", ".join([*differs, *([] if same_layers else ["layers"])])
            raise ValueError(f"{path} holds activations made with another {what}; choose another store or remove it.")
        labels = plan.rows.set_index("order").sort_index()
        if _same_labels(older, labels):
            return older
    known = {}
    if older is not None:
        known = older.finished_keys()
    target = path if older is None else path.with_name(f".{path.name}.rebuilt")
    # What is known goes first, so that at most one batch mixes statements to copy with statements to compute.
    is_new = ~plan.rows["key"].isin(list(known)).to_numpy()
    rows = plan.rows.iloc[np.argsort(is_new, kind="stable")]
    n_known = int((~is_new).sum())
    created = create_store(
        target, layers=layers, d_node=d_node, rows=rows, batch_rows=plan.size, dtype=dtype, config=config
    )
    if older is None:
        return created
    for first in range(0, n_known, plan.size):
        copied = np.arange(first, min(first + plan.size, n_known))
        created.write(copied, older.read_rows(np.array([known[key] for key in rows["key"].iloc[copied]])))
    return _replace(older.path, created)


def _replace(path: Path, created: ActivationStore) -> ActivationStore:
    path.rename(_retired(path))
    created.path.rename(path)
    _finish_replacement(path)
    return ActivationStore(path)


def _finish_replacement(path: Path) -> None:
    """Remove the older store of a replacement, or put it back where the replacement was interrupted half way."""
    retired = _retired(path)
    if path.exists():
        shutil.rmtree(retired, ignore_errors=True)
    elif retired.exists():
        retired.rename(path)


def _retired(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _same_labels(store: ActivationStore, frame: pd.DataFrame) -> bool:
    """Whether a store holds exactly these statements under these labels and in this order."""
    order = np.argsort(np.asarray(store.labels["order"]), kind="stable")
    names = {
        "statement": "id",
        "persona": "persona",
        "topic": "topic",
        "direction": "direction",
        "pair": "pair",
        "key": "key",
    }
    return all(
        np.array_equal(np.asarray(store.labels[name])[order], frame[column].astype(str).to_numpy())
        for name, column in names.items()
    )


def follow(plan: Plan, store: ActivationStore) -> Plan:
    """The plan that a store was laid out with, over the same prompts."""
    order = np.asarray(store.labels["order"])
    place = {int(asked): i for i, asked in enumerate(plan.rows["order"])}
    rows = [place[int(asked)] for asked in order]
    return Plan(plan.rows.iloc[rows].reset_index(drop=True), [plan.prompts[i] for i in rows], store.batch_rows)  # type: ignore[arg-type]
