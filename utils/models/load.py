"""Load a decoder-only language model and find its parts by structure.

Layer numbering, used everywhere: layer k is the raw residual stream after decoder block k, layer 0 is what enters
block 1. This is the numbering of ``hidden_states`` in transformers, except that the last layer here is *before* the
final norm.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.models.checkpoints import explain_missing, locate_model
from utils.models.language_model import LanguageModel
from utils.models.weights import check_complete, check_numbers
from utils.records import first_line

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    name_or_path: str | Path | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a decoder-only language model.

    Parameters
    ----------
    name_or_path
        A local folder, a ``.gguf`` file or a hub id; the embedded SmolLM2-135M-Instruct by default.
    device
        ``"auto"`` or None (CUDA, then MPS, then CPU), or a name that torch knows.
    dtype
        ``"float32"``, ``"float16"``, ``"bfloat16"`` or a torch dtype. By default float32 on a CPU and the
        checkpoint's own dtype elsewhere.
    device_map
        Spread the model over several devices through accelerate: ``"auto"``, or a device for each part. ``device``
        then only decides the default dtype.
    revision
        Branch, tag or commit of a hub model.
    trust_remote_code
        Run code that comes with the model. Off unless asked for.

    Returns
    -------
    LanguageModel

    Raises
    ------
    FileNotFoundError
        There is no such model.
    PermissionError
        The model is gated and no valid token is set.
    ValueError
        The model is not decoder-only or has no tokenizer that transformers can read, or the device or dtype is unknown.
    """
    name, source = locate_model(name_or_path)
    target = resolve_device(device)
    chosen = resolve_dtype(dtype, target)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    placed = {} if device_map is None else {"device_map": device_map}
    try:
        with _explain_damage(name, source, "the values in config.json"):
            config = transformers.AutoConfig.from_pretrained(source, **options)
        _refuse_encoders(name, config)
        with quiet_loading():
            tokenizer = _read_tokenizer(name, source, options)
            model, loading = _read_weights(name, source, dtype=chosen, **options, **placed)
    except OSError as error:
        raise explain_missing(name, source, error) from error
    module = cast(nn.Module, model).eval()
    if not placed:
        module.to(target)
    lm = LanguageModel(model, tokenizer, name, revision)
    check_numbers(lm, loading)
    check_causal(lm)
    check_complete(lm, loading)
    return lm


def load_tokenizer(name_or_path: str | Path | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone; arguments and errors as :func:`load_model`."""
    name, source = locate_model(name_or_path)
    try:
        return _read_tokenizer(name, source, {})
    except OSError as error:
        raise explain_missing(name, source, error) from error


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the loading bars and tables of transformers, and put its settings back."""
    shown, verbosity = transformers.utils.logging.is_progress_bar_enabled(), transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _refuse_encoders(name: str, config: transformers.PretrainedConfig) -> None:
    architectures = getattr(config, "architectures", None) or []
    masked = any(kind.endswith("ForMaskedLM") for kind in architectures)
    known = type(config) in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    automatic = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder or masked or not (known or automatic):
        kind = "encoder–decoder" if config.is_encoder_decoder else "encoder-only or not a language"
        raise ValueError(
            f"{name} ({config.model_type}) is an {kind} model; a decoder-only causal language model is needed."
        )


def check_causal(lm: LanguageModel) -> None:
    """Refuse a model whose earlier tokens see later ones: it is an encoder whatever its class is called.

    What a changed last token does to the tokens between is compared with what a changed first token does, both in
    units of each token's own state. Rounding is far below the second in any dtype and at any size of the states (a
    causal model's share is below 0.01); an encoder's two are alike (0.3 and more, also freshly initialised).
    """
    places = torch.tensor([3, 7, 2, 9, 5, 8, 4, 6])
    changed_last, changed_first = places.clone(), places.clone()
    changed_last[-1] = changed_first[0] = 1
    rows = torch.stack([places, changed_last, changed_first]) * lm.embedding.num_embeddings // 11
    with torch.inference_mode():
        # One by one, as rows of a batch are rounded differently.
        states = [lm.decoder(input_ids=row[None].to(lm.device), use_cache=False)[0][0, 1:-1].double() for row in rows]
    own = states[0].norm(dim=-1)
    later, earlier = (((states[0] - other).norm(dim=-1) / own).sum() for other in states[1:])
    if later > 0.1 * earlier:
        raise ValueError(f"{lm.name} attends to later tokens; a decoder-only (causal) model is needed.")


def _read_weights(name: str, source: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers tells of loading it; what its files raise when they are damaged, in one sentence."""
    # Shapes that do not fit are told of with their names instead of in a table.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _explain_damage(name, source, "config.json or the weights"):
        return cast(Any, transformers.AutoModelForCausalLM.from_pretrained(source, **options))


@contextlib.contextmanager
def _explain_damage(name: str, source: str, what: str) -> Iterator[None]:
    """Say in one sentence what a damaged file makes transformers, and the libraries below, raise."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # there are as many kinds as libraries: safetensors, pickle, struct, validation
        memory = isinstance(error, RuntimeError) and ran_out_of_memory(error)
        if memory or (isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)):
            raise
        raise ValueError(
            f"{name} cannot be read from {source} ({first_line(error)[:160]}): {what} are cut short, damaged, or hold code, "
            "which is not run; get them anew, the weights as safetensors."
        ) from error


def _read_tokenizer(name: str, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return transformers.AutoTokenizer.from_pretrained(source, **options)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ValueError(f"{name} has no tokenizer that transformers can read: {first_line(error)}") from error


def resolve_device(device: str | None) -> torch.device:
    """Turn ``None``, ``"auto"`` or a name into a device that is there."""
    if device in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; expected auto, cpu, cuda, cuda:N or mps.") from None
    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not present.get(chosen.type, lambda: True)():
        raise ValueError(f"device {device!r} is not available on this machine; use --device cpu.")
    if chosen.type == "meta":
        raise ValueError("device 'meta' holds no values; expected auto, cpu, cuda, cuda:N or mps.")
    return chosen


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """What transformers is to load: by default float32 on a CPU and the checkpoint's own dtype elsewhere."""
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether a forward pass failed for lack of memory; MPS and the CPU say so in the text of a plain error only."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def free_cached_memory() -> None:
    """Hand memory that torch keeps for later back to the accelerator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
