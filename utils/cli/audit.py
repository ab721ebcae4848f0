"""The command ``personascope audit``."""

from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Seed, read_numbers

# Sentences on the screen.
_MOST_PAIRS = 10

EXAMPLES = """
**Examples**

`personascope audit adv_output_a.txt clean_output_a.txt adv_output_b.txt` — files of the original DeepScan

`personascope audit published/*.txt --n-nodes 4096 --out output/published` — the number of nodes, which they do not say

`personascope audit a.txt b.txt --clean a.txt=nothing.txt --sizes 25,25` — clean runs of another name, records of a run

`personascope audit output/SmolLM2-135M-Instruct` — the personas of a study, also against flipped sides

`personascope audit runs.parquet --study output/llama --thresholds any,0.25,0.5` — what ScanRuns.save wrote, beside a study
"""


def audit(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Run files of the original DeepScan or of this one, and study folders.")
    ] = None,
    study: Annotated[
        list[Path] | None, typer.Option(help="A study folder, as among FILES; can be given several times.")
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(
            help="MIXED=CLEAN, the clean runs of a file; by default adv_output_X has those of clean_output_X."
        ),
    ] = None,
    n_nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes of the model; one more than the largest index by default.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="CLEAN,ANOMALOUS records of a run in text files, e.g. 25,25; from what they state by default."
        ),
    ] = None,
    thresholds: Annotated[
        str, typer.Option(help="Least shares of the runs that choose a node, comma-separated; any: the union.")
    ] = "any,0.1,0.5,0.95",
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and report.html.")] = Path("output/audit"),
    seed: Seed = 0,
) -> None:
    """What do runs show that were made elsewhere? Node sets, their overlaps, precision and recall, each beside its null."""
    from utils.audit.report import write_audit
    from utils.audit.run import audit_runs
    from utils.audit.sources import read_sources

    paths = [*(files or []), *(study or [])]
    if stray := next((path for path in study or [] if not path.is_dir()), None):
        raise ValueError(f"--study {stray} is no folder; give the folder of a finished study.")
    shares = read_numbers("--thresholds", ",".join(_read_share(share) for share in thresholds.split(",")), float)
    sources, notes = read_sources(
        paths,
        n_nodes=n_nodes,
        clean=dict(_read_clean(text) for text in clean or ()),
        sizes=None if sizes is None else _read_sizes(sizes),
    )
    made = audit_runs(sources, shares=shares, notes=notes, rng=seed)
    config = {
        "files": [str(path) for path in paths], "clean": clean, "n_nodes": n_nodes, "sizes": sizes, "thresholds":
        thresholds, "seed": seed,
    }  # fmt: skip
    page = write_audit(made, out, config=config)
    for name, sentences in made.sentences.items():
        typer.echo(f"{name}: {' '.join(sentences)}\n")
    for sentence in made.pairs["sentence"][:_MOST_PAIRS]:
        typer.echo(sentence)
    if len(made.pairs) > _MOST_PAIRS:
        typer.echo(f"… and {len(made.pairs) - _MOST_PAIRS} pairs more, in {out / 'pairs.csv'}")
    typer.echo("")
    for sentence in [*made.findings, *made.notes]:
        typer.echo(sentence)
    typer.echo(f"\nopen {page}")


def _read_share(text: str) -> str:
    return "0" if text.strip() == "any" else text


def _read_clean(text: str) -> tuple[str, str]:
    mixed, sign, clean = text.partition("=")
    if not (mixed and sign and clean):
        raise ValueError(f"--clean {text!r} is not MIXED=CLEAN, such as adv_output_a.txt=clean_output_a.txt.")
    return mixed, clean


def _read_sizes(text: str) -> tuple[int, int]:
    try:
        clean, anomalous = (int(number) for number in text.split(","))
    except ValueError:
        clean = anomalous = 0
    if clean < 1 or anomalous < 1:
        raise ValueError(f"--sizes {text!r} is not CLEAN,ANOMALOUS such as 25,25.")
    return clean, anomalous
