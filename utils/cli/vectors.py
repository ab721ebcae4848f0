"""The commands ``personascope vectors`` and ``personascope generate``: make persona vectors, test them, speak under them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from utils.cli.options import (
    Device,
    Dtype,
    Model,
    Seed,
    Statements,
    StudyDevice,
    StudyDtype,
    StudyFolder,
    StudyModel,
    read_layers,
    read_names,
    read_numbers,
)
from utils.options import CausalMeasure, TokenPart, VectorMethod
from utils.vectors.settings import VectorsConfig

GENERATE_EXAMPLES = """
**Examples**

`personascope generate --steer neuroticism=0.2 "How do you feel about tomorrow?"` — plain and steered side by side

`personascope generate --steer neuroticism=0.2 --steer openness=-0.1 --layer 17 "What shall we do?"` — two at once

`personascope generate --steer extraversion --sweep -0.4:0.4:5 "How was the party?"` — a table over strengths

`personascope generate --cap neuroticism=-0.1:0.05 --tokens answer "Will it rain?"` — keep it in a range while speaking

`personascope generate --vectors output/my-model/vectors/all/vectors.safetensors --ablate openness "..."` — from a file
"""

VECTORS_EXAMPLES = """
**Examples**

`personascope vectors output/SmolLM2-135M-Instruct` — fit, test and write the vectors of all personas

`personascope vectors output/llama --personas neuroticism,openness --random 99 --device cuda` — two, finer p-values

`personascope vectors output/llama --gguf` — also control vectors for repeng and llama.cpp
"""


def generate(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    steer: Annotated[
        list[str] | None, typer.Option(help="PERSONA=STRENGTH in residual lengths; can be given several times.")
    ] = None,
    cap: Annotated[
        list[str] | None, typer.Option(help="PERSONA=LOW:HIGH, bounds of the projection; empty for none.")
    ] = None,
    ablate: Annotated[list[str] | None, typer.Option(help="PERSONA whose vector is projected out.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="Where; can be given several times; three fifths up by default.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="FROM:TO:STEPS strengths of the one --steer PERSONA, as a table.")
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="What personascope vectors wrote, or a GGUF control vector; else fitted now.")
    ] = None,
    method: Annotated[VectorMethod, typer.Option(help="How vectors are fitted.")] = "mean-difference",
    tokens: Annotated[TokenPart, typer.Option(help="Tokens that are changed.")] = "all",
    system: Annotated[str | None, typer.Option(help="A system prompt for all answers.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time.")] = 0.0,
    statements: Statements = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Let the model answer, plain and under persona vectors, side by side."""
    from utils.models.load import load_model
    from utils.vectors.projection import read_tokens, summarise_tokens
    from utils.vectors.steering import ablate_vectors, add_vectors, cap_vectors, steering

    strengths = dict(_read_steer(text, needed=sweep is None) for text in steer or ())
    bounds = dict(_read_cap(text) for text in cap or ())
    swept = None if sweep is None else _read_sweep(sweep)
    personas = list(dict.fromkeys([*strengths, *bounds, *(ablate or ())]))
    if not personas:
        raise ValueError("nothing is to be done: give --steer, --cap or --ablate, such as --steer neuroticism=0.2.")
    if swept is not None and len(strengths) != 1:
        raise ValueError(f"--sweep goes over the strengths of one persona, not of {len(strengths)}; give one --steer.")
    lm = load_model(model, device=device, dtype=dtype)
    held = _find_vectors(lm, vectors, personas, layer, statements, method)
    fixed = [
        change
        for name, (low, high) in bounds.items()
        for change in cap_vectors(lm, held[name], low, high, layers=held.layers)
    ]
    fixed += ablate_vectors(lm, held[ablate], layers=held.layers) if ablate else []
    options: dict[str, Any] = {"system": system, "max_tokens": max_tokens, "temperature": temperature, "rng": seed}
    shown = held.at(held.layers[-1])

    def answer(added: dict[str, float], *, changed: bool = True) -> tuple[str, str]:
        changes = (
            [*(add_vectors(lm, held[list(added)], added, layers=held.layers) if added else []), *fixed]
            if changed
            else []
        )
        with steering(lm, changes, tokens=tokens):
            said = lm.generate(question, **options)[0]
        # Read without steering: what was said, and not what was put in.
        found = summarise_tokens(read_tokens(lm, shown[personas], question, said, system=system)) if said else None
        score = (
            ""
            if found is None
            else ", ".join(f"{p} {v:+.3f}" for p, v in zip(found["persona"], found["answer"], strict=True))
        )
        return said, score

    typer.echo(
        f"layers {', '.join(map(str, held.layers))}; in brackets the projection of what was said, read at the last of them\n"
    )
    if swept is not None:
        (name,) = strengths
        for strength in swept:
            said, score = answer({name: strength})
            typer.echo(f"{strength:+.3f}  [{score}]  {' '.join(said.split())}")
        return
    for label, (said, score) in {"plain": answer({}, changed=False), "steered": answer(strengths)}.items():
        typer.echo(f"{label} [{score}]: {said}\n")


