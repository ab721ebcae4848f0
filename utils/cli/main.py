"""The command ``personascope``."""

import contextlib
import errno
import importlib.metadata
import io
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated, TextIO, cast, get_args

import typer

from utils.cli.audit import EXAMPLES as AUDIT_EXAMPLES
from utils.cli.audit import audit
from utils.cli.causal import EXAMPLES as CAUSAL_EXAMPLES
from utils.cli.causal import causal
from utils.cli.check import EXAMPLES as CHECK_EXAMPLES
from utils.cli.check import check
from utils.cli.mask import mask_app
from utils.cli.options import (
    Device,
    Dtype,
    Model,
    Seed,
    StatementRole,
    Statements,
    read_batch_size,
    read_layers,
    read_names,
)
from utils.cli.patch import EXAMPLES as PATCH_EXAMPLES
from utils.cli.patch import patch
from utils.cli.power import EXAMPLES as POWER_EXAMPLES
from utils.cli.power import power
from utils.cli.progress import LogStream
from utils.cli.runs import (
    CLEAN_EXAMPLES,
    EXPORT_EXAMPLES,
    LIST_EXAMPLES,
    OPEN_EXAMPLES,
    PLOT_EXAMPLES,
    clean,
    export,
    list_command,
    open_command,
    plot,
)
from utils.cli.scan import SCAN_EXAMPLES
from utils.cli.scan import scan as scan_command
from utils.cli.vectors import GENERATE_EXAMPLES, VECTORS_EXAMPLES, generate, vectors
from utils.options import Center, ContrastName, Position, ProtocolName, ScanName, ScoreName, Tail

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Where and how personas live inside decoder-only language models.",
)

app.add_typer(mask_app, name="mask")

_INTERRUPTED = 130

EXAMPLES = """
**Examples**

`personascope study` — fourteen personas in the embedded model; report in output/

`personascope study --topics politics --permutations 999` — one topic, finer p-values

`personascope study --model meta-llama/Llama-3.1-8B-Instruct --device cuda --out output/llama` — your model

`personascope study --statements my.csv --contrast one-vs-rest` — your statements, persona against persona

`personascope study --activations arrays/` — start from .npy arrays, one a persona and direction

`personascope study --score hc --tail left` — another scan; activations are not computed again

`personascope compare output/one output/other --out output/both` — studies side by side
"""


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"personascope {importlib.metadata.version('personascope')}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    # Taken here so that it is in the help; main reads it from the command line, as errors end there.
    del debug, version


