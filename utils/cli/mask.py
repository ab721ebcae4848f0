"""The commands ``personascope mask``: all of it in a folder, or step by step, and answers side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utils.cli.options import Device, Dtype, Model, Seed, StatementRole, Statements, read_layers, read_numbers
from utils.folders import check_folder, check_target
from utils.options import MaskGroup, MaskScope, MaskScore, Side

if TYPE_CHECKING:
    import pandas

mask_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Personality subnetworks: the weights that a persona's statements lean on. Give model, dtype, pairs and seed alike "
    "for all steps.",
)

Pairs = Annotated[int, typer.Option(min=1, help="Pairs of a persona to calibrate on; the same for all steps.")]


@mask_app.command()
def run(
    persona: Annotated[str, typer.Argument(help="Name of the persona in the statements.")],
    unrelated: Annotated[
        str | None, typer.Option(help="Another persona, whose mask is measured for comparison.")
    ] = None,
    score: Annotated[MaskScore, typer.Option(help="What makes a weight count.")] = "relu",
    sparsities: Annotated[
        str, typer.Option(help="To choose from on the select pairs, comma-separated.")
    ] = "0.1,0.2,0.4",
    shuffles: Annotated[int, typer.Option(min=0, help="Masks from sides of which half are swapped.")] = 3,
    pairs: Pairs = 64,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions for the accuracy, as many of each right letter.")
    ] = 16,
    out: Annotated[Path | None, typer.Option(help="Folder; output/<model>-subnetworks/PERSONA by default.")] = None,
    model: Model = None,
    statements: Statements = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    role: StatementRole = "system",
    seed: Seed = 0,
) -> None:
    """All steps in a folder: calibrate, choose the sparsity, build masks and controls, and measure them."""
    from utils.experiments.subnetworks import SubnetworksConfig, draw_subnetworks, run_subnetworks
    from utils.models.load import load_model
    from utils.statements.load import load_statements

    wanted = read_numbers("--sparsities", sparsities, float)
    if not wanted:
        raise ValueError("--sparsities is empty; give at least one, such as 0.2.")
    config = SubnetworksConfig(
        persona=persona,
        unrelated=unrelated,
        score=score,
        scores=(score,),
        sparsities=wanted,
        n_pairs=pairs,
        n_shuffles=shuffles,
        n_questions=questions,
        role=role,
        seed=seed,
    )
    frame = load_statements(statements, [persona, *([unrelated] if unrelated else [])])
    lm = load_model(model, device=device, dtype=dtype)
    result = run_subnetworks(lm, frame, config, out or Path("output") / f"{Path(lm.name).name}-subnetworks" / persona)
    figures = draw_subnetworks(result)
    typer.echo(f"sparsity {result.record['sparsity']:g}\n")
    _show(result.summary)
    typer.echo(f"\ntables, masks and {len(figures)} figures are in {result.folder}")


@mask_app.command()
def calibrate(
    persona: Annotated[str, typer.Argument(help="Name of the persona in the statements.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    other: Annotated[
        str | None, typer.Option(help="The persona on the negative side; by default the persona's own negatives.")
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(help="Swap the sides of half of the pairs, drawn with this seed: a null to compare with."),
    ] = None,
    model: Model = None,
    statements: Statements = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    role: StatementRole = "system",
    pairs: Pairs = 50,
    seed: Seed = 0,
) -> None:
    """Watch what a persona's statements put into every linear layer."""
    from utils.models.load import load_model
    from utils.statements.load import load_statements
    from utils.statements.names import find_names
    from utils.statements.splits import draw_parts, shuffle_sides
    from utils.subnetworks.build import calibrate as watch
    from utils.subnetworks.linears import coverage

    if other and shuffle is not None:
        raise ValueError("--shuffle swaps the sides of one persona's pairs; give it without --other.")
    check_target(out)
    frame = load_statements(statements, [persona, *([other] if other else [])])
    (persona,) = find_names("persona", [persona], frame["persona"])
    if other:
        (other,) = find_names("persona", [other], frame["persona"])
    if other == persona:
        raise ValueError(f"--other is {persona!r} itself; expected another persona.")
    frame = frame[draw_parts(frame, n_pairs=pairs, rng=seed) == "calibrate"]
    own = frame[frame["persona"] == persona]
    positive = own[own["direction"] == "positive"]
    negative = (
        frame[(frame["persona"] == other) & (frame["direction"] == "positive")]
        if other
        else own[own["direction"] == "negative"]
    )
    if shuffle is not None:
        positive, negative = shuffle_sides(own, rng=shuffle)
    lm = load_model(model, device=device, dtype=dtype)
    typer.echo(coverage(lm).to_string(index=False, formatters={"weights": "{:,}".format}))
    watch(lm, positive, negative, role=role).save(out)
    typer.echo(f"\n{len(positive)} + {len(negative)} statements: {out}")


