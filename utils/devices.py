"""Devices and dtypes by name, and telling a lack of memory from other errors."""

import torch

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
