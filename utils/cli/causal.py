"""The command ``personascope causal``."""

from pathlib import Path
from typing import Annotated

import typer

from utils.causal.settings import CHECKS, CausalConfig, parse_check
from utils.cli.options import Seed, StudyDevice, StudyDtype, StudyFolder, StudyModel, read_numbers
from utils.options import Scope

EXAMPLES = """
**Examples**

`personascope causal output/SmolLM2-135M-Instruct` — the persona that the study finds best

`personascope causal output/llama --persona neuroticism --layer 18 --device cuda` — another persona and layer

`personascope causal output/llama --check ablate/likelihood/persona --check patch/self_report` — other questions

`personascope causal output/llama --layer-step 1 --curve 20` — also at every layer, with more random sets there

`personascope causal output/llama --matched 0 --strengths "" --sizes "" --cost 0` — the main comparison alone
"""


def causal(
    folder: StudyFolder,
    persona: Annotated[
        str | None, typer.Option(help="Whose nodes; that with the highest pair accuracy on select by default.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Where; the scanned layer by default.")] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(help="mode/measure/prompt, e.g. steer/likelihood/neutral; can be given several times."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=5, help="Held-out pairs to measure on.")] = CausalConfig.n_pairs,
    random: Annotated[int, typer.Option(min=1, help="Random node sets.")] = CausalConfig.n_random,
    matched: Annotated[int, typer.Option(min=0, help="Random node sets matched in spread.")] = CausalConfig.n_matched,
    size: Annotated[int | None, typer.Option(min=1, help="Nodes; the scan's node set by default.")] = None,
    scope: Annotated[Scope, typer.Option(help="Tokens that are changed.")] = CausalConfig.scope,
    strength: Annotated[
        float, typer.Option(help="Of steering, in units of the residual stream's length.")
    ] = CausalConfig.strength,
    strengths: Annotated[str, typer.Option(help="Further strengths, comma-separated.")] = ",".join(
        map(str, CausalConfig.strengths)
    ),
    sizes: Annotated[str, typer.Option(help="Further set sizes, comma-separated.")] = ",".join(
        map(str, CausalConfig.sizes)
    ),
    layer_step: Annotated[int, typer.Option(min=0, help="Further layers: every n-th; 0 for none.")] = 0,
    curve: Annotated[
        int, typer.Option(min=1, help="Random sets at every further strength, size and layer.")
    ] = CausalConfig.n_curve,
    permutations: Annotated[
        int, typer.Option(min=19, help="Of the scans that choose the nodes.")
    ] = CausalConfig.permutations,
    cost: Annotated[
        int, typer.Option(min=0, help="Questions and neutral texts for the cost; 0 for none.")
    ] = CausalConfig.n_cost,
    out: Annotated[Path | None, typer.Option(help="Folder; causal/PERSONA in the study's by default.")] = None,
    model: StudyModel = None,
    device: StudyDevice = None,
    dtype: StudyDtype = None,
    seed: Seed = CausalConfig.seed,
) -> None:
    """Check whether the scanned nodes matter: change them, and fair controls, and see what the model prefers to say."""
    from utils.experiments.causal import run_causal
    from utils.experiments.causal_report import SHOWN, describe_found, draw_causal, main_effects
    from utils.models.load import load_model
    from utils.study.report import write_report
    from utils.study.results import open_study

    checks = [parse_check(text) for text in check] if check else CHECKS
    study = open_study(folder)
    made = study.config
    lm = load_model(model or made["model"], device=device or made["device"], dtype=dtype or made["dtype"])
    config = CausalConfig(
        persona=persona,
        layer=layer,
        checks=checks,
        n_pairs=pairs,
        n_random=random,
        n_matched=matched,
        n_curve=curve,
        size=size,
        scope=scope,
        strength=strength,
        strengths=read_numbers("--strengths", strengths, float),
        sizes=read_numbers("--sizes", sizes),
        layers=[k for k in study.activations["layer"].to_numpy().tolist() if layer_step and k and k % layer_step == 0],
        n_cost=cost,
        permutations=permutations,
        seed=seed,
    )
    result = run_causal(lm, study, config, out=out)
    draw_causal(result, study)
    typer.echo(main_effects(result)[SHOWN].to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    typer.echo("\n" + "\n".join(describe_found(result)))
    if out is None:
        write_report(study)
        typer.echo(f"\nopen {study.folder / 'report.html'}")
    else:
        typer.echo(f"\ntables and figures are in {result.folder}")
