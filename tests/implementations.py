"""The implementations that can run here, under one call, for tests that hold each to the same claim."""

from cdgen_kernels import cpp, ops, reference

_MODULES = {"reference": reference, "cpp": cpp}
IMPLEMENTATIONS = ["reference"] + ["cpp"] * cpp.available()[0]


def run_sample(implementation, good, bad, rows, *, outside_head="mask", banned=None, vocab_size=None, logprobs=False):
    """`ops.sample` of a named implementation, faults left in the tokens."""
    vocab_size = vocab_size or min(x.shape[1] for x in (good, bad) if x is not None)
    outside = ops._outside(outside_head)
    return _MODULES[implementation].sample(good, bad, rows, banned, vocab_size, *outside, logprobs)
