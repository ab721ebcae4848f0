"""The command ``personascope check``."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
**Examples**

`personascope check output/SmolLM2-135M-Instruct` — is the study whole, with all that was made of it?

`personascope check output/llama/causal/openness` — a causal check alone; so for the folders of patch, mask run and vectors
"""


def check(
    folder: Annotated[Path, typer.Argument(help="What study, causal, patch, mask run, vectors or audit wrote to.")],
) -> None:
    """See whether a run's folder is complete and unaltered, and what running the command again would repair."""
    from utils.experiments.check import check_run

    found = check_run(folder)
    if not found.findings:
        typer.echo(f"{folder} is whole: {', '.join(found.runs)}.")
        return
    for finding in found.findings:
        typer.echo(str(finding))
    n = len(found.findings)
    typer.echo(
        f"\n{folder} is not whole: {n} fault{'s' if n > 1 else ''}; run the same command again, with the same options, to repair "
        f"{'them' if n > 1 else 'it'}."
    )
    raise typer.Exit(1)
