"""Dtypes of weights and caches: names and defaults."""

import torch

from cdgen.errors import InputError


def default_dtype(stored: torch.dtype | None, device_type: str) -> torch.dtype:
    """Return the dtype that weights are loaded in by default.

    float32 on the CPU. Elsewhere the checkpoint's own if it has 16 bits, else bfloat16: float32 weights, which
    `cdgen train` writes, would take twice the memory and several times the time.
    """
    if device_type == "cpu":
        return torch.float32
    return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16


def float_dtype(field, dtype):
    """The torch dtype of a name or dtype; `field` is for the message."""
    name = dtype_name(dtype)
    if name not in ("float32", "bfloat16", "float16"):
        raise InputError(f"{field} = {name!r}: use float32, bfloat16 or float16")
    return getattr(torch, name)


def dtype_name(dtype: torch.dtype | str) -> str:
    """`"bfloat16"` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
