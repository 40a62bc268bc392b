"""The definition of every op in plain PyTorch, under the op's own name."""

from cdgen_kernels.reference.layers import (
    add_rms_norm,
    dropped,
    linear_rows,
    paged_attention,
    rope_and_store,
    silu_mul,
)
from cdgen_kernels.reference.noise import gumbel, philox, philox_block
from cdgen_kernels.reference.sampling import (
    allowed_logits,
    contrastive_sample,
    contrastive_scores,
    gather_logits,
    keep_top,
    linear_cross_entropy,
    log_softmax,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
)

__all__ = [
    "add_rms_norm",
    "allowed_logits",
    "contrastive_sample",
    "contrastive_scores",
    "dropped",
    "gather_logits",
    "gumbel",
    "keep_top",
    "linear_cross_entropy",
    "linear_rows",
    "log_softmax",
    "paged_attention",
    "philox",
    "philox_block",
    "rope_and_store",
    "sample_candidates",
    "select_candidates",
    "select_candidates_linear",
    "silu_mul",
]
