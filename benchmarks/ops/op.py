"""The description of an op that the ahead-of-time table and the GPU run share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Inputs = tuple[Any, ...]
Outputs = dict[str, torch.Tensor]

BFLOAT16 = (torch.bfloat16,)
USUAL = (torch.bfloat16, torch.float32)
ALL = (torch.bfloat16, torch.float16, torch.float32)


def _no_flops(*inputs: Any) -> int:
    return 0


def _no_floats(outputs: Outputs, *inputs: Any) -> Outputs:
    return {}


def exact_floats(outputs: Outputs, *inputs: Any) -> Outputs:
    """Serve as `torch_floats` of an op whose float outputs must equal the reference's exactly."""
    return outputs


@dataclass(frozen=True, eq=False)
class Op:
    """One op, called in one way.

    Below, `inputs` are the results of `make`, and outputs are a dict {name: tensor [B, ...]}.
    """

    name: str
    make: Callable[..., Inputs]  # (batch, size, dtype, device, seed) -> inputs, a tuple
    fused: Callable[..., Outputs]  # (*inputs) -> outputs of the op's Triton launcher
    reference: Callable[..., Outputs]  # (*inputs) -> outputs by the definition in cdgen_kernels.reference
    eager: Callable[..., Any]  # (*inputs) -> anything; the usual PyTorch code for it
    streams: tuple[str, ...]  # names, in the kernels' source, of the pointers through which most bytes are read
    bytes: Callable[..., int]  # (*inputs) -> bytes that must be read and written, without small tensors
    flops: Callable[..., int] = _no_flops  # (*inputs) -> multiplications and additions of matrix products
    torch_floats: Callable[..., Outputs] = _no_floats  # (outputs, *inputs) -> float outputs as torch computes them
    rivals: dict[str, Callable[..., Any]] = field(default_factory=dict)  # name -> (*inputs) -> anything
    dtypes: tuple[torch.dtype, ...] = USUAL
    batches: tuple[int, ...] = (128, 1)
    sizes: tuple[int, ...] = (128_256, 32_000)  # vocabulary sizes, or another size of the op; the paper's is last
    counted: tuple[int, int] = (2, 32_000)  # batch and size of the call whose instructions are counted
    compiled: bool = True  # False: its kernels are those of another entry
