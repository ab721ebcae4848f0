"""Forward hooks as context managers that leave the model as they found it.

Every hook of the project is set here. Handles are removed on the way out, also after an exception or Ctrl-C.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

Key = TypeVar("Key", bound=Hashable)


@contextlib.contextmanager
def hook_outputs(
    modules: Mapping[Key, nn.Module], act: Callable[[Key, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Call ``act(key, output)`` whenever one of the modules has run; a tensor that it returns takes the output's place.

    The output is the model's own tensor (the first of a tuple): to keep it, copy it; to change it, return another.
    """

    def make(key: Key) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            changed = act(key, first_tensor(output))
            if changed is None:
                return None
            return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

        return hook

    with contextlib.ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(module.register_forward_hook(make(key)).remove)
        yield


@contextlib.contextmanager
def hook_inputs(
    modules: Mapping[Key, nn.Module], act: Callable[[Key, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Call ``act(key, input)`` before one of the modules runs; a tensor that it returns takes the input's place.

    The input is the first positional argument, or the keyword ``hidden_states``.
    """

    def make(key: Key) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> Any:
            changed = act(key, first_input(args, kwargs))
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return hook

    with contextlib.ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(module.register_forward_pre_hook(make(key), with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def watch_arguments(module: nn.Module, see: Callable[[tuple, dict], None]) -> Iterator[None]:
    """Call ``see(args, kwargs)`` before the module runs; nothing is changed."""

    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        see(args, kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def trace_calls(
    modules: Mapping[str, nn.Module], keep: Callable[[str, torch.Tensor | None, Any], None]
) -> Iterator[None]:
    """Call ``keep(name, input, output)`` after each module has run, in the order in which they finish."""

    def make(name: str) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            keep(name, first_input(args, kwargs), output)

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(make(name), with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def replace_forward(modules: Mapping[Key, nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Let the modules run ``forward`` in place of their own."""
    with contextlib.ExitStack() as stack:
        for module in modules.values():
            own = module.__dict__.get("forward")
            stack.callback(_restore_forward, module, own)
            module.forward = forward
        yield


def first_tensor(output: torch.Tensor | tuple | list) -> torch.Tensor:
    """The hidden states in a module's output, which is a tuple in some versions and a tensor in others."""
    return output if isinstance(output, torch.Tensor) else output[0]


def first_input(args: tuple, kwargs: dict) -> Any:
    """What a module works on: its first positional argument or its hidden states."""
    return args[0] if args else kwargs.get("hidden_states")


def _restore_forward(module: nn.Module, own: Callable | None) -> None:
    # accelerate keeps a forward of its own on the module; without one, the class's shows again.
    if own is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = own