@app.command(epilog=EXAMPLES)
def study(
    model: Model = None,
    statements: Statements = None,
    personas: Annotated[str | None, typer.Option(help="Comma-separated names; all by default.")] = None,
    topics: Annotated[str | None, typer.Option(help="Comma-separated topics; all by default.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Least label_confidence of a statement, where the file has it.")
    ] = None,
    per_side: Annotated[
        int | None, typer.Option(min=1, help="Statements of each side of a persona, whole pairs, drawn by the seed.")
    ] = None,
    activations: Annotated[
        str | None, typer.Option(help="Folder of <persona>_positive.npy and _negative.npy to start from.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to extract, e.g. 1-30 or 0,6,12; all by default.")] = None,
    position: Annotated[
        str,
        typer.Option(help="Tokens to read, comma-separated: last, statement, mean. Scans and nodes are of the first."),
    ] = "last,mean",
    role: StatementRole = "system",
    out: Annotated[Path | None, typer.Option(help="Study folder; output/<model> by default.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: Annotated[str, typer.Option(help="Statements a batch, or auto.")] = "auto",
    seed: Seed = 0,
    runs: Annotated[int, typer.Option(min=1, help="Scan runs a persona.")] = 40,
    permutations: Annotated[
        int, typer.Option(min=19, help="Permutations; the smallest p-value is 1/(1 + this).")
    ] = 299,
    flips: Annotated[int, typer.Option(min=19, help="Relabellings of every test but the scan's.")] = 999,
    clean: Annotated[int | None, typer.Option(min=1, help="Clean records a run; 15, or fewer to fit.")] = None,
    anomalous: Annotated[int | None, typer.Option(min=1, help="Anomalous records a run; 15, or fewer to fit.")] = None,
    score: Annotated[ScoreName, typer.Option(help="Berk–Jones, Higher Criticism or Kolmogorov–Smirnov.")] = "bj",
    tail: Annotated[
        Tail, typer.Option(help="Tail of the p-values; auto: two-sided with pairs, signed without.")
    ] = "auto",
    center: Annotated[Center, typer.Option(help="Scan pair-centred activations (auto, pairs) or raw ones.")] = "auto",
    protocol: Annotated[
        ProtocolName, typer.Option(help="paper: show the scan as Cintas et al. ran it, too (descriptive).")
    ] = "pairs",
    power_draws: Annotated[
        int, typer.Option(min=0, help="Draws at each number of pairs for the power of the tests; 0 leaves it out.")
    ] = 5,
    contrast: Annotated[
        ContrastName, typer.Option(help="H0: own negative statements, or the other personas of the topic.")
    ] = "direction",
    scan: Annotated[ScanName, typer.Option(help="Subset of records and nodes, or nodes of each record.")] = "group",
    scan_layers: Annotated[str | None, typer.Option(help="Layers to scan besides the best, e.g. 6,12.")] = None,
    probe_flips: Annotated[int, typer.Option(min=0, help="Label flips of the probe, a slow baseline; 0 or 20 up.")] = 0,
    stability: Annotated[
        int, typer.Option(min=0, help="Flips for the node sets' stability over halves of the pairs; 0 leaves it out.")
    ] = 0,
    threshold: Annotated[float, typer.Option(help="Share of runs from which a node is in the node set.")] = 0.5,
    jobs: Annotated[int, typer.Option(min=0, help="Threads of the scan; 0 for all cores.")] = 0,
) -> None:
    """Find where personas are encoded: layers, nodes, and how personas overlap."""
    from utils.study.run import run_study
    from utils.study.settings import StudyConfig
    from utils.study.summary import result_table

    config = StudyConfig(
        model=model,
        device=device,
        dtype=dtype,
        statements=statements,
        personas=read_names(personas),
        topics=read_names(topics),
        min_confidence=min_confidence,
        per_side=per_side,
        activations=activations,
        layers=read_layers("--layers", layers),
        position=_positions(position),
        role=role,
        batch_size=read_batch_size(batch_size),
        contrast=contrast,
        scan=scan,
        scan_layers=read_layers("--scan-layers", scan_layers) or [],
        score=score,
        tail=tail,
        center=center,
        flips=flips,
        protocol=protocol,
        power_draws=power_draws,
        runs=runs,
        permutations=permutations,
        n_clean=clean,
        n_anomalous=anomalous,
        probe_flips=probe_flips,
        stability=stability,
        threshold=threshold,
        seed=seed,
        jobs=jobs,
    )
    result = run_study(out or _default_folder(config), config)
    typer.echo(result_table(result).to_string(index=False, float_format="{:.3f}".format))
    typer.echo(f"\nlayer {result.best_layer} was scanned; open {result.folder / 'report.html'}")


def _positions(text: str) -> Position | tuple[Position, ...]:
    """One position, or several."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or set(names) - set(get_args(Position)) or len(set(names)) < len(names):
        raise typer.BadParameter(f"{text!r} is not one or more of last, statement, mean", param_hint="--position")
    return cast(Position, names[0]) if len(names) == 1 else cast(tuple[Position, ...], tuple(names))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more study folders.")],
    out: Annotated[Path | None, typer.Option(help="Folder for tables, figures and comparison.html.")] = None,
) -> None:
    """Put several studies side by side: models, or statements."""
    from utils.comparison.report import run_compare
    from utils.comparison.tables import comparison_table

    typer.echo(comparison_table(run_compare(folders, out)))
    if out is not None:
        typer.echo(f"\nopen {out / 'comparison.html'}")


@app.command()
def info(
    model: Model = None,
    device: Device = "cpu",
) -> None:
    """Show what was found of a model: layers, parts of a block, heads, template."""
    from utils.models.load import load_model
    from utils.models.prompts import find_template

    lm = load_model(model, device=device)
    template, parts = find_template(lm.tokenizer), lm.anatomy
    added = [
        f"{part.path}{f' x {part.scale:g}' if part.scale != 1 else ''}"
        if part
        else "not as such (the sum is normalised)"
        for part in (parts.attn_added, parts.mlp_added)
    ]
    for name, value in {
        "model": lm.name,
        "class": type(lm.model).__name__,
        "layers": f"0 to {lm.n_layers}",
        "d_model": lm.d_model,
        "heads": f"{lm.n_heads} of width {lm.head_dim}, {lm.n_kv_heads} key-value heads",
        "block": f"{type(lm.blocks[0]).__name__}, attention and MLP {'in parallel' if parts.parallel else 'in turn'}",
        "attention": f"{parts.attention}, heads enter {parts.projection}",
        "mlp": parts.mlp or "in the block itself",
        "attn adds": added[0],
        "mlp adds": added[1],
        "final norm": parts.final_norm or "none",
        "embedding, head": f"{lm.embedding.num_embeddings} tokens, {type(lm.head).__name__}",
        "dtype, device": f"{lm.dtype}, {lm.device}".replace("torch.", ""),
        "context window": f"{lm.max_tokens} tokens",
        "statement role": template.role,
        "prompt": repr(template.before + "STATEMENT" + template.after),
        "fingerprint": lm.fingerprint,
    }.items():
        typer.echo(f"{name:>15}  {value}")


app.command("scan", epilog=SCAN_EXAMPLES)(scan_command)
app.command(epilog=POWER_EXAMPLES)(power)
app.command(epilog=CHECK_EXAMPLES)(check)
app.command(epilog=AUDIT_EXAMPLES)(audit)
app.command(epilog=PATCH_EXAMPLES)(patch)
app.command(epilog=CAUSAL_EXAMPLES)(causal)
app.command(epilog=VECTORS_EXAMPLES)(vectors)
app.command(epilog=GENERATE_EXAMPLES)(generate)
app.command("list", epilog=LIST_EXAMPLES)(list_command)
app.command("open", epilog=OPEN_EXAMPLES)(open_command)
app.command(epilog=PLOT_EXAMPLES)(plot)
app.command(epilog=EXPORT_EXAMPLES)(export)
app.command(epilog=CLEAN_EXAMPLES)(clean)


def main() -> None:
    """Run the command; bad input ends in one sentence and exit status 2, Ctrl-C in 130."""
    stream = sys.stderr if sys.stderr.isatty() else cast(TextIO, LogStream(cast(io.TextIOBase, sys.stderr)))
    with contextlib.redirect_stderr(stream):
        _run()


def _run() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "numba", "matplotlib", "fontTools", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as stop:
        # The command framework turns Ctrl-C into an exit of its own.
        if isinstance(stop, KeyboardInterrupt) or stop.code == _INTERRUPTED:
            typer.echo(
                "personascope: interrupted; a study or a causal check goes on from here when the same command is run again.",
                err=True,
            )
            sys.exit(_INTERRUPTED)
        raise
    except (ValueError, OSError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        typer.echo(f"personascope: {_explain(error)}", err=True)
        sys.exit(2)


def _explain(error: Exception) -> str:
    """An error in one sentence; those of the system name a number and a file, and not what to do."""
    text = " ".join(str(error).split()) or f"{type(error).__name__} without a message."
    if isinstance(error, OSError) and error.errno is not None and str(error).startswith("[Errno"):
        place = error.filename or "the disk"
        what = f"cannot read or write {place}: {(error.strerror or text).partition('. Detail')[0]}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return f"{what}; {'free some space' if full else 'see to that'} and run again to go on from there."
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _default_folder(config) -> Path:
    """``output/<model>``, with what the activations were made from where that is not the default."""
    from utils.models.checkpoints import DEFAULT_MODEL
    from utils.study.settings import positions_of

    base = Path(config.activations or config.model or DEFAULT_MODEL)
    name = base.stem if base.suffix == ".gguf" else base.name
    extra = [Path(config.statements).stem] if config.statements else []
    positions = "-".join(positions_of(config))
    extra += [
        value
        for value in (positions, config.role, config.contrast)
        if value not in ("last-mean", "system", "direction")
    ]
    return Path("output") / "-".join([name, *extra])
