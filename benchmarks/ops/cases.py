"""The table of ops that are compiled ahead of time and timed on a GPU, each at several sizes and dtypes."""

from dataclasses import dataclass

import torch

from benchmarks.ops.layers import LAYER_OPS
from benchmarks.ops.linear import LINEAR_OPS
from benchmarks.ops.op import Inputs, Op
from benchmarks.ops.prefill import PREFILL_OPS
from benchmarks.ops.sampling import SAMPLING_OPS
from benchmarks.ops.shared import SHARED_OPS

OPS = SAMPLING_OPS + LINEAR_OPS + LAYER_OPS + PREFILL_OPS + SHARED_OPS


@dataclass(frozen=True)
class Case:
    """An op at one dtype, batch and size."""

    op: Op
    dtype: torch.dtype
    batch: int
    size: int

    def __str__(self) -> str:
        return f"{self.op.name}, {str(self.dtype)[6:]} [{self.batch}, {self.size}]"

    def make(self, device: str | torch.device, seed: int = 0) -> Inputs:
        return self.op.make(self.batch, self.size, self.dtype, torch.device(device), seed)


def cases() -> list[Case]:
    """Return every case, the most informative first."""
    return [
        Case(op, dtype, op.batches[i], op.sizes[j])
        for i in range(2)
        for j in range(2)
        for op in OPS
        for dtype in op.dtypes
        if i < len(op.batches)
    ]
