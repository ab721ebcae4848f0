"""What each part of a run adds to the difference of two logits, through that run's own frozen final norm.

The final residual stream is the sum of what enters the first block and of what every attention and MLP adds. A final
norm divides it by its size; with that size held at what it is in the run, the norm is linear, and m, the difference of
two logits, is the sum of one term a part. m is taken of the head's output times the factor that the model multiplies
it with (Granite, Cohere), before any cap on the logits (Gemma 2), as a cap is not linear.
"""

import pandas as pd
import torch
from jaxtyping import Float
from torch import nn
from tqdm.auto import tqdm

from utils.models.forward import logit_scale
from utils.models.language_model import LanguageModel
from utils.patching.alignment import pair_prompts
from utils.patching.grid import letters_of
from utils.patching.runs import CleanRun, run_clean
from utils.responses.answers import check_lengths
from utils.responses.wording import identity_prompt, letter_tokens, render_questions

# Large beside any epsilon of a norm, and exact in every dtype.
_LARGE = 1024.0


def logit_terms(
    lm: LanguageModel, run: CleanRun, letters: tuple[int, int], *, scale: float | None = None
) -> pd.DataFrame:
    """The terms of one run's m at the last token.

    Parameters
    ----------
    run
        From :func:`utils.patching.runs.run_clean`, with ``resid``, ``attn`` and ``mlp``.
    letters
        Two tokens; m is the first one's logit minus the second one's.
    scale
        From :func:`utils.models.forward.logit_scale`; measured by default.

    Returns
    -------
    DataFrame
        ``component, layer, term`` (in logits): ``resid`` of layer 0, ``attn`` and ``mlp`` of every layer, and ``bias``
        (layer L), what the norm's and the head's constants add whatever the run. They sum to ``m``, which is also a
        column and is computed by the norm and the head themselves.

    Raises
    ------
    ValueError
        Logits by norm and head that are not the model's own, a final norm that is not of the kind gain × (x − mean) / size +
        bias, with or without the mean, or a head that is not one matrix on the residual stream.
    """
    weight = getattr(lm.head, "weight", None)
    if weight is None or weight.dim() != 2 or weight.shape[1] != lm.d_model:
        raise ValueError(f"{lm.name}: the head is not one matrix on the residual stream, so that m has no such terms.")
    scale = logit_scale(lm) if scale is None else scale
    last = run.values["resid"][lm.n_layers][-1]
    picks = list(letters)
    with torch.inference_mode():
        pair = weight[picks].double().cpu()
        direction, constant = freeze_norm(lm.final_norm, last, scale * (pair[0] - pair[1]))
        logits = lm.head(lm.final_norm(last[None, None]))[0, 0, picks].double() * scale
        _check_own(lm, logits, run.logits[picks].double().to(logits.device))
        bias = getattr(lm.head, "bias", None)
        if bias is not None:
            constant += scale * float(bias[letters[0]] - bias[letters[1]])
        parts = [("resid", 0, run.values["resid"][0])]
        for layer in range(1, lm.n_layers + 1):
            parts += [(name, layer, run.values[name][layer]) for name in ("attn", "mlp")]
        rows = [(name, layer, float(value[-1].double().cpu() @ direction)) for name, layer, value in parts]
    table = pd.DataFrame([*rows, ("bias", lm.n_layers, constant)], columns=["component", "layer", "term"])
    return table.assign(m=float(logits[0] - logits[1]))


def persona_terms(
    lm: LanguageModel, base: str, source: str, questions: pd.DataFrame, *, progress: bool = True
) -> pd.DataFrame:
    """The terms of every question under two identities.

    Returns
    -------
    DataFrame
        ``question, fallback, identity`` (``base`` or ``source``) and the columns of :func:`logit_terms`, with m the logit
        of the source's answer minus that of the base's, see :func:`utils.patching.effects.choose_letters`.
    """
    pairs = pair_prompts(lm.tokenizer, base, source, questions)
    check_lengths(lm, questions, [max(len(pair.base.ids), len(pair.source.ids)) for pair in pairs])
    text = render_questions(lm.tokenizer, questions.iloc[:1], system=identity_prompt(base))[0]
    tokens, scale = letter_tokens(lm.tokenizer, text), logit_scale(lm)
    tables = []
    for pair in tqdm(pairs, desc="logit terms", unit="question", disable=not progress):
        runs = {
            name: run_clean(lm, prompt, ["resid", "attn", "mlp"])
            for name, prompt in (("base", pair.base), ("source", pair.source))
        }
        letters, fallback = letters_of(tokens, *(run.logits for run in runs.values()))
        tables += [
            logit_terms(lm, run, letters, scale=scale).assign(question=pair.id, fallback=fallback, identity=name)
            for name, run in runs.items()
        ]
    columns = ["question", "fallback", "identity", "component", "layer", "term", "m"]
    return pd.concat(tables, ignore_index=True)[columns]


def _check_own(lm: LanguageModel, logits: torch.Tensor, own: torch.Tensor) -> None:
    """Refuse where norm, head and scale do not make the model's own logits; a cap (Gemma 2) is put on first."""
    cap = getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None)
    expected = cap * torch.tanh(logits / cap) if cap else logits
    if float((expected - own).abs().max()) > 1e3 * torch.finfo(lm.dtype).eps * max(1.0, float(own.abs().max())):
        raise ValueError(
            f"{lm.name}: final norm and head give the logits {[round(x, 3) for x in expected.tolist()]}, the model itself "
            f"{[round(x, 3) for x in own.tolist()]}: something lies between them, so that m has no such terms."
        )


def freeze_norm(
    norm: nn.Module, x: Float[torch.Tensor, " d"], direction: Float[torch.Tensor, " d"]
) -> tuple[Float[torch.Tensor, " d"], float]:
    """Take a direction of a norm's output back to its input, with the norm's scale held at what it is for ``x``.

    Gain, bias and centring are read from what the norm does to a few inputs, whatever its class is called.

    Returns
    -------
    back, constant
        ``back @ x + constant == direction @ norm(x)``, and ``back`` is linear in what ``x`` is a sum of. float64, on
        the CPU.
    """

    def run(value: torch.Tensor) -> torch.Tensor:
        return norm(value[None, None])[0, 0].double().cpu()

    signs = torch.ones_like(x)
    signs[1::2] = -1
    bias, probed = run(torch.zeros_like(x)), run(_LARGE * signs)
    centres = torch.allclose(run(_LARGE * (signs + 1)), probed, rtol=1e-3, atol=1e-3)
    gain = (probed - bias) * signs.double().cpu()
    own, given = run(x) - bias, x.double().cpu()
    reached = gain * (given - given.mean() if centres else given)
    scale = float(reached @ own / (reached @ reached))
    if not torch.allclose(scale * reached, own, rtol=1e-2, atol=1e-3 * float(own.abs().max())):
        raise ValueError(
            f"the final norm {type(norm).__name__} does not scale its input as a whole; it cannot be frozen."
        )
    back = scale * gain * direction
    return back - back.mean() if centres else back, float(direction @ bias)