@mask_app.command()
def build(
    calibration: Annotated[Path, typer.Argument(help="What `mask calibrate` wrote.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    sparsity: Annotated[float, typer.Option(help="Share of the weights to cut, from 0 to below 1.")] = 0.3,
    score: Annotated[MaskScore, typer.Option(help="What makes a weight count.")] = "softplus",
    side: Annotated[Side, typer.Option(help="Whose subnetwork.")] = "positive",
    group: Annotated[MaskGroup, typer.Option(help="Among which weights the best are kept.")] = "row",
    scope: Annotated[MaskScope, typer.Option(help="Which linear layers; others stay whole.")] = "all",
    layers: Annotated[str | None, typer.Option(help="Blocks, such as 3,4,9; all by default.")] = None,
    tau: Annotated[float, typer.Option(help="Temperature of softplus.")] = 1.0,
    length_normalised: Annotated[
        bool, typer.Option(help="Divide a statement's norm by √tokens before sides are compared.")
    ] = True,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Make the mask of one side from a calibration."""
    from utils.models.load import load_model
    from utils.subnetworks.build import Calibration, contrastive_masks, persona_mask
    from utils.subnetworks.selection import check_sparsity

    check_sparsity(sparsity)
    check_target(out)
    read = Calibration.load(calibration)
    lm = load_model(model, device=device, dtype=dtype)
    options = {
        "sparsity": sparsity,
        "group": group,
        "scope": scope,
        "layers": read_layers("--layers", layers),
        "rng": seed,
    }
    options |= {"tau": tau, "length_normalised": length_normalised}
    if score == "disjoint":
        mask = contrastive_masks(lm, read, score=score, **options)[side == "negative"]
    else:
        mask = persona_mask(lm, read, score=score, side=side, **options)
    mask.save(out)
    table = mask.table()
    typer.echo(f"{table['kept'].sum():,} of {table['weights'].sum():,} weights in {len(table)} matrices kept: {out}")


@mask_app.command()
def evaluate(
    persona: Annotated[str, typer.Argument(help="Name of the persona in the statements.")],
    masks: Annotated[list[Path], typer.Argument(help="What `mask build` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for measured.parquet and summary.parquet.")] = None,
    model: Model = None,
    statements: Statements = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    questions: Annotated[
        int, typer.Option(min=1, help="Questions for the accuracy, as many of each right letter.")
    ] = 60,
    pairs: Pairs = 50,
    seed: Seed = 0,
) -> None:
    """Measure masks on held-out pairs beside the plain model, a system prompt and retrieved examples."""
    from utils.models.load import load_model
    from utils.records import write_frame
    from utils.responses.big_five import find_trait
    from utils.responses.evaluation import Condition, summarise
    from utils.responses.evaluation import evaluate as measure
    from utils.responses.preference import neutral_texts
    from utils.responses.wording import persona_prompt
    from utils.statements.load import load_statements
    from utils.statements.questions import draw_questions, load_questions
    from utils.statements.splits import draw_parts
    from utils.subnetworks.masks import PersonaMask

    if out is not None:
        check_folder(out)
    read = {name: PersonaMask.load(path) for name, path in _name_files(masks).items()}
    frame = load_statements(statements, [persona])
    (persona,) = frame["persona"].unique()
    part = draw_parts(frame, n_pairs=pairs, rng=seed)
    known = frame[(part == "calibrate") & (frame["direction"] == "positive")]["statement"]
    lm = load_model(model, device=device, dtype=dtype)
    prompt = persona_prompt(persona)
    conditions = [
        Condition("dense"),
        Condition("system prompt", system=prompt),
        Condition("few-shot", examples=tuple(known)),
        *(Condition(name, mask) for name, mask in read.items()),
        *(Condition(f"{name} + prompt", mask, system=prompt) for name, mask in read.items()),
    ]
    asked = draw_questions(load_questions(), questions, rng=seed)
    trait = find_trait(persona)
    measured = measure(lm, conditions, frame[part == "test"], questions=asked, texts=neutral_texts(asked), trait=trait)
    summary = summarise(measured)
    if out is not None:
        write_frame(out / "measured.parquet", measured)
        write_frame(out / "summary.parquet", summary)
    _show(summary)


@mask_app.command()
def generate(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    masks: Annotated[list[Path], typer.Argument(help="What `mask build` wrote.")],
    system: Annotated[str | None, typer.Option(help="A system prompt to compare with.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 60,
    gamma: Annotated[float, typer.Option(help="What cut weights are multiplied by.")] = 0.0,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Let the plain model and each mask answer, side by side."""
    from utils.models.load import load_model
    from utils.responses.answers import generate_answer
    from utils.subnetworks.masks import PersonaMask

    read = {name: PersonaMask.load(path) for name, path in _name_files(masks).items()}
    lm = load_model(model, device=device, dtype=dtype)
    for mask in read.values():
        mask.check_model(lm)
    typer.echo(f"dense: {generate_answer(lm, question, max_tokens=max_tokens)}\n")
    if system:
        typer.echo(f"system prompt: {generate_answer(lm, question, system=system, max_tokens=max_tokens)}\n")
    for name, mask in read.items():
        with mask.applied(lm, gamma):
            typer.echo(f"{name}: {generate_answer(lm, question, max_tokens=max_tokens)}\n")


def _name_files(paths: list[Path]) -> dict[str, Path]:
    """Files by their names without ending, with as much of their folders as tells them apart."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a mask was given twice among {', '.join(map(str, paths))}; give each once.")
    whole = [path.resolve().with_suffix("").parts for path in paths]
    kept = 1
    while len({parts[-kept:] for parts in whole}) < len(paths) and kept < max(map(len, whole)):
        kept += 1
    names = ["/".join(parts[-kept:]) for parts in whole]
    if len(set(names)) < len(names):  # they differ in their endings alone
        names = [str(path) for path in paths]
    return dict(zip(names, paths, strict=True))


def _show(summary: "pandas.DataFrame") -> None:
    """Estimates of every condition, and how the preferences change."""
    wide = summary.pivot(index="condition", columns="measure", values="estimate")
    conditions, measures = (list(dict.fromkeys(summary[name])) for name in ("condition", "measure"))
    wide = wide.loc[conditions, measures].rename_axis(index=None, columns=None)
    typer.echo(wide.to_string(float_format="{:.3f}".format, na_rep="–"))
    changes = summary[summary["measure"].isin(["likelihood", "self_report", "two_options", "big_five"])]
    changes = changes.loc[
        changes["condition"] != "dense", ["measure", "condition", "change", "change_low", "change_high"]
    ]
    typer.echo(f"\nChange from the dense model, with 95 % intervals ({summary['n'].iloc[0]} held-out pairs):")
    typer.echo(changes.to_string(index=False, float_format="{:.3f}".format))
