"""The command ``personascope power``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Seed, StudyFolder, read_names, read_numbers

EXAMPLES = """
**Examples**

`personascope power output/SmolLM2-135M-Instruct` — with fewer of the study's own pairs, 20 draws each

`personascope power output/llama --sizes 20,40,60 --draws 100` — other numbers of pairs, smoother

`personascope power output/llama --plant 30,0.25` — a shift of 30 random nodes by a quarter of their standard deviation

`personascope power output/llama --tests separation,scan` — the subset scan, too, which takes minutes
"""


def power(
    folder: StudyFolder,
    sizes: Annotated[
        str | None, typer.Option(help="Pairs a persona, comma-separated; 10, 20, 40, … and all by default.")
    ] = None,
    plant: Annotated[
        str | None, typer.Option(help="NODES,SD: a planted shift in the place of what is there, e.g. 30,0.25.")
    ] = None,
    tests: Annotated[
        str, typer.Option(help="Comma-separated: separation, calibrated, node, scan.")
    ] = "separation,calibrated,node",
    layer: Annotated[int | None, typer.Option(help="Where; the scanned layer by default.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random draws of the pairs at each number.")] = 20,
    permutations: Annotated[int, typer.Option(min=19, help="Relabellings of every test.")] = 299,
    out: Annotated[Path | None, typer.Option(help="Folder; power/ in the study's by default.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Threads; 0 for all cores.")] = 0,
    seed: Seed = 0,
) -> None:
    """How many statements does one need? What each test would have found with fewer pairs, or of a planted effect."""
    from utils.folders import check_folder
    from utils.records import write_frame
    from utils.study.power import describe_power, study_power
    from utils.study.results import open_study
    from utils.viz.localization import plot_power
    from utils.viz.pages import write_figures

    study = open_study(folder)
    planted = None if plant is None else _read_plant(plant)
    target = out or study.folder / "power"
    check_folder(target)
    table = study_power(
        study,
        tests=read_names(tests) or [],  # pyright: ignore[reportArgumentType]
        sizes=None if sizes is None else read_numbers("--sizes", sizes),
        plant=planted,
        layer=layer,
        n_draws=draws,
        n_permutations=permutations,
        rng=seed,
        n_jobs=jobs or os.cpu_count() or 1,
    )
    write_frame(target / "power.parquet", table)
    write_figures([("power", plot_power(table))], target)
    typer.echo(table.to_string(index=False, float_format="{:.2f}".format))
    what = "" if planted is None else f": {planted[0]} nodes shifted by {planted[1]:g} SD"
    for test in table["test"].unique():
        typer.echo(describe_power(table, test=test, paired=all(each["paired"] for each in study.record["sizes"])))
    typer.echo(f"\nlayer {layer or study.best_layer}{what}, adjusted p ≤ 0.05; table and figure are in {target}")


def _read_plant(text: str) -> tuple[int, float]:
    try:
        nodes, sd = text.split(",")
        return int(nodes), float(sd)
    except ValueError:
        raise ValueError(f"--plant {text!r} is not NODES,SD such as 30,0.25.") from None
