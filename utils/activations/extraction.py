"""Statements through a model, activations of every layer out: one forward pass a statement, what prompts share run once."""

import errno
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import transformers
import xarray as xr
from tqdm.auto import tqdm

from utils.activations.layout import restore_metadata
from utils.activations.plan import Plan, count_missing, follow, make_plan, prepare_store, prompt_key
from utils.activations.store import label, metadata_intact, open_existing, open_store
from utils.folders import check_room, hold_store
from utils.models.components import check_layers, component_width, hook_component
from utils.models.forward import Prefix, pad_right, repeat_prefix, share_prefix
from utils.models.language_model import LanguageModel
from utils.models.load import free_cached_memory, ran_out_of_memory
from utils.models.prompts import Prompt, encode_prompts, find_template
from utils.options import Component, Position, Role

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What an extraction has still to do: statements, tokens and about how many seconds; bytes of the whole result."""

    n_statements: int
    n_tokens: int
    seconds: float
    bytes: int


def extract(
    lm: LanguageModel,
    statements: pd.DataFrame | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    component: Component = "resid",
    position: Position | Sequence[Position] = "last",
    role: Role = "system",
    batch_size: int | Literal["auto"] = "auto",
    store: str | Path | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """Run statements through a model and keep the activations of the wanted layers at one position or several.

    Parameters
    ----------
    lm
        From :func:`utils.models.load_model`.
    statements
        A frame as :func:`utils.statements.load_statements` returns it, or plain texts.
    layers
        0 (what enters the first block) to L (what leaves the last one, before the final norm); all by default. The
        other components have no layer 0.
    component
        ``resid``: the residual stream. ``attn``, ``mlp``: what a block's attention or MLP adds to it, after post-norms
        and multipliers. ``heads``: the input of the attention's output projection, all heads side by side; ``node``
        then has a coordinate ``head``.
    position
        ``last``: the last token of the prompt, where the model would begin to answer. ``statement``: the last token of
        the statement itself. ``mean``: the mean over the statement's tokens. Several, ``("last", "mean")``, are read in
        one pass; the array then has a dimension ``position``.
    role
        The turn of the chat template that holds the statement, or ``raw``.
    batch_size
        Statements a batch; ``auto`` chooses by length and device, and halves it where memory does not suffice.
    store
        A folder to write to as it goes. Run again after an interruption, it goes on where it stopped; with changed
        statements, only the changed ones are computed.
    progress
        Show a bar.

    Returns
    -------
    DataArray
        (layer, statement, node), or (position, layer, statement, node) for several positions, float32 (float16 for a
        float16 model), with coordinates ``persona``, ``direction``,
        ``topic``, ``pair`` and ``text`` along ``statement``, and the configuration in ``attrs``. With a store, it is
        read from disk only where used.

    Raises
    ------
    ValueError
        Layers out of range, a statement longer than the context window, a store made with another configuration,
        or a non-finite activation, with the statement and layer.
    """
    check_positions(position)
    frame = _as_frame(statements)
    chosen = check_layers(lm, component, layers)
    template = find_template(lm.tokenizer, role)
    prompts = encode_prompts(lm.tokenizer, frame["statement"].tolist(), template)
    _check_lengths(lm, frame, prompts)
    plan = make_plan(frame, prompts, batch_size, lm.device)
    config = {
        "model": lm.name,
        "revision": lm.revision or "",
        "fingerprint": lm.fingerprint,
        "model_dtype": str(lm.dtype).removeprefix("torch."),
        "template": [template.before, template.after],
        "role": template.role,
        **({"thinking": template.thinking} if template.thinking else {}),
        "position": position if isinstance(position, str) else list(position),
        "component": component,
        **({"n_heads": lm.n_heads} if component == "heads" else {}),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    width = component_width(lm, component, chosen)
    dtype = "float16" if lm.dtype == torch.float16 else "float32"
    if store is None:
        several = () if isinstance(position, str) else (len(position),)
        values = np.empty((*several, len(chosen), len(frame), width), dtype)
        order = plan.rows["order"].to_numpy()

        def keep(rows: np.ndarray, batch: np.ndarray) -> None:
            values[..., order[rows], :] = batch

        _run(lm, plan, chosen, component, position, plan.batches(), keep, progress)
        return label(_as_array(values, frame, chosen, config))
    store = Path(store)
    with hold_store(store):
        row = store_bytes(len(chosen), 1, width, n_positions=len(np.atleast_1d(position)), dtype=dtype)
        restore_metadata(store)
        check_room(store.parent, row * count_missing(store, plan))
        opened = prepare_store(store, plan, chosen, width, dtype, config)
        # A resumed run follows the plan in the store, so that its batches are those of an uninterrupted run.
        planned = follow(plan, opened)
        _run(lm, planned, chosen, component, position, opened.missing(), opened.write, progress)
    return open_store(store)


def store_bytes(n_layers: int, n_statements: int, width: int, *, n_positions: int = 1, dtype: str = "float32") -> int:
    """At most how many bytes the activations of a store take on disk; they hardly get smaller by compression."""
    return n_positions * n_layers * n_statements * width * np.dtype(dtype).itemsize


def plan_work(
    lm: LanguageModel,
    statements: pd.DataFrame,
    *,
    layers: Sequence[int] | None = None,
    position: Position | Sequence[Position] = "last",
    role: Role = "system",
    store: str | Path | None = None,
) -> Work:
    """Estimate what :func:`extract` with the same arguments has still to do, from one small timed batch."""
    frame = _as_frame(statements)
    prompts = encode_prompts(lm.tokenizer, frame["statement"].tolist(), find_template(lm.tokenizer, role))
    chosen = check_layers(lm, "resid", layers)
    _check_lengths(lm, frame, prompts)
    older = open_existing(Path(store)) if store is not None and metadata_intact(Path(store)) else None
    done = set(older.finished_keys()) if older is not None else set()
    missing = [prompt for prompt in prompts if prompt_key(prompt) not in done]
    dtype = "float16" if lm.dtype == torch.float16 else "float32"
    n_positions = len(np.atleast_1d(position))
    n_bytes = store_bytes(len(chosen), len(frame), lm.d_model, n_positions=n_positions, dtype=dtype)
    if not missing:
        return Work(0, 0, 0.0, n_bytes)
    sample = sorted(missing, key=lambda prompt: len(prompt.ids))[:: max(1, len(missing) // 16)][:16]
    run_batch(lm, sample, chosen)
    started = time.perf_counter()
    run_batch(lm, sample, chosen)
    rate = (time.perf_counter() - started) / sum(len(prompt.ids) for prompt in sample)
    n_tokens = sum(len(prompt.ids) for prompt in missing)
    return Work(len(missing), n_tokens, rate * n_tokens, n_bytes)


def _run(
    lm: LanguageModel,
    plan: Plan,
    layers: list[int],
    component: Component,
    position: Position | Sequence[Position],
    batches: list[np.ndarray],
    keep: Callable[[np.ndarray, np.ndarray], None],
    progress: bool,
) -> None:
    """Run batches of the plan's rows and hand each to ``keep(rows, ([position,] layer, row, node))``."""
    total = sum(len(rows) for rows in batches)
    prefix = share_prefix(lm, plan.prompts) if total else Prefix()
    with tqdm(total=total, desc="activations", unit="statement", disable=not progress or total == 0) as bar:
        for i, rows in enumerate(batches):
            prompts = [plan.prompts[row] for row in rows]
            values = run_batch(lm, prompts, layers, component=component, position=position, prefix=prefix)
            if not np.isfinite(values).all():
                layer, row, _ = np.argwhere(~np.isfinite(values))[0][-3:]
                name = plan.rows["id"].iloc[rows[row]]
                raise ValueError(
                    f"the activation of statement {name!r} at layer {layers[layer]} is not finite; "
                    "try dtype float32 or bfloat16."
                )
            try:
                keep(rows, values)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                done = sum(len(rows) for rows in batches[:i])
                raise OSError(
                    f"the disk is full after {done} of {total} statements; free some space and run again to go on from there."
                ) from error
            bar.update(len(rows))


