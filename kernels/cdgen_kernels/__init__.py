"""Fused kernels for contrastive decoding: sampling, decoder layers on a paged cache, and a cross entropy loss.

    sampling = make_rows(batch, alpha=0.1, contrast_strength=1.0, seed=0)
    token = sample(good_logits, bad_logits, sampling).token  # [B]

The package needs torch alone. On CUDA tensors the ops run in Triton if it is installed, on CPU tensors in C++ if the
extension is built, and otherwise in plain PyTorch.
"""

from importlib.metadata import PackageNotFoundError, version

from cdgen_kernels.cross_entropy import linear_cross_entropy
from cdgen_kernels.layers import add_rms_norm, paged_attention, rope_and_store
from cdgen_kernels.ops import RowFault, contrast_sample, gathered_scores, head, linear_head, sample
from cdgen_kernels.registry import implementation
from cdgen_kernels.sampling_tensors import HeadCandidates, Rows, Samples, make_rows

try:
    __version__ = version("cdgen")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "unknown"

__all__ = [
    "HeadCandidates",
    "RowFault",
    "Rows",
    "Samples",
    "__version__",
    "add_rms_norm",
    "contrast_sample",
    "gathered_scores",
    "head",
    "implementation",
    "linear_cross_entropy",
    "linear_head",
    "make_rows",
    "paged_attention",
    "rope_and_store",
    "sample",
]
