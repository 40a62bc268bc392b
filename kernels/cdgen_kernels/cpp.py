"""Ops of the C++ implementation that have no kernel of their own: torch operations combined with C++ kernels."""

import torch
from torch import Tensor


def select_candidates_linear(
    hidden: Tensor, weight: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the logits with torch's matrix product, then select candidates from them in C++."""
    logits = hidden.float() @ weight[:vocab_size].float().mT
    found: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.cdgen.select_candidates.default(
        logits, margin, banned, vocab_size, capacity
    )
    return found
