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

from utils.devices import resolve_device, resolve_dtype
from utils.models.anatomy import Anatomy, find_anatomy, find_blocks
from utils.models.checkpoints import explain_missing, locate_model

logger = logging.getLogger(__name__)


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
        held = (self.anatomy.qkv_width / self.head_dim - self.n_heads) / 2
        named = getattr(self.model.config.get_text_config(), "num_key_value_heads", None)
        if named is None:
            # Some configs do not tell, or have a number that the model does not use.
            return int(held)
        if named != held:
            logger.warning(
                "%s: the matrices before the attention are not those of %d key-value heads", self.name, named
            )
        return named

    @cached_property
    def head_dim(self) -> int:
        """Width of a head at the attention's output projection, which need not be ``d_model / n_heads``.

        Raises
        ------
        ValueError
            The heads of the config do not divide the projection's input.
        """
        width = self.anatomy.head_width
        named = getattr(self.model.config.get_text_config(), "head_dim", None) or width // self.n_heads
        if width % self.n_heads:
            raise ValueError(
                f"{self.name}: the config has {self.n_heads} heads, which do not divide the {width} inputs of "
                f"{self.anatomy.projection}."
            )
        if named * self.n_heads != width:
            logger.warning(
                "%s: the config says heads of width %d, the weights %d", self.name, named, width // self.n_heads
            )
        return width // self.n_heads

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the parts of a block, the final norm and what they add up to are; see :mod:`utils.models.anatomy`."""
        return find_anatomy(self.model)

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head; an identity where there is none."""
        path = self.anatomy.final_norm
        return nn.Identity() if path is None else self.model.get_submodule(path)

    @property
    def head(self) -> nn.Module:
        """The language-modelling head: normed residual stream in, logits out (before any scaling or capping)."""
        return cast(nn.Module, self.model.get_output_embeddings())

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
        weight = self.embedding.weight
        # Weights that accelerate keeps elsewhere until they are needed lie on no device.
        return torch.device(cast(Any, self.embedding)._hf_hook.execution_device) if weight.is_meta else weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding, taken as the model's."""
        return self.embedding.weight.dtype

    @cached_property
    def max_tokens(self) -> int | None:
        """The context window in tokens, where the config tells."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def fingerprint(self) -> str:
        """A key of the architecture and of the weights as they are now (from a sample of every weight matrix)."""
        config = self.model.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "_attn_implementation", "use_cache"):
            config.pop(name, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in self.model.named_parameters():
            if weight.is_meta:
                digest.update(f"{name}{self.name}{self.revision}".encode())
                continue
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
        config = transformers.AutoConfig.from_pretrained(source, **options)
        _refuse_encoders(name, config)
        with quiet_loading():
            tokenizer = _read_tokenizer(name, source, options)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=chosen, **options, **placed)
    except OSError as error:
        raise explain_missing(name, source, error) from error
    module = cast(nn.Module, model).eval()
    if not placed:
        module.to(target)
    lm = LanguageModel(model, tokenizer, name, revision)
    _check_causal(lm)
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
    """Hide the loading bars of transformers, and put its setting back."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
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
