"""The implementations that can run here, under one call, for tests that hold each to the same claim."""

import torch

from cdgen_kernels import ops, reference
from cdgen_kernels.sampling_tensors import Candidates, Samples

IMPLEMENTATIONS = ["reference"] + ["cpp"] * (ops.implementation("cpu")[0] == "cpp")
NO_CPP = "the C++ extension does not run: " + ops.implementation("cpu")[1]


def run_head(implementation, good, margin, banned, vocab_size, capacity):
    """`ops.head` of a named implementation, faults left in the counts."""
    if implementation == "reference":
        return reference.select_candidates(good, margin, banned, vocab_size, capacity)
    return Candidates(*torch.ops.cdgen.select_candidates(good, margin, banned, vocab_size, capacity))


def run_sample(implementation, good, bad, rows, *, outside_head="mask", banned=None, vocab_size=None, logprobs=False):
    """`ops.sample` of a named implementation, faults left in the tokens."""
    vocab_size = vocab_size or min(x.shape[1] for x in (good, bad) if x is not None)
    rest = (banned, vocab_size, *ops._outside(outside_head), logprobs)
    if implementation == "reference":
        return reference.contrastive_sample(good, bad, rows, *rest)
    token, logprob = torch.ops.cdgen.contrastive_sample(good, bad, *rows, *rest)
    return Samples(token, *logprob.unbind(0)) if logprobs else Samples(token)


def run_sample_candidates(implementation, candidates, bad, rows, vocab_size, logprobs, gathered=False):
    """`ops.sample_candidates` of a named implementation, faults left in the tokens."""
    if implementation == "reference":
        return reference.sample_candidates(candidates, bad, rows, vocab_size, gathered, logprobs)
    token, logprob = torch.ops.cdgen.sample_candidates(*candidates, bad, *rows, vocab_size, gathered, logprobs)
    return Samples(token, logprob if logprobs else None)
