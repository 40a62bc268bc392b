"""Fused kernels for contrastive decoding: sampling, decoder layers on a paged cache, and a cross entropy loss.

    sampling = make_sampling_tensors(batch, alpha=0.1, contrast_strength=1.0, seed=0)
    token = contrastive_sample(good_logits, bad_logits, sampling).token  # [B]

The package needs only torch. The ops run in Triton for CUDA tensors if Triton is installed, in C++ for CPU tensors if
the extension is built, and in plain PyTorch otherwise.
"""

from cdgen_kernels.cross_entropy import linear_cross_entropy
from cdgen_kernels.layers import add_rms_norm, paged_attention, rope_and_store, silu_mul
from cdgen_kernels.ops import (
    RowFault,
    contrastive_sample,
    gather_logits,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
)
from cdgen_kernels.registry import implementation, register
from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors, make_sampling_tensors
from cdgen_kernels.specs import SPECS

__version__ = "0.1.0"
__all__ = [
    "Candidates",
    "RowFault",
    "Samples",
    "SamplingTensors",
    "__version__",
    "add_rms_norm",
    "contrastive_sample",
    "gather_logits",
    "implementation",
    "linear_cross_entropy",
    "make_sampling_tensors",
    "paged_attention",
    "rope_and_store",
    "sample_candidates",
    "select_candidates",
    "select_candidates_linear",
    "silu_mul",
]

register(*SPECS)
