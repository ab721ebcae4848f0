"""The command ``personascope patch``."""

from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Device, Dtype, Model, read_names

EXAMPLES = """
**Examples**

`personascope patch` — "weak student" into "person", embedded model, 20 questions

`personascope patch --source "Black person" --base "white person" --layer-step 1` — another pair, every layer

`personascope patch --questions my.csv --model meta-llama/Llama-3.1-8B-Instruct --device cuda --out output/llama-patching`
"""


def patch(
    base: Annotated[str, typer.Option(help="Identity of the runs that are patched.")] = "person",
    source: Annotated[str, typer.Option(help="Identity whose activations are put into them.")] = "weak student",
    model: Model = None,
    questions: Annotated[str | None, typer.Option(help="CSV, JSONL or Parquet file, or cais/mmlu[/SUBJECT].")] = None,
    identities: Annotated[
        str | None, typer.Option(help="CSV of identities and groups for the heads' attention.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Questions to patch, those the identity changes most.")] = 20,
    ask: Annotated[int, typer.Option(min=1, help="Questions to choose them from, spread over the file.")] = 80,
    layer_step: Annotated[int, typer.Option(min=1, help="Exact grid at every n-th layer; 1 for all.")] = 5,
    segments: Annotated[
        str, typer.Option(help="Comma-separated: before, persona, question, last, after, all.")
    ] = "persona,question,last",
    per_group: Annotated[
        int, typer.Option(min=0, help="Identities of each group to ask too, for the table of changed answers.")
    ] = 0,
    groups: Annotated[bool, typer.Option(help="Compare what heads read from groups of identities.")] = True,
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens run together; bounds memory. 0: by device.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; output/<model>-patching by default.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Seed of resamples and permutations.")] = 0,
) -> None:
    """Find which layers and heads carry an identity into the answer to a multiple-choice question."""
    from utils.experiments.patching import draw_patching, flip_summary, list_changes, run_patching
    from utils.models.load import load_model
    from utils.patching.alignment import SEGMENTS, check_segments
    from utils.statements.questions import load_identities, load_questions

    wanted = read_names(segments) or []
    check_segments(wanted)  # pyright: ignore[reportArgumentType]
    asked = load_questions(questions)
    asked = asked.iloc[:: max(1, len(asked) // ask)].head(ask)
    known = load_identities(identities)
    asked_too = known[~known["identity"].isin([base, source])].groupby("group", sort=False).head(per_group)
    lm = load_model(model, device=device, dtype=dtype)
    result = run_patching(
        lm,
        base,
        source,
        asked,
        out or Path("output") / f"{Path(lm.name).name}-patching",
        n_questions=n,
        layers=None if layer_step == 1 else range(1, lm.n_layers + 1, layer_step),
        segments=[name for name in SEGMENTS if name in wanted],
        identities=known if groups else None,
        asked_identities=asked_too if len(asked_too) else None,
        max_tokens=max_tokens or "auto",
        rng=seed,
    )
    figures = draw_patching(result)
    shown = {"answers": flip_summary(result.tables["answers"]), "changes": list_changes(result.tables["changes"])}
    shown |= {name: result.tables[name] for name in ("claims", "groups", "agreement") if name in result.tables}
    for name, table in shown.items():
        typer.echo(f"\n{name}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    typer.echo(f"\ntables and {len(figures)} figures are in {result.folder}")
