"""The C++ implementation for CPU tensors: the extension under the signatures of :mod:`cdgen_kernels.reference`."""

import functools
import importlib
import importlib.util

import torch

from cdgen_kernels.rows import HeadCandidates, Samples


@functools.cache
def available():
    """(whether the extension can be used, one line that says why)."""
    if importlib.util.find_spec("cdgen_kernels._C") is None:
        return False, "the C++ extension is not built: `pip install --no-build-isolation` with a C++ compiler builds it"
    try:
        importlib.import_module("cdgen_kernels._C")  # registers torch.ops.cdgen_cpp
    except (ImportError, OSError) as error:
        return False, f"the C++ extension does not load: {error}"
    return True, "the C++ extension is loaded"


def head(good, margin, banned, vocab_size, capacity):
    return HeadCandidates(*torch.ops.cdgen_cpp.head(good, margin, banned, vocab_size, capacity))


def sample(good, bad, rows, banned, vocab_size, outside, value, logprobs):
    return Samples(*torch.ops.cdgen_cpp.sample(good, bad, *rows, banned, vocab_size, outside, value, logprobs))


def contrast_sample(candidates, bad, rows, vocab_size, logprobs):
    return torch.ops.cdgen_cpp.contrast_sample(*candidates, bad, *rows, vocab_size, logprobs)
