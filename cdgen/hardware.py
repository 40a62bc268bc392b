"""What the device at hand offers."""

import contextlib
from collections.abc import Iterator

import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a CUDA device: free ones, and those that torch keeps for reuse.

    None for other devices, where the operating system decides.
    """
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def free_memory_text(device: torch.device) -> str:
    """The amount that is free, for an error message."""
    free = free_memory(device)
    return f"{device} has not enough memory" if free is None else f"{device} has {free / 1e9:.2f} GB free"


@contextlib.contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices on a CUDA device in TF32 ("high" precision in torch's terms) within the context.

    A precision that the user set other than torch's default stands. NVIDIA_TF32_OVERRIDE=0 keeps float32 exact.
    """
    changed = False
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # the user set it through torch.backends' newer fp32_precision
            changed = torch.get_float32_matmul_precision() == "highest"
    if changed:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if changed:
            torch.set_float32_matmul_precision("highest")
