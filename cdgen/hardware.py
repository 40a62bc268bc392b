"""Data sheets of GPUs, the free memory and matrix precision of a device, and copies to it."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Machine:
    """The limits of a device."""

    memory: float  # bytes
    bandwidth: float  # bytes/s
    matmul: float  # FLOP/s of matrix products


GPUS = {  # from the vendors' data sheets; matrix products of dense 16-bit matrices
    "a100": Machine(80e9, 2.039e12, 312e12),
    "h100": Machine(80e9, 3.35e12, 989e12),
    "h200": Machine(141e9, 4.8e12, 989e12),
    "b200": Machine(180e9, 8e12, 2250e12),
}

_tf32_lock = threading.Lock()
_tf32_contexts = 0  # number of open contexts that rely on the setting


def data_sheet(device: torch.device) -> Machine | None:
    """Return the entry of :data:`GPUS` for a CUDA device; None for other devices and unknown cards."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((machine for key, machine in GPUS.items() if key in name), None)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a CUDA device, including what torch caches for reuse.

    Return None for other devices: there, the operating system decides.
    """
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def free_memory_text(device: torch.device, free: int | None) -> str:
    """Describe what :func:`free_memory` returned, for an error message."""
    return f"{device} has not enough memory" if free is None else f"{device} has {free / 1e9:.2f} GB free"


def to_device(numbers: npt.ArrayLike, device: torch.device) -> torch.Tensor:
    """Return numbers as a tensor on a device. `torch.tensor(numbers, device=device)` would wait for the device."""
    # Safe without blocking: the driver copies unpinned memory before it returns.
    return torch.as_tensor(np.asarray(numbers)).to(device, non_blocking=True)


@contextlib.contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Compute float32 matrix products on a CUDA device in TF32 within the context ("high" precision in torch's terms).

    A precision that the user has set, with either of torch's two interfaces, stands. NVIDIA_TF32_OVERRIDE=0 keeps
    float32. Contexts may overlap in several threads: the last one to end restores the setting.
    """
    global _tf32_contexts
    mkldnn: Any = torch.backends.mkldnn  # its attribute has no type
    matmul, on_cpu = torch.backends.cuda.matmul, mkldnn.matmul
    with _tf32_lock:
        ours = device.type == "cuda" and (_tf32_contexts > 0 or matmul.fp32_precision == "none")
        if ours and not _tf32_contexts:
            before = on_cpu.fp32_precision
            # Not matmul.fp32_precision: torch's older getters, which other libraries call, would raise.
            torch.set_float32_matmul_precision("high")
            on_cpu.fp32_precision = before
        _tf32_contexts += ours
    try:
        yield
    finally:
        with _tf32_lock:
            _tf32_contexts -= ours
            if ours and not _tf32_contexts:
                before = on_cpu.fp32_precision
                torch.set_float32_matmul_precision("highest")
                matmul.fp32_precision, on_cpu.fp32_precision = "none", before
