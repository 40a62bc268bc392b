"""Table entries of `contrastive_sample`, `select_candidates` and `sample_candidates`."""

import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.ops.op import ALL, BFLOAT16, Inputs, Op, Outputs, exact_floats
from cdgen.bench import rivals
from cdgen.bench.logits import make_pair
from cdgen.bench.rivals import ALPHA, TOP_K, TOP_P, TOP_P_OF_TOP_K, Rival
from cdgen_kernels import Candidates, Samples, SamplingTensors, codes, make_sampling_tensors, reference

CAPACITY = 256  # length of the candidate lists


def sampling_inputs(has_bad: bool = True, **parameters: Any) -> Callable[..., Inputs]:
    """Return `make` of an op with inputs (GOOD's logits [B, V], BAD's or None, sampling).

    The seed is also the seed of the noise.
    """

    def make(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        good, bad = make_pair(batch, vocab_size, dtype, device, seed)
        strength = 1.0 if has_bad else 0.0
        settings = dict(alpha=ALPHA, contrast_strength=strength, position=1) | parameters
        return good, bad if has_bad else None, make_sampling_tensors(batch, seed=seed, device=device, **settings)

    return make


def triton_contrastive_sample(*arguments: Any) -> Samples:
    from cdgen_kernels.triton import sample as triton_sample  # imported here: the reference works without Triton

    return triton_sample.contrastive_sample(*arguments)


def sampling_call(
    implementation: Callable[..., Samples], outside: int = codes.MASK, value: float = 0.0, logprobs: bool = False
) -> Callable[..., Outputs]:
    """Return a function (*inputs) -> outputs that calls an implementation of `contrastive_sample`."""

    def call(
        good: torch.Tensor, bad: torch.Tensor | None, sampling: SamplingTensors, banned: torch.Tensor | None = None
    ) -> Outputs:
        samples = implementation(good, bad, sampling, banned, good.shape[1], outside, value, logprobs)
        return {name: x for name, x in samples._asdict().items() if x is not None}

    return call


def good_bytes(good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors) -> int:
    return good.nbytes


def good_and_bad_bytes(good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors) -> int:
    return good.nbytes + bad.nbytes


def as_variant(rival: Rival) -> Callable[..., torch.Tensor]:
    """Return a function (*inputs) -> tokens [B] that calls a rival, which has its own parameters."""

    def call(good: torch.Tensor, bad: torch.Tensor | None, sampling: SamplingTensors) -> torch.Tensor:
        return rival(good, good if bad is None else bad)

    return call


def paper_eager(good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors) -> torch.Tensor:
    """Sample as the paper's program does: tokens outside the candidates score -20."""
    good, bad = torch.log_softmax(good.float(), -1), torch.log_softmax(bad.float(), -1)
    is_candidate = good >= math.log(ALPHA) + good.amax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(torch.where(is_candidate, good - bad, -20.0), -1), 1)


def logprobs_eager(good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors) -> Outputs:
    return sampled_floats({"token": rivals.literal_chain(good, bad)}, good, bad, sampling)


def sampled_floats(outputs: Outputs, good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors) -> Outputs:
    """Return the three log-probabilities of given tokens, computed in float32."""
    token = outputs["token"].unsqueeze(1)
    good, bad = good.float(), bad.float()
    is_candidate = good >= good.amax(-1, keepdim=True) - sampling.margin.unsqueeze(1)
    distributions = {
        "logprob": torch.where(is_candidate, good - bad, -torch.inf),
        "good_logprob": good,
        "bad_logprob": bad,
    }
    return {name: torch.log_softmax(x, -1).gather(1, token).squeeze(1) for name, x in distributions.items()}


def sample_op(
    name: str, eager: Callable[..., Any], inputs: dict[str, Any], options: dict[str, Any], **fields: Any
) -> Op:
    """Return an entry of `contrastive_sample`.

    Args:
        inputs: arguments of :func:`sampling_inputs`. options: arguments of the op: outside, value, logprobs.
        fields: further fields of :class:`Op`.
    """
    return Op(
        f"contrastive_sample, {name}",
        sampling_inputs(**inputs),
        sampling_call(triton_contrastive_sample, **options),
        sampling_call(reference.contrastive_sample, **options),
        eager,
        streams=("groups_ptr",),
        **fields,
    )


# ------------------------------------------------------------------------------ select_candidates, sample_candidates


def select_candidates_reference(
    good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors, banned: torch.Tensor | None = None
) -> Outputs:
    return reference.select_candidates(good, sampling.margin, banned, good.shape[1], CAPACITY)._asdict()


