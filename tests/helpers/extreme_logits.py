"""Rows of logits at the limits of float32, for tests that hold every implementation to the reference."""

import torch
from torch import Tensor

BIG = torch.finfo(torch.float32).max  # -BIG masks tokens in transformers
OFFSETS = (6e5, 3e14, 1e17, BIG, -1e17, -BIG)


def extreme_rows(vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return float32 logits of GOOD and BAD [rows, vocab_size] whose size or spread is extreme, all finite."""
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(vocab_size, generator=generator)

    def masked(value: float) -> Tensor:
        return torch.where(torch.rand(vocab_size, generator=generator) < 0.5, value, normal())

    flat = torch.ones(vocab_size)
    huge = normal(1e17)
    pairs = [(z * flat, normal()) for z in OFFSETS]
    pairs += [(normal(), z * flat) for z in OFFSETS]
    pairs += [(BIG * flat, BIG * flat), (BIG * flat, -BIG * flat), (-BIG * flat, BIG * flat)]
    pairs += [(huge, huge), (huge, normal()), (normal(), huge), (huge, normal(1e17))]
    pairs += [(masked(value), normal()) for value in (-BIG, BIG)]
    pairs += [(normal(), masked(value)) for value in (-BIG, BIG)]
    good, bad = (torch.stack(rows) for rows in zip(*pairs, strict=True))
    return good, bad
