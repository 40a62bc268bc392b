"""Faults of rows in the Triton kernels: the codes of the reference, for edited parameters and lists made by hand."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tools.ptx_sim.versions import needs_interpreter


@pytest.mark.slow
@needs_interpreter
def test_the_triton_kernels_return_the_codes_of_the_reference() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import math, torch
from cdgen_kernels import SamplingTensors, make_sampling_tensors, reference
from cdgen_kernels.codes import CONSTANT, MASK
from cdgen_kernels.triton import candidates, linear, sample
from tests.kernels.test_faults import HAND_MADE, NAN, lists

torch.manual_seed(0)
bad = torch.randn(2, 50)
sampling = make_sampling_tensors(2, top_k=2)
for made, code in HAND_MADE:
    for logits, gathered in ((bad, False), (bad[:, :4].contiguous(), True), (None, False)):
        rest = (made, logits, sampling, 50, gathered, False)
        wanted, got = (m.sample_candidates(*rest).token for m in (reference, candidates))
        assert got.equal(wanted), (made, code, got, wanted)

edited = lists([1, 5, 7], [3.0, 2.0, -math.inf], best=1e17)  # scores do not depend on the maximum
for seed in range(20):
    rest = (edited, None, make_sampling_tensors(2, seed=seed), 50, False, True)
    wanted, got = (m.sample_candidates(*rest) for m in (reference, candidates))
    assert got.token.equal(wanted.token)
    torch.testing.assert_close(got.logprob, wanted.logprob)

good = torch.randn(2, 50)
hidden, weight = torch.randn(2, 16), torch.randn(50, 16)
for field in SamplingTensors._fields[:6]:
    for value in (NAN, -1.0, math.inf, 2.0):
        edited = make_sampling_tensors(2, alpha=0.3)
        column = getattr(edited, field)
        if math.isfinite(value) or column.is_floating_point():
            column[1] = value
        rest = (good, bad, edited, None, 50, MASK, 0.0, False)
        wanted, got = (m.contrastive_sample(*rest).token for m in (reference, sample))
        assert got.equal(wanted), (field, value, got, wanted)
        wanted, got = (m.select_candidates(good, edited.margin, None, 50, 8).count for m in (reference, candidates))
        assert got.equal(wanted), (field, value, got, wanted)
        rest = (hidden, weight, edited.margin, None, 50, 50)
        wanted, got = (m.select_candidates_linear(*rest).count for m in (reference, linear))
        assert got.equal(wanted), (field, value, got, wanted)

made = lists([1, 60, 2**31 - 1, -5], count=4)
logits = linear.gather_logits(hidden, weight, made.token, made.count)
assert logits[1].isnan().tolist() == [False, True, True, True] and not logits[0].isnan().any()
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