def _as_frame(statements: pd.DataFrame | Sequence[str]) -> pd.DataFrame:
    if not isinstance(statements, pd.DataFrame):
        texts = [statements] if isinstance(statements, str) else list(statements)
        statements = pd.DataFrame({"statement": texts, "id": [f"statement-{i:05d}" for i in range(len(texts))]})
    if "statement" not in statements or not len(statements):
        raise ValueError("there are no statements to run: the frame is empty or has no column 'statement'.")
    frame = statements.reset_index(drop=True)
    wrong = [not isinstance(text, str) or not text.strip() for text in frame["statement"]]
    if any(wrong):
        place = wrong.index(True)
        raise ValueError(
            f"statement number {place + 1} is {frame['statement'].iloc[place]!r}; expected a text that is not empty."
        )
    if "id" not in frame:
        frame["id"] = [f"statement-{i:05d}" for i in range(len(frame))]
    labels = ("persona", "topic", "direction", "pair")
    return frame.assign(**{name: frame[name].fillna("") if name in frame else "" for name in labels})


def _as_array(values: np.ndarray, frame: pd.DataFrame, layers: list[int], config: dict) -> xr.DataArray:
    names = {"persona": "persona", "topic": "topic", "direction": "direction", "pair": "pair", "text": "statement"}
    coords = {name: ("statement", frame[column].to_numpy(dtype=str)) for name, column in names.items()}
    coords |= {"layer": layers, "statement": frame["id"].to_numpy(dtype=str)}
    dims = ("layer", "statement", "node")
    if values.ndim == 4:
        coords, dims = coords | {"position": config["position"]}, ("position", *dims)
    return xr.DataArray(values, coords, dims, name="activations", attrs=config)


