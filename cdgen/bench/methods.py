"""The compared sampling methods: the parameters of the op, and the same method in other libraries."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cdgen.bench import rivals
from cdgen.bench.rivals import ALPHA, TOP_K, TOP_P, TOP_P_OF_TOP_K, Rival
from cdgen_kernels import SamplingTensors, contrastive_sample, make_sampling_tensors

FUSED = "cdgen_kernels"


@dataclass(frozen=True)
class Method:
    """One way to sample."""

    name: str
    parameters: dict[str, Any]  # for make_sampling_tensors
    rivals: dict[str, Rival]  # the keys are names; the first rival is also run under torch.compile
    has_bad: bool = False

    def sampling(self, batch: int, device: torch.device) -> SamplingTensors:
        """Return the parameters of a batch."""
        return make_sampling_tensors(batch, seed=1, device=device, **self.parameters)

    def fused(self, sampling: SamplingTensors) -> Rival:
        """Return the op as a function of both models' logits."""
        return partial(_fused, sampling, self.has_bad)


def _fused(sampling: SamplingTensors, has_bad: bool, good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
    return contrastive_sample(good, bad if has_bad else None, sampling).token


METHODS = (
    Method(
        f"contrastive, alpha {ALPHA}",
        {"alpha": ALPHA, "contrast_strength": 1.0},
        {
            "torch eager": rivals.literal_chain,
            "torch eager, race of candidates": rivals.strongest_torch,
            "transformers": rivals.transformers_contrastive,
        },
        has_bad=True,
    ),
    Method(
        f"min-p {ALPHA}",
        {"alpha": ALPHA, "contrast_strength": 0.0},
        {
            "torch eager": rivals.torch_min_p,
            "transformers": rivals.transformers_min_p,
            "FlashInfer": rivals.flashinfer_min_p,
        },
    ),
    Method(
        f"top-k {TOP_K}, top-p {TOP_P_OF_TOP_K}",
        {"alpha": 0.0, "contrast_strength": 0.0, "top_k": TOP_K, "top_p": TOP_P_OF_TOP_K},
        {
            "torch eager": rivals.torch_top_k_top_p,
            "transformers": rivals.transformers_top_k_top_p,
            "FlashInfer": rivals.flashinfer_top_k_top_p,
        },
    ),
    Method(
        f"top-p {TOP_P}",
        {"alpha": 0.0, "contrast_strength": 0.0, "top_p": TOP_P},
        {
            "torch eager": rivals.torch_top_p,
            "transformers": rivals.transformers_top_p,
            "FlashInfer": rivals.flashinfer_top_p,
        },
    ),
    Method(
        "ancestral",
        {"alpha": 0.0, "contrast_strength": 0.0},
        {"torch eager": rivals.torch_ancestral, "FlashInfer": rivals.flashinfer_ancestral},
    ),
)
