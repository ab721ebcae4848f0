"""The commands about finished runs: ``personascope list``, ``open``, ``plot``, ``export`` and ``clean``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from utils.cli.options import StudyFolder, read_names

LIST_EXAMPLES = """
**Examples**

`personascope list` — every run in output/

`personascope list /data/studies` — in another folder, and those in it
"""

OPEN_EXAMPLES = """
**Examples**

`personascope open` — the report of the study in output/ that changed last

`personascope open output/llama` — of this study, or of the comparison in this folder

`personascope open output/llama --no-browser` — only say where it is
"""

PLOT_EXAMPLES = """
**Examples**

`personascope plot output/llama` — which figures there are

`personascope plot output/llama tests,node_map --width 6.75 --format pdf` — two of them, at the width of a page

`personascope plot output/llama all --format pdf --out paper/figures` — all, somewhere else
"""

EXPORT_EXAMPLES = """
**Examples**

`personascope export output/llama` — every table and the node sets as CSV

`personascope export output/llama --activations --out elsewhere` — also the activations as .npy, which study --activations reads
"""

CLEAN_EXAMPLES = """
**Examples**

`personascope clean` — show what converted models take, and ask

`personascope clean --yes` — delete them without asking; they are converted again where needed
"""


def list_command(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("output"),
) -> None:
    """List studies and other runs: what each is, whether it is finished, and how large."""
    from utils.experiments.inventory import list_runs

    runs = list_runs(folder)
    if runs.empty:
        typer.echo(f"no run in {folder}; personascope study makes one.")
        return
    shown = runs.assign(
        megabytes=runs["megabytes"].map("{:,.1f}".format), changed=runs["changed"].dt.strftime("%Y-%m-%d %H:%M")
    )
    typer.echo(shown.rename(columns={"megabytes": "MB"}).to_string(index=False))


def open_command(
    folder: Annotated[
        Path | None, typer.Argument(help="Of a study, of a run in it, or of a comparison; the latest study by default.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open it, or only say where it is.")] = True,
) -> None:
    """Open the report of a run in the browser."""
    import webbrowser

    from utils.experiments.inventory import find_report

    report = find_report(folder or _latest_study(Path("output")))
    typer.echo(str(report))
    if browser and not webbrowser.open(report.absolute().as_uri()):
        typer.echo("no browser was found; open the file yourself.", err=True)


def plot(
    folder: StudyFolder,
    figures: Annotated[
        str | None, typer.Argument(help="Comma-separated names, or all; without any, the names are listed.")
    ] = None,
    width: Annotated[float | None, typer.Option(help="Inches; the height follows.")] = None,
    kind: Annotated[Literal["png", "svg", "pdf"], typer.Option("--format", help="Kind of file.")] = "pdf",
    out: Annotated[Path | None, typer.Option(help="Folder; plots in the study's by default.")] = None,
) -> None:
    """Draw figures of a study again, in another size or kind of file."""
    from utils.study.figures import draw_again, list_figures
    from utils.study.results import open_study

    study = open_study(folder)
    if figures is None:
        for entry in list_figures(study):
            typer.echo(f"{entry.name:>20}  {entry.caption}")
        return
    names = None if figures.strip() == "all" else read_names(figures)
    for path in draw_again(study, names, folder=out or folder / "plots", kind=kind, width=width):
        typer.echo(str(path))


def export(
    folder: StudyFolder,
    activations: Annotated[
        bool, typer.Option("--activations", help="Also one .npy a persona and direction, all layers.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; export in the study's by default.")] = None,
) -> None:
    """Write the tables and node sets of a study as CSV, for other programs."""
    from utils.study.export import export_study
    from utils.study.results import open_study

    for path in export_study(open_study(folder), out or folder / "export", activations=activations):
        typer.echo(str(path))


def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete the cache of converted models; runs and reports are left alone."""
    from utils.models.checkpoints import delete_conversions, list_conversions

    held = list_conversions()
    if not held:
        typer.echo("nothing is cached.")
        return
    for path, size in held.items():
        typer.echo(f"{size / 1e6:10,.1f} MB  {path}")
    if yes or typer.confirm(f"Delete {'these' if len(held) > 1 else 'this'}?"):
        delete_conversions(list(held))
        typer.echo(f"{sum(held.values()) / 1e6:,.1f} MB freed; a model is converted again where it is needed.")


def _latest_study(folder: Path) -> Path:
    from utils.experiments.inventory import list_runs

    runs = list_runs(folder)
    studies = runs[(runs["kind"] == "study") & (runs["state"] == "finished")]
    if studies.empty:
        raise FileNotFoundError(
            f"there is no finished study in {folder}; name a folder, or run personascope study first."
        )
    return studies["folder"].iloc[0]