def check_positions(position: Position | Sequence[Position]) -> None:
    """Refuse unknown positions, none, and the same one twice."""
    names = [position] if isinstance(position, str) else list(position)
    if not names or len(set(names)) < len(names) or set(names) - {"last", "statement", "mean"}:
        raise ValueError(f"unknown position {position!r}; expected last, statement or mean, or several of these.")


def _check_lengths(lm: LanguageModel, frame: pd.DataFrame, prompts: list[Prompt]) -> None:
    for name, prompt in zip(frame["id"], prompts, strict=True):
        if lm.max_tokens is not None and len(prompt.ids) > lm.max_tokens:
            raise ValueError(
                f"statement {name!r} takes {len(prompt.ids)} tokens, the model's context window has {lm.max_tokens}; shorten it."
            )


def run_batch(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    layers: list[int],
    *,
    component: Component = "resid",
    position: Position | Sequence[Position] = "last",
    prefix: Prefix | None = None,
) -> np.ndarray:
    """Activations of a batch, ([position,] layer, prompt, node); the batch is halved where memory does not suffice."""
    prefix = prefix or Prefix()
    options = {"component": component, "position": position, "prefix": prefix}
    sides = lm.split_sides([len(prompt.ids) for prompt in prompts])
    if len(sides) > 1:
        parts = [run_batch(lm, [prompts[row] for row in rows], layers, **options) for rows in sides]
        return np.concatenate(parts, axis=-2)[..., np.argsort(np.concatenate(sides)), :]
    try:
        return _run_once(lm, prompts, layers, component, position, prefix)
    except RuntimeError as error:
        if len(prompts) == 1 or not ran_out_of_memory(error):
            raise
    # Outside the handler, so that the failed pass's tensors are gone by now.
    free_cached_memory()
    half = len(prompts) // 2
    logger.warning("out of memory with %d statements a batch; going on with %d", len(prompts), half)
    return np.concatenate(
        [run_batch(lm, part, layers, **options) for part in (prompts[:half], prompts[half:])], axis=-2
    )


def _run_once(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    layers: list[int],
    component: Component,
    position: Position | Sequence[Position],
    prefix: Prefix,
) -> np.ndarray:
    skipped = len(prefix.ids)
    ids, mask = pad_right([prompt.ids[skipped:] for prompt in prompts], lm.device)
    names: list[Position] = [position] if isinstance(position, str) else list(position)
    weights = {name: _token_weights(prompts, ids.shape[1], name, skipped) for name in names}  # (B, T) each
    rows = torch.arange(len(prompts))
    caught: dict[tuple[Position, int], torch.Tensor] = {}

    def catch(layer: int, value: torch.Tensor) -> None:  # (B, T, d) or (B, T, H, d)
        for name in names:
            own = weights[name]
            if name == "mean":
                picked = torch.einsum("bt,bt...->b...", own.to(value.device), value.float())
            else:
                picked = value[rows.to(value.device), own.argmax(dim=1).to(value.device)]
            caught[name, layer] = picked.flatten(1).to(torch.float16 if value.dtype == torch.float16 else torch.float32)

    with torch.inference_mode(), hook_component(lm, component, layers, catch):
        lm.decoder(input_ids=ids, **repeat_prefix(prefix, mask))
        stacks = [torch.stack([caught[name, layer].to("cpu") for layer in layers]).numpy() for name in names]
    return stacks[0] if isinstance(position, str) else np.stack(stacks)


def _token_weights(prompts: Sequence[Prompt], width: int, position: Position, skipped: int) -> torch.Tensor:
    """How much each token counts: one token, or an equal share of the statement's, rows summing to 1."""
    weights = torch.zeros(len(prompts), width)
    for row, prompt in enumerate(prompts):
        if position == "last":
            weights[row, len(prompt.ids) - 1 - skipped] = 1
        elif position == "statement":
            weights[row, prompt.stop - 1 - skipped] = 1
        else:
            weights[row, prompt.start - skipped : prompt.stop - skipped] = 1 / (prompt.stop - prompt.start)
    return weights
