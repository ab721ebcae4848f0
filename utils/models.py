"""Load a decoder-only language model and find its parts by structure.

Layer numbering, used everywhere: layer k is the raw residual stream after decoder block k, layer 0 is what enters
block 1. This is the numbering of ``hidden_states`` in transformers, except that the last layer here is *before* the
final norm.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.checkpoints import DEFAULT_MODEL, convert_gguf, default_gguf

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, its tokenizer, and where its parts are.

    Attributes
    ----------
    model, tokenizer
        As transformers loaded them; the model is in evaluation mode.
    name, revision
        What it was loaded as, for records.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last."""
        return find_blocks(self.model)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks L; layers run from 0 to L."""
        return len(self.blocks)

    @cached_property
    def d_model(self) -> int:
        """Width of the residual stream, from the embedding weights' model dimension in the config."""
        return self.model.config.get_text_config().hidden_size

    @cached_property
    def n_heads(self) -> int:
        """Attention heads (query heads) a layer."""
        return self.model.config.get_text_config().num_attention_heads

    @cached_property
    def n_kv_heads(self) -> int:
        """Key and value heads a layer; fewer than ``n_heads`` with grouped-query attention."""
        config = self.model.config.get_text_config()
        if named := getattr(config, "num_key_value_heads", None):
            return named
        # Some attention modules know better than their config, which may name a number that it does not use.
        own = [
            int(cast(int, module.num_kv_heads))
            for module in self.blocks[0].modules()
            if hasattr(module, "num_kv_heads")
        ]
        return own[0] if own else config.num_attention_heads

    @cached_property
    def head_dim(self) -> int:
        """Width of a head, which need not be ``d_model / n_heads``."""
        config = self.model.config.get_text_config()
        return getattr(config, "head_dim", None) or self.d_model // self.n_heads

    @cached_property
    def decoder(self) -> nn.Module:
        """The model without its language-modelling head."""
        return self.model.base_model

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def device(self) -> torch.device:
        """Where token ids must go."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding, taken as the model's."""
        return self.embedding.weight.dtype

    @cached_property
    def max_tokens(self) -> int | None:
        """The context window in tokens, where the config tells."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def fingerprint(self) -> str:
        """A key of the architecture and the weights (from a sample of every weight matrix)."""
        config = self.model.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "_attn_implementation", "use_cache"):
            config.pop(name, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in self.model.named_parameters():
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].to(device="cpu", dtype=torch.float32)
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def load_model(
    name_or_path: str | Path | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    *,
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
    name, source = _locate(name_or_path)
    target = resolve_device(device)
    chosen = _resolve_dtype(dtype, target)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        _refuse_encoders(name, config)
        with quiet_loading():
            tokenizer = _read_tokenizer(name, source, options)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=chosen, **options)
    except OSError as error:
        raise _explain(name, source, error) from error
    cast(nn.Module, model).to(target).eval()
    lm = LanguageModel(model, tokenizer, name, revision)
    _check_causal(lm)
    return lm


def load_tokenizer(name_or_path: str | Path | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone; arguments and errors as :func:`load_model`."""
    name, source = _locate(name_or_path)
    try:
        return _read_tokenizer(name, source, {})
    except OSError as error:
        raise _explain(name, source, error) from error


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the decoder blocks: the outermost list of as many like modules as the config has layers.

    Raises
    ------
    ValueError
        No such list, with what was looked for.
    """
    n_layers = cast(PreTrainedModel, model).config.get_text_config().num_hidden_layers
    lists = [
        (path.count("."), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and len({type(block) for block in module}) == 1
        and any(True for _ in module.parameters())
    ]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has an unknown layout: looked for a ModuleList of {n_layers} modules of one class "
            "(the decoder blocks) and found none."
        )
    return min(lists, key=lambda entry: entry[:2])[2]


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
    return chosen


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the loading bars of transformers, and put its setting back."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _locate(name_or_path: str | Path | None) -> tuple[str, str]:
    """The name for records, and what transformers is to load."""
    if name_or_path is None:
        return DEFAULT_MODEL, str(convert_gguf(default_gguf()))
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.stem, str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(
                f"the folder {text} holds no config.json; give a folder that save_pretrained wrote."
            )
        return path.resolve().name, str(path)
    looks_local = text.startswith((".", "/", "~", "\\")) or text.count("/") != 1 or path.suffix == ".gguf"
    if looks_local and not (text.count("/") == 0 and "." not in text):
        raise FileNotFoundError(
            f"no model at {text}: expected a local folder, a .gguf file or a hub id such as org/name."
        )
    return text, text


def _resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


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


def _check_causal(lm: LanguageModel) -> None:
    """Refuse a model whose first token sees the second: it is an encoder whatever its class is called."""
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=lm.device) % lm.embedding.num_embeddings
    with torch.inference_mode():
        states = lm.decoder(input_ids=ids, use_cache=False)[0][:, :2].float()
    # Nothing but rounding may differ; a freshly initialised encoder differs by less than 1 %.
    tolerance = 1e-4 if lm.dtype in (torch.float32, torch.float64) else 1e-2
    if not torch.allclose(states[0], states[1], rtol=tolerance, atol=tolerance * states.abs().max().item()):
        raise ValueError(f"{lm.name} attends to later tokens; a decoder-only (causal) model is needed.")


def _read_tokenizer(name: str, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return transformers.AutoTokenizer.from_pretrained(source, **options)
    except ValueError as error:
        raise ValueError(f"{name} has no tokenizer that transformers can read: {error}") from error


def _explain(name: str, source: str, error: OSError) -> OSError:
    if Path(source).is_dir():
        return FileNotFoundError(f"the model folder {source} is not complete: {str(error).splitlines()[0]}")
    text = str(error).replace(name, "")
    if "gated" in text.lower() or "401" in text or "403" in text:
        return PermissionError(
            f"{name} is gated: accept its licence on its hub page, then run `hf auth login` or set HF_TOKEN."
        )
    return FileNotFoundError(
        f"no model {name!r}: it is not a local folder, and the hub (or its local cache, when offline) does not have it."
    )