def vectors(
    folder: StudyFolder,
    personas: Annotated[str | None, typer.Option(help="Comma-separated names; all by default.")] = None,
    method: Annotated[VectorMethod, typer.Option(help="How vectors are fitted.")] = VectorsConfig.method,
    measure: Annotated[CausalMeasure, typer.Option(help="Preference that is measured.")] = VectorsConfig.measure,
    layers: Annotated[str | None, typer.Option(help="Layers to choose from, e.g. 12,17,22; five by default.")] = None,
    strengths: Annotated[str, typer.Option(help="Strengths to choose from, comma-separated.")] = ",".join(
        map(str, VectorsConfig.strengths)
    ),
    bound: Annotated[
        float, typer.Option(help="Largest perplexity, times that of the model as it is.")
    ] = VectorsConfig.bound,
    pairs: Annotated[
        int, typer.Option(min=5, help="Held-out pairs of a persona to measure on.")
    ] = VectorsConfig.n_pairs,
    random: Annotated[
        int, typer.Option(min=0, help="Random vectors, and vectors of flipped sides, to compare with.")
    ] = VectorsConfig.n_random,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write control vectors for repeng and llama.cpp.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; vectors/all in the study's by default.")] = None,
    model: StudyModel = None,
    device: StudyDevice = None,
    dtype: StudyDtype = None,
    seed: Seed = VectorsConfig.seed,
) -> None:
    """Fit persona vectors, and test on held-out pairs which personas they turn and at what cost."""
    from utils.experiments.vectors import describe_turned, draw_vectors, export_vectors, run_vectors
    from utils.models.load import load_model
    from utils.study.report import write_report
    from utils.study.results import open_study

    study = open_study(folder)
    made = study.config
    config = VectorsConfig(
        personas=read_names(personas),
        method=method,
        measure=measure,
        layers=read_layers("--layers", layers),
        strengths=read_numbers("--strengths", strengths, float),
        bound=bound,
        n_pairs=pairs,
        n_random=random,
        n_flipped=random,
        seed=seed,
    )
    lm = load_model(model or made["model"], device=device or made["device"], dtype=dtype or made["dtype"])
    result = run_vectors(lm, study, config, out=out)
    draw_vectors(result, study)
    shown = [
        "persona",
        "effect",
        "low",
        "high",
        "random_mean",
        "p_random_adjusted",
        "p_flipped_adjusted",
        "perplexity_ratio",
    ]
    typer.echo(result.turned[shown].to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    typer.echo("\n" + " ".join(describe_turned(result)))
    if gguf:
        for path in export_vectors(lm, result):
            typer.echo(str(path))
    if out is None:
        write_report(study)
        typer.echo(f"\nopen {study.folder / 'report.html'}")
    else:
        typer.echo(f"\ntables, figures and vectors are in {result.folder}")


def _find_vectors(
    lm: Any,
    path: Path | None,
    personas: list[str],
    layers: list[int] | None,
    statements: str | None,
    method: VectorMethod,
) -> Any:
    """Vectors at the wanted layers, from a file or from statements."""
    from utils.activations.extraction import extract
    from utils.statements.contrasts import find_contrasts
    from utils.statements.load import load_statements
    from utils.vectors.export import read_gguf
    from utils.vectors.fit import PersonaVectors, persona_vectors

    default = [round(0.6 * lm.n_layers)]
    if path is not None:
        held = read_gguf(path, lm) if path.suffix == ".gguf" else PersonaVectors.load(path)
        chosen = layers or (
            [held.record["layer"]] if "layer" in held.record else held.layers if len(held.layers) == 1 else default
        )
        return held[personas].at(chosen)
    acts = extract(lm, load_statements(statements, personas), layers=layers or default)
    return persona_vectors(acts, find_contrasts(acts, personas=personas), method=method)


def _read_steer(text: str, *, needed: bool) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        return name.strip(), float(value) if sign or needed else 0.0
    except ValueError:
        raise ValueError(f"--steer {text!r} is not PERSONA=STRENGTH, such as neuroticism=0.2.") from None


def _read_cap(text: str) -> tuple[str, tuple[float, float]]:
    name, _, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    try:
        if not colon:
            raise ValueError
        return name.strip(), (float(low or "-inf"), float(high or "inf"))
    except ValueError:
        raise ValueError(
            f"--cap {text!r} is not PERSONA=LOW:HIGH, such as neuroticism=-0.1:0.05 or neuroticism=:0.05."
        ) from None


def _read_sweep(text: str) -> list[float]:
    import numpy as np

    try:
        first, last, steps = text.split(":")
        if int(steps) < 2:
            raise ValueError
        return [float(round(value, 6)) for value in np.linspace(float(first), float(last), int(steps))]
    except ValueError:
        raise ValueError(f"--sweep {text!r} is not FROM:TO:STEPS, such as -0.6:0.6:7.") from None
