"""The figures of a patching run, written beside its tables."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.experiments.patching import PatchingResult
from utils.records import write_beside
from utils.viz.patching import (
    plot_agreement,
    plot_claims,
    plot_group_attention,
    plot_head_map,
    plot_patch_grid,
    plot_terms,
)


def write_figures(result: PatchingResult) -> list[Path]:
    """Draw every figure of a run and write it as PNG; flipped and fallback questions apart."""
    tables = result.tables
    written = []
    for fallback, own in tables["grid"].groupby("fallback"):
        kind = "-fallback" if fallback else ""
        heads = tables["heads"][tables["heads"]["fallback"] == fallback]
        terms = tables["terms"][tables["terms"]["fallback"] == fallback]
        drawn = {
            "grid": plot_patch_grid(own)[0],
            "direct": plot_patch_grid(own[own["segment"] == "last"], value="direct")[0],
        }
        drawn |= {"heads": plot_head_map(heads), "terms": plot_terms(terms)}
        if "claims" in tables:
            claimed = tables["claim_layers"]
            drawn["claims"] = plot_claims(claimed[claimed["fallback"] == fallback])[0]
        drawn |= {"attribution": plot_agreement(own, tables["attribution"])}
        written += [_write(ax.figure, result.folder / f"{name}{kind}.png") for name, ax in drawn.items()]
    if "group_heads" in tables:
        first = tables["group_heads"].drop_duplicates(["layer", "head"]).head(6)
        heads = list(zip(first["layer"], first["head"], strict=True))
        ax = plot_group_attention(tables["attention"], heads).flat[0]
        written.append(_write(ax.figure, result.folder / "group_attention.png"))
    return written


def _write(figure: Figure, path: Path) -> Path:
    with write_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=150)
    plt.close(figure)
    return path
