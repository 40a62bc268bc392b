"""The definition of every op, in plain PyTorch, under the op's own name."""

from cdgen_kernels.reference.layers import add_rms_norm, dropped, paged_attention, rope_and_store
from cdgen_kernels.reference.noise import gumbel, philox, philox_block
from cdgen_kernels.reference.sampling import (
    contrast_sample,
    contrastive_scores,
    gathered_scores,
    head,
    keep_top,
    linear_cross_entropy,
    linear_head,
    sample,
)

__all__ = [
    "add_rms_norm",
    "contrast_sample",
    "contrastive_scores",
    "dropped",
    "gathered_scores",
    "gumbel",
    "head",
    "keep_top",
    "linear_cross_entropy",
    "linear_head",
    "paged_attention",
    "philox",
    "philox_block",
    "rope_and_store",
    "sample",
]
