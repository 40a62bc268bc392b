"""Ops of the C++ implementation that have no kernel of their own: torch operations combined with C++ kernels."""

from typing import Any

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


def paged_attention_fp8(q: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
    """Convert the whole cache to float32, then compute its attention in C++."""
    *arguments, key_scales, value_scales = rest
    wide = (keys.float() * key_scales.unsqueeze(-1), values.float() * value_scales.unsqueeze(-1))
    out: Tensor = torch.ops.cdgen.paged_attention.default(q, *wide, *arguments)
    return out
