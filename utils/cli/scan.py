"""The command ``personascope scan``: the tests of two sets of activations that were made elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from utils.cli.options import Seed
from utils.options import ScanName, ScoreName, Tail

SCAN_EXAMPLES = """
**Examples**

`personascope scan negative.npy positive.npy --pairs` — row i of both is a pair

`personascope scan clean.npy jailbreaks.npy --score hc --permutations 999` — without pairs, finer p-values

`personascope scan negative.npy positive.npy --pairs --layer 17 --out output/scan` — of arrays with layers; keep runs and nodes
"""


def scan(
    h0: Annotated[
        Path, typer.Argument(help=".npy of (statements, nodes) or (layers, statements, nodes): what is usual.")
    ],
    h1: Annotated[Path, typer.Argument(help=".npy of the same nodes: what is compared with it.")],
    pairs: Annotated[bool, typer.Option("--pairs", help="Row i of both files is a pair.")] = False,
    layer: Annotated[
        int | None, typer.Option(min=1, help="Which layer, from 1, where the arrays have several.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Scan runs.")] = 40,
    permutations: Annotated[
        int, typer.Option(min=19, help="Permutations of the scan; the smallest p-value is 1/(1 + this).")
    ] = 299,
    flips: Annotated[int, typer.Option(min=19, help="Relabellings of the other tests.")] = 999,
    clean: Annotated[int | None, typer.Option(min=1, help="Clean records a run; 15, or fewer to fit.")] = None,
    anomalous: Annotated[int | None, typer.Option(min=1, help="Anomalous records a run; 15, or fewer to fit.")] = None,
    score: Annotated[ScoreName, typer.Option(help="Berk–Jones, Higher Criticism or Kolmogorov–Smirnov.")] = "bj",
    tail: Annotated[
        Tail, typer.Option(help="Tail of the p-values; auto: two-sided with pairs, signed without.")
    ] = "auto",
    kind: Annotated[
        ScanName, typer.Option("--scan", help="Subset of records and nodes, or nodes of each record.")
    ] = "group",
    threshold: Annotated[float, typer.Option(help="Share of runs from which a node is in the node set.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="Folder for runs.parquet and nodes.csv.")] = None,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Threads of the scan; 0 for all cores.")] = 0,
) -> None:
    """Test whether two sets of activations differ, and in which nodes; no model is needed."""
    import os

    import numpy as np

    from deepscan import detect
    from utils.activations.arrays import read_array
    from utils.folders import check_folder
    from utils.nodes.sets import node_sets
    from utils.nodes.significance import compare_sides
    from utils.records import write_beside
    from utils.statements.contrasts import Contrast
    from utils.study.settings import fit_records

    low, high = (_choose_layer(read_array(path), layer, path) for path in (h0, h1))
    if low.shape[1] != high.shape[1]:
        raise ValueError(f"{h0} has {low.shape[1]} nodes and {h1} has {high.shape[1]}; the two need the same.")
    if pairs and len(low) != len(high):
        raise ValueError(f"{h0} has {len(low)} rows and {h1} has {len(high)}; with --pairs row i of both is a pair.")
    if not 0 < threshold <= 1:
        raise ValueError(f"--threshold {threshold} is not in (0, 1]; it is a share of the runs.")
    if out is not None:
        check_folder(out)
    n_jobs = jobs or os.cpu_count() or 1
    fitted = fit_records(min(len(low), len(high)))
    found = detect(
        low,
        high,
        pairs=np.arange(len(low)) if pairs else None,
        n_clean=clean or fitted,
        n_anomalous=anomalous or fitted,
        n_runs=runs,
        n_permutations=permutations,
        tail=tail,
        score=score,
        scan=kind,
        rng=seed,
        n_jobs=n_jobs,
        progress=True,
    )
    contrast = Contrast(h1.stem, "", np.arange(len(low)), np.arange(len(low), len(low) + len(high)), pairs)
    tested, nodes = compare_sides(
        np.concatenate([low, high]), [contrast], n_permutations=flips, rng=seed, n_jobs=n_jobs, progress=False
    )
    row = tested.iloc[0]
    held = node_sets({h1.stem: found}, threshold=threshold)[h1.stem]
    chosen = {node for node, _ in held}
    nodes = nodes.drop(columns="persona").assign(
        frequency=found.node_frequency()[nodes["node"]], in_set=nodes["node"].isin(chosen)
    )
    mixed = found.table[found.table["kind"] == "mixed"]
    rows = f"{len(low)} pairs" if pairs else f"{len(low)} and {len(high)} records"
    typer.echo(f"{rows}, {low.shape[1]} nodes; H1 is {h1}")
    accuracy = f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f} to {row['accuracy_high']:.3f})"
    typer.echo(
        f"separation test  p = {row['separation_p']:.4f}; leave-one-out {'pair ' if pairs else ''}accuracy {accuracy}"
    )
    typer.echo(f"calibrated scan  p = {row['calibrated_p']:.4f}; {row['n_calibrated']} nodes")
    means = ", ".join(f"{name} {mixed[name].mean():.3f}" for name in ("precision", "recall"))
    typer.echo(f"subset scan      p = {found.p_value:.4f}; {means}; {len(held)} nodes in {threshold:.0%} of the runs")
    typer.echo(f"node test        {row['n_family']} nodes family-wise, {row['n_bh']} by Benjamini–Hochberg")
    if not pairs:
        typer.echo("Matched pairs, where there are any, make all of these tests far stronger: --pairs.")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.save(out / "runs.parquet")
        with write_beside(out / "nodes.csv") as beside:
            nodes.to_csv(beside, index=False)
        typer.echo(f"\n{out / 'runs.parquet'}\n{out / 'nodes.csv'}")


def _choose_layer(values: Any, layer: int | None, path: Path) -> Any:
    """(statements, nodes) of one layer."""
    n_layers = len(values)
    if layer is None and n_layers > 1:
        raise ValueError(f"{path} has {n_layers} layers; say which with --layer, 1 to {n_layers}.")
    if layer is not None and layer > n_layers:
        raise ValueError(f"{path} has layers 1 to {n_layers}, and no layer {layer}.")
    return values[(layer or 1) - 1]
