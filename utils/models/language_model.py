"""A causal language model, its tokenizer, and where its parts are."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.models.anatomy import Anatomy, choose_anatomy, find_anatomies, find_blocks, find_position_limits
from utils.models.generation import continue_ids
from utils.models.prompts import encode_texts, render_chat

logger = logging.getLogger(__name__)

# Of the table of which a fingerprint takes the sums.
_COLUMNS = 256
# What configurations call the context window; transformers maps most names to the first.
_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "max_sequence_length")


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

    def __repr__(self) -> str:
        device, dtype = self.model.device, str(self.model.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name}: {self.n_layers} layers, {self.d_model} wide, {dtype} on {device})"

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
        n_heads = self._read_config("num_attention_heads")
        if not isinstance(n_heads, int):
            raise ValueError(f"{self.name} has no component heads: its config names no one number of attention heads.")
        return n_heads

    def _read_config(self, name: str) -> Any:
        config = self.model.config.get_text_config()
        try:
            return getattr(config, name, None)
        except RuntimeError:  # transformers: the value differs by layer
            return None

    @cached_property
    def n_kv_heads(self) -> int:
        """Key and value heads a layer; fewer than ``n_heads`` with grouped-query attention."""
        held = (self.anatomy.qkv_width / self.head_dim - self.n_heads) / 2
        named = self._read_config("num_key_value_heads")
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
        named = self._read_config("head_dim") or width // self.n_heads
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
        """Parts of the first block with an attention, and the final norm; see :mod:`utils.models.anatomy`."""
        return choose_anatomy(self.anatomies)

    @cached_property
    def anatomies(self) -> tuple[Anatomy | ValueError, ...]:
        """Of each block; the error that tells why where its parts cannot be told."""
        return find_anatomies(self.model)

    def block_anatomy(self, layer: int) -> Anatomy:
        """Of block ``layer``, 1 to L; ValueError where its parts cannot be told."""
        parts = self.anatomies[layer - 1]
        if isinstance(parts, ValueError):
            raise ValueError(f"block {layer}: {parts}")
        return parts

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
    def shares_keys(self) -> bool:
        """Whether blocks attend to keys and values of blocks below them (Gemma 4), which then must run."""
        config = self.model.config.get_text_config()
        return bool(getattr(config, "num_kv_shared_layers", 0) or getattr(config, "use_cla", False))

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
        """The context window in tokens: what the config says, or what the position embedding holds where that is less."""
        config = self.model.config.get_text_config()
        named = [getattr(config, name, None) for name in _WINDOWS]
        limits = [
            *(limit for limit in named if isinstance(limit, int) and limit > 0),
            *find_position_limits(self.model),
        ]
        return min(limits, default=None)

    @cached_property
    def window_switch(self) -> int | None:
        """Longest input, in tokens, that LongRoPE reads as the original window; in a longer one every token is turned otherwise.

        An input is as long as the longest of its batch, so that rows on either side must not share one, nor a prefix.
        """
        config = self.model.config.get_text_config()
        named = getattr(config, "rope_parameters", None) or {}
        own = getattr(config, "original_max_position_embeddings", None)
        kinds = [named, *(kind for kind in named.values() if isinstance(kind, dict))]
        switches = [
            kind.get("original_max_position_embeddings") or own for kind in kinds if kind.get("rope_type") == "longrope"
        ]
        return min((switch for switch in switches if switch), default=None)

    def split_sides(self, lengths: Sequence[int]) -> list[list[int]]:
        """Places of inputs of so many tokens, by those that may share a batch, see :attr:`window_switch`."""
        switch = self.window_switch
        if switch is None:
            return [list(range(len(lengths)))]
        sides = [
            [place for place, length in enumerate(lengths) if (length > switch) == above] for above in (False, True)
        ]
        return [side for side in sides if side]

    @property
    def fingerprint(self) -> str:
        """A key of the architecture and of every bit of the weights as they are now.

        Weights are read whole, as sums of their bits, see :func:`_sum_bits`: about 0.13 s a gigabyte on one CPU core, so
        some 2 s for eight billion weights in bfloat16.
        """
        config = self.model.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "_attn_implementation", "use_cache"):
            config.pop(name, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in self.model.named_parameters():
            if weight.is_meta:
                digest.update(f"{name}{self.name}{self.revision}".encode())
                continue
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(_sum_bits(weight.detach()))
        return digest.hexdigest()[:16]

    def generate(
        self,
        questions: str | Sequence[str],
        *,
        system: str | None = None,
        max_tokens: int = 60,
        temperature: float = 0.0,
        rng: int = 0,
        batch_size: int = 8,
        on_text: Callable[[str], object] | None = None,
    ) -> list[str]:
        """The model's answers to questions, without end-of-turn marks; what is set up around the call is in force.

        Parameters
        ----------
        questions
            One, or several that are answered in batches.
        system
            The system turn; without it, the chat template's own default stays.
        max_tokens
            Of each answer, at most.
        temperature
            0: the most likely token each time. Above 0: drawn from the whole distribution, ``rng`` being the seed. Penalties
            and the like that come with a checkpoint are not used.
        on_text
            Called with each new piece of the answer as it comes; for one question.

        Raises
        ------
        ValueError
            No questions, several with ``on_text``, ``max_tokens`` or ``batch_size`` below 1 or more than the context window
            holds, or a temperature below 0.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        if not asked or (on_text is not None and len(asked) > 1):
            raise ValueError(f"{len(asked)} questions were given; expected at least one, and one alone with on_text.")
        if batch_size < 1 or not 0 <= temperature < float("inf"):
            raise ValueError(
                f"batch_size is {batch_size} and temperature {temperature}; expected at least 1, and a finite number from 0."
            )
        texts = [render_chat(self.tokenizer, question, system=system) for question in asked]
        rows = [prompt.ids for prompt in encode_texts(self.tokenizer, texts, [(0, len(text)) for text in texts])]
        room = None if self.max_tokens is None else self.max_tokens - max(map(len, rows))
        if max_tokens < 1 or (room is not None and max_tokens > room):
            raise ValueError(
                f"max_tokens is {max_tokens}; expected from 1 to the {room} that the context window has left."
            )
        options = {"max_tokens": max_tokens, "temperature": temperature, "rng": rng, "on_text": on_text}
        answers = [""] * len(rows)
        for places in self._group_rows([len(row) for row in rows], batch_size, max_tokens):
            batch = [rows[place] for place in places]
            made = continue_ids(self.model, self.tokenizer, batch, device=self.device, **options)
            for place, ids in zip(places, made, strict=True):
                answers[place] = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return answers

    def _group_rows(self, lengths: Sequence[int], batch_size: int, max_tokens: int) -> list[list[int]]:
        """Places of rows by batch, of like length; a row that may pass the window's switch while it grows goes alone."""
        switch = self.window_switch
        batches = [[place] for place, held in enumerate(lengths) if switch and held <= switch < held + max_tokens]
        alone = {place for (place,) in batches}
        for side in self.split_sides(lengths):
            order = sorted((place for place in side if place not in alone), key=lambda place: lengths[place])
            batches += [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        return batches


def _sum_bits(weight: torch.Tensor) -> bytes:
    """Sums of a tensor's bits along both sides of a table with eight bytes a cell; one changed value changes two."""
    flat = weight.contiguous().reshape(-1).view(torch.uint8)
    even = len(flat) // (8 * _COLUMNS) * 8 * _COLUMNS
    digest = hashlib.sha256(flat[even:].cpu().numpy().tobytes())
    if even:
        table = flat[:even].view(torch.int64).reshape(-1, _COLUMNS)
        for sums in (table.sum(dim=0), table.sum(dim=1)):
            digest.update(sums.cpu().numpy().tobytes())
    return digest.digest()
