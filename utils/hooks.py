"""Forward hooks as context managers that leave the model as they found it.

Every hook of the project is set here. Handles are removed on the way out, also after an exception or Ctrl-C.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from utils.models import LanguageModel


@contextlib.contextmanager
def watch_residual(lm: LanguageModel, layers: list[int], catch: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Hand the residual stream of the given layers to ``catch(layer, (batch, token, d_model))`` during each forward pass.

    Layer 0 is what enters the first block, layer k what leaves block k, the last one before the final norm. What
    ``catch`` gets is the model's own tensor: to keep it, copy it.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if layer == 0:
                handle = lm.blocks[0].register_forward_pre_hook(_on_input(layer, catch), with_kwargs=True)
            else:
                handle = lm.blocks[layer - 1].register_forward_hook(_on_output(layer, catch))
            stack.callback(handle.remove)
        yield


def first_tensor(output: torch.Tensor | tuple) -> torch.Tensor:
    """The hidden states in a module's output, which is a tuple in some versions and a tensor in others."""
    return output if isinstance(output, torch.Tensor) else output[0]


def _on_input(layer: int, catch: Callable[[int, torch.Tensor], None]) -> Callable:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        catch(layer, args[0] if args else kwargs["hidden_states"])

    return hook


def _on_output(layer: int, catch: Callable[[int, torch.Tensor], None]) -> Callable:
    def hook(_module: nn.Module, _args: tuple, output: torch.Tensor | tuple) -> None:
        catch(layer, first_tensor(output))

    return hook
