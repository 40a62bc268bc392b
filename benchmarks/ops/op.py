"""An op as the ahead-of-time table and the GPU benchmark see it, and the numbers that all ops are fed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Inputs = tuple[Any, ...]
Outputs = dict[str, torch.Tensor]

ALPHA = 0.1
BFLOAT16 = (torch.bfloat16,)
USUAL = (torch.bfloat16, torch.float32)
ALL = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class Op:
    """One op, called in one way. `inputs` below are what `make` gives, and outputs are {name: tensor [B, ...]}."""

    name: str
    make: Callable  # (batch, size, dtype, device, seed) -> inputs, a tuple
    fused: Callable  # (*inputs) -> outputs of the op's Triton launcher
    plain: Callable  # (*inputs) -> outputs by the definition in cdgen_kernels.reference
    eager: Callable  # (*inputs) -> whatever; what one would write in PyTorch
    streams: tuple  # names, in the kernels' source, of pointers to what there is most of
    bytes: Callable  # (*inputs) -> bytes that have to be read and written, small things left out
    flops: Callable = lambda *inputs: 0  # (*inputs) -> multiplications and additions of matrix products
    torch_floats: Callable = lambda outputs, *inputs: {}  # float outputs as torch computes them from such inputs
    rivals: dict = field(default_factory=dict)  # name -> (*inputs) -> whatever
    dtypes: tuple = USUAL
    batches: tuple = (128, 1)
    sizes: tuple = (128_256, 32_000)  # of the vocabulary, or what else an op has; the paper's last
    counted: tuple = (2, 32_000)  # batch and size of the run that counts instructions
    compiled: bool = True  # False: another entry has its kernels


def zipf_like(batch: int, vocab_size: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """float32 [B, V]; every row is the same ranking, begun at another place, with noise of its own.

    The token of rank r has -log1p(r), so that alpha = 0.1 leaves a head of about 10.
    """
    ranks = torch.randperm(vocab_size, device=device, generator=generator)
    first = torch.randint(vocab_size, (batch, 1), device=device, generator=generator)
    rank = ranks[(torch.arange(vocab_size, device=device) + first) % vocab_size]
    noise = torch.randn(batch, vocab_size, device=device, generator=generator)
    return noise.mul_(0.2).sub_(torch.log1p(rank.float()))
