"""One way to call each implementation that runs on this machine, for tests that hold all of them to the same claim."""

import torch
from torch import Tensor

from cdgen_kernels import Candidates, Samples, SamplingTensors, implementation, reference
from cdgen_kernels.checks import outside_mode
from cdgen_kernels.codes import OutsideHead

IMPLEMENTATIONS = ["reference"] + ["cpp"] * (implementation("cpu").name == "cpp")
NO_CPP = "the C++ extension does not run: " + implementation("cpu").reason


def run_select_candidates(
    implementation: str, good: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> Candidates:
    """Call select_candidates of an implementation, without raising for faults: they stay in the counts."""
    if implementation == "reference":
        return reference.select_candidates(good, margin, banned, vocab_size, capacity)
    return Candidates(*torch.ops.cdgen.select_candidates(good, margin, banned, vocab_size, capacity))


def run_sample(
    implementation: str,
    good: Tensor,
    bad: Tensor | None,
    sampling: SamplingTensors,
    *,
    outside_head: OutsideHead = "mask",
    banned: Tensor | None = None,
    vocab_size: int | None = None,
    logprobs: bool = False,
) -> Samples:
    """Call contrastive_sample of an implementation, without raising for faults: they stay in the tokens."""
    vocab_size = vocab_size or min(x.shape[1] for x in (good, bad) if x is not None)
    rest = (banned, vocab_size, *outside_mode(outside_head), logprobs)
    if implementation == "reference":
        return reference.contrastive_sample(good, bad, sampling, *rest)
    token, logprob = torch.ops.cdgen.contrastive_sample(good, bad, *sampling, *rest)
    return Samples(token, *logprob.unbind(0)) if logprobs else Samples(token)


def run_sample_candidates(
    implementation: str,
    candidates: Candidates,
    bad: Tensor | None,
    sampling: SamplingTensors,
    vocab_size: int,
    logprobs: bool,
    gathered: bool = False,
) -> Samples:
    """Call sample_candidates of an implementation, without raising for faults: they stay in the tokens."""
    if implementation == "reference":
        return reference.sample_candidates(candidates, bad, sampling, vocab_size, gathered, logprobs)
    token, logprob = torch.ops.cdgen.sample_candidates(*candidates, bad, *sampling, vocab_size, gathered, logprobs)
    return Samples(token, logprob if logprobs else None)
