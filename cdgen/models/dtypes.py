"""Dtypes of weights and caches: names and defaults."""

import torch

from cdgen.errors import InputError

FP8 = torch.float8_e4m3fn
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CACHE_DTYPES = {**DTYPES, "fp8": FP8}


def default_dtype(stored: torch.dtype | None, device_type: str) -> torch.dtype:
    """Return the dtype that weights are loaded in by default.

    It is float32 on the CPU. Elsewhere it is the checkpoint's own dtype if that has 16 bits, else bfloat16: float32
    weights, which `cdgen train` writes, would take twice the memory and several times the time.

    Args:
        stored: dtype that the checkpoint's config states, or None.
        device_type: "cpu" or the type of another device.
    """
    if device_type == "cpu":
        return torch.float32
    return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16


def float_dtype(field: str, dtype: torch.dtype | str) -> torch.dtype:
    """Return the torch dtype for a name or dtype of :data:`DTYPES`.

    Raises:
        InputError: any other dtype; the message starts with `field`.
    """
    return _chosen(field, dtype, DTYPES)


def cache_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the torch dtype for a name or dtype of :data:`CACHE_DTYPES`.

    Raises:
        InputError: any other dtype; the message starts with `kv_cache_dtype`.
    """
    return _chosen("kv_cache_dtype", dtype, CACHE_DTYPES)


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return `"bfloat16"` for torch.bfloat16, and `"fp8"` for torch.float8_e4m3fn."""
    return "fp8" if dtype == FP8 else str(dtype).removeprefix("torch.")


def _chosen(field: str, dtype: torch.dtype | str, choices: dict[str, torch.dtype]) -> torch.dtype:
    name = dtype_name(dtype)
    if name not in choices:
        *names, last = choices
        raise InputError(f"{field} = {name!r}: use {', '.join(names)} or {last}")
    return choices[name]