def select_candidates_fused(
    good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors, banned: torch.Tensor | None = None
) -> Outputs:
    from cdgen_kernels.triton import candidates as triton_candidates

    return triton_candidates.select_candidates(good, sampling.margin, banned, good.shape[1], CAPACITY)._asdict()


def select_candidates_eager(
    good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors
) -> tuple[torch.Tensor, ...]:
    logit, token = good.float().topk(CAPACITY)
    inside = logit >= logit[:, :1] - sampling.margin.unsqueeze(1)
    return torch.where(inside, token, -1), torch.where(inside, logit, -torch.inf), inside.sum(1), logit[:, 0]


def sample_candidates_inputs(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Inputs:
    """Return (candidates, BAD's logits [B, V], sampling)."""
    good, bad, sampling = sampling_inputs()(batch, vocab_size, dtype, device, seed)
    return reference.select_candidates(good, sampling.margin, None, vocab_size, CAPACITY), bad, sampling


def sample_candidates_reference(candidates: Candidates, bad: torch.Tensor, sampling: SamplingTensors) -> Outputs:
    return {"token": reference.sample_candidates(candidates, bad, sampling, bad.shape[1], False, False).token}


def sample_candidates_fused(candidates: Candidates, bad: torch.Tensor, sampling: SamplingTensors) -> Outputs:
    from cdgen_kernels.triton import candidates as triton_candidates

    return {"token": triton_candidates.sample_candidates(candidates, bad, sampling, bad.shape[1], False, False).token}


def sample_candidates_eager(candidates: Candidates, bad: torch.Tensor, sampling: SamplingTensors) -> torch.Tensor:
    score = candidates.logit - bad.gather(1, candidates.token.clamp(min=0).long())
    index = torch.multinomial(torch.softmax(score, -1), 1)
    return candidates.token.gather(1, index)


def candidates_bytes(candidates: Candidates, bad: torch.Tensor, sampling: SamplingTensors) -> int:
    return int(candidates.count.sum()) * (4 + 4 + bad.element_size())


SAMPLING_OPS = [
    sample_op(
        "contrastive",
        as_variant(rivals.literal_chain),
        {},
        {},
        bytes=good_bytes,
        rivals={"strongest eager": as_variant(rivals.strongest_torch)},
        dtypes=ALL,
    ),
    sample_op(
        "min-p",
        as_variant(rivals.torch_min_p),
        dict(has_bad=False),
        {},
        bytes=good_bytes,
        rivals={"FlashInfer": as_variant(rivals.flashinfer_min_p)},
        dtypes=BFLOAT16,
    ),
    sample_op(
        "ancestral",
        as_variant(rivals.torch_ancestral),
        dict(has_bad=False, alpha=0),
        {},
        bytes=good_bytes,
        rivals={"FlashInfer": as_variant(rivals.flashinfer_ancestral)},
        dtypes=BFLOAT16,
    ),
    sample_op(
        f"top-k {TOP_K}, top-p {TOP_P_OF_TOP_K}",
        as_variant(rivals.torch_top_k_top_p),
        dict(has_bad=False, alpha=0, top_k=TOP_K, top_p=TOP_P_OF_TOP_K),
        {},
        bytes=good_bytes,
        rivals={"FlashInfer": as_variant(rivals.flashinfer_top_k_top_p)},
        dtypes=BFLOAT16,
    ),
    sample_op(
        f"top-p {TOP_P}",
        as_variant(rivals.torch_top_p),
        dict(has_bad=False, alpha=0, top_p=TOP_P),
        {},
        bytes=good_bytes,
        rivals={"FlashInfer": as_variant(rivals.flashinfer_top_p)},
        dtypes=BFLOAT16,
        compiled=False,
    ),
    sample_op(
        "contrastive, log-probabilities",
        logprobs_eager,
        {},
        dict(logprobs=True),
        bytes=good_and_bad_bytes,
        torch_floats=sampled_floats,
        dtypes=BFLOAT16,
    ),
    sample_op(
        "outside_head -20",
        paper_eager,
        {},
        dict(outside=codes.CONSTANT, value=-20.0),
        bytes=good_and_bad_bytes,
        dtypes=BFLOAT16,
    ),
    Op(
        "select_candidates",
        sampling_inputs(has_bad=False),
        select_candidates_fused,
        select_candidates_reference,
        select_candidates_eager,
        streams=("groups_ptr",),
        bytes=good_bytes,
        torch_floats=exact_floats,
    ),
    Op(
        "sample_candidates",
        sample_candidates_inputs,
        sample_candidates_fused,
        sample_candidates_reference,
        sample_candidates_eager,
        streams=(),
        bytes=candidates_bytes,
    ),
]
