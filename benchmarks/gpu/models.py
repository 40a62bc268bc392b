"""Models with random weights, created on the device, so that no files are needed."""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from benchmarks.generation import random_llama


class Shape(NamedTuple):
    """The sizes of a Llama."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocab_size: int = 32_000
    kv_heads: int | None = None
    tied: bool = False


PAPER = Shape(12, 768, 12, 3072)
PAPER_20X = Shape(6, 256, 4, 1024)
LLAMA3_8B = Shape(32, 4096, 32, 14_336, 128_256, 8)
LLAMA3_1B = Shape(16, 2048, 32, 8192, 128_256, 8, True)
DRY = Shape(2, 64, 4, 128, 500, 2)


def make(shape: Shape, seed: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Create a model. On the CPU, in a dry run, it is tiny, whatever the shape."""
    shape = DRY if device.type == "cpu" else shape
    return random_llama(**shape._asdict(), seed=seed, device=device, dtype=dtype)
