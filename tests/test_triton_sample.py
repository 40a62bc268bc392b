"""The Triton sampling kernel without a GPU: its compiled PTX is executed, and its source runs in Triton's interpreter.

Scores and noise are float32 there and float64 in the reference. They draw the same token unless the two best noisy
scores lie within about 1e-5 of each other; the seeds here have no such tie.
"""

import os
import subprocess
import sys

import pytest
import torch

from cdgen_kernels import reference
from cdgen_kernels.ops import make_rows

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from ptx import compile_for, errors, launch  # noqa: E402
from ptx.faults import find, remove, shift_address, unguard  # noqa: E402

from cdgen_kernels import triton_sample  # noqa: E402

THREADS = 32 * triton_sample.NUM_WARPS
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def make_pair(batch, vocab_size, dtype, bad_dtype=None, width=None, seed=0):
    """Zipf-like rows in the middle of wider, NaN-filled storage, so that reading beside them shows."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)]).float()
    good = -1.5 * torch.log1p(ranks) + 0.2 * torch.randn(batch, vocab_size, generator=generator)
    bad = 2 * torch.randn(batch, vocab_size, generator=generator)
    width = width or vocab_size
    pair = [torch.full((batch, width), torch.nan).to(d) for d in (dtype, bad_dtype or dtype)]
    for wide, x in zip(pair, (good, bad), strict=True):
        wide[:, :vocab_size] = x
    return [wide[:, :vocab_size] for wide in pair]


def arguments(good, bad, rows, banned=None, outside=0, value=0.0, logprobs=False):
    batch, vocab_size = good.shape
    group = 16 // good.element_size()
    chunks = triton.cdiv(vocab_size, THREADS * group * triton_sample.GROUPS) * THREADS
    outputs = (
        torch.full((batch, chunks), torch.nan),
        torch.full((batch, chunks), -7, dtype=torch.int32),
        torch.full((batch, triton_sample.CAPACITY), -7, dtype=torch.int32),
        torch.full((batch,), -99),
        torch.full((3, batch if logprobs else 0), torch.nan),
    )
    sizes = (vocab_size, good.stride(0), 0 if bad is None else bad.stride(0), 0 if banned is None else banned.shape[1])
    constants = (bad is not None, outside, logprobs, triton_sample.CAPACITY, THREADS, group, triton_sample.GROUPS)
    tensors = (good, good if bad is None else bad, *rows, outputs[3] if banned is None else banned, *outputs)
    values = (*tensors, *sizes, chunks, batch, float(value), *constants)
    return dict(zip(triton_sample.sample_kernel.arg_names, values, strict=True))


def execute(sm, *problem, mutate=None, **settings):
    """(tokens, log-probabilities, the launch's report) of the compiled kernel."""
    given = arguments(*problem, **settings)
    kernel = compile_for(triton_sample.sample_kernel, given, sm, num_warps=triton_sample.NUM_WARPS)
    kernel = kernel if mutate is None else kernel.with_ptx(mutate(kernel.ptx))
    scratch = ("maxima", "hits", "found", "token_out", "logprobs_out")
    report = launch(
        kernel,
        (given["good"].shape[0],),
        *(given[name] for name in kernel.argument_names),
        uninitialised=[name for name in scratch if given[name].numel() and name in kernel.argument_names],
        max_blocks=5_000_000,
    )
    return given["token_out"], given["logprobs_out"], report, kernel


def wanted(good, bad, rows, banned=None, outside=0, value=0.0, logprobs=False):
    return reference.sample(good, bad, rows, banned, good.shape[1], outside, value, logprobs)


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_code_draws_the_references_tokens(sm, dtype):
    """A size that is a multiple of nothing, rows that begin anywhere, bans, and other parameters in each row."""
    good, bad = make_pair(5, 4099, dtype, torch.float32, width=4101, seed=sm)
    alpha, temperature = [0.1, 0.02, 0.3, 0.05, 1e-3], [1, 0.7, 2, 0, 1]
    rows = make_rows(5, alpha=alpha, temperature=temperature, top_k=[0, 3, 0, 2, 0], seed=sm)
    banned = torch.tensor([[-1, -1], [int(good[1].argmax()), 4098], [0, 1], [-1, 7], [4000, -1]])
    assert execute(sm, good, bad, rows, banned)[0].equal(wanted(good, bad, rows, banned).token)


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 8, 9, 127, 1024])
def test_awkward_sizes(vocab_size):
    good, bad = make_pair(4, vocab_size, torch.bfloat16, width=vocab_size + 3)
    rows = make_rows(4, alpha=0.01, seed=vocab_size)
    assert execute(90, good, bad, rows)[0].equal(wanted(good, bad, rows).token)


@pytest.mark.parametrize(("outside", "value"), [(0, 0.0), (1, -2.0), (2, 0.0)])
def test_modes_cuts_and_log_probabilities(outside, value):
    good, bad = make_pair(4, 300, torch.float32, torch.bfloat16)
    rows = make_rows(4, alpha=[0, 0.1, 0.01, 0.2], top_k=[40, 0, 5, 0], top_p=[1, 0.7, 0.9, 0.5], seed=5)
    problem = dict(outside=outside, value=value, logprobs=True)
    token, logprobs, _, _ = execute(90, good, bad, rows, **problem)
    expected = wanted(good, bad, rows, **problem)
    assert token.equal(expected.token)
    torch.testing.assert_close(logprobs, torch.stack(expected[1:]), rtol=1e-4, atol=1e-4)


def test_heads_longer_than_the_list_and_rows_without_an_answer():
    good, bad = make_pair(6, 700, torch.float16)
    good[0] = 1.5  # a head of all 700
    good[1, 333] = torch.nan
    good[2] = -torch.inf
    good[4, 3], bad[4, 5] = torch.inf, torch.nan  # outside the head: not read
    bad[3] = torch.nan
    bad[5, int(good[5].argmax())] = -torch.inf
    rows = make_rows(6, alpha=0.1, seed=2)
    token = execute(90, good, bad, rows)[0]
    assert token.equal(wanted(good, bad, rows).token)
    assert token[1:4].tolist() == [reference.NAN_GOOD, reference.NOTHING_POSSIBLE, reference.NAN_BAD]
    assert execute(90, good, None, rows._replace(contrast_strength=rows.contrast_strength * 0))[0][4] == 3


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_what_it_reads_and_issues(sm):
    """V = 32,000, bfloat16, a head of ten: 16 bytes a thread, every byte once but in chunks that hold head tokens."""
    vocab_size = 32_000
    good, bad = make_pair(2, vocab_size, torch.bfloat16, seed=1)
    for row in range(2):
        best = good[row].float().topk(10).indices
        good[row] -= 8
        good[row, best] = torch.linspace(9, 10, 10).bfloat16()
    rows = make_rows(2, seed=4)
    token, _, report, _ = execute(sm, good, bad, rows)
    assert token.equal(wanted(good, bad, rows).token)
    wide = report.traffic("good", "load", 16)
    assert wide.bytes == good.nbytes and wide.sectors_per_request == 16
    in_head = good.float() >= 7.6
    place = torch.arange(vocab_size)
    tile = THREADS * 8 * triton_sample.GROUPS
    chunk = place // tile * THREADS + place % (THREADS * 8) // 8
    for row in range(2):
        visited = torch.isin(chunk, chunk[in_head[row]])
        assert (torch.from_numpy(report.reads("good")[row].max(1))[~visited] == 1).all()
    assert int((report.reads("bad") > 0).all(2).sum()) == int(in_head.sum()) == 20
    assert report.thread_instructions / good.numel() <= 8


@pytest.mark.parametrize(
    "fault",
    [
        lambda ptx: remove(ptx, "st.global", len(find(ptx, "st.global")) - 1),  # the token
        lambda ptx: remove(ptx, "st.global", 0),  # a chunk's maximum
        lambda ptx: shift_address(ptx, "ld.global.v4", 16, 0),
        lambda ptx: shift_address(ptx, "ld.global.v4", 2, 0),
        lambda ptx: unguard(ptx, "ld.global.v4", len(find(ptx, "ld.global.v4")) - 1),  # the mask of the last tile
        lambda ptx: "".join(line for line in ptx.splitlines(True) if "bar.sync" not in line),
    ],
)
def test_injected_faults_are_caught(fault):
    good, bad = make_pair(2, 4100, torch.bfloat16)
    rows = make_rows(2, seed=1)
    expected = wanted(good, bad, rows).token
    try:
        token = execute(90, good, bad, rows, mutate=fault)[0]
    except errors.Fault:
        return
    assert not token.equal(expected)


def test_a_grid_too_large_is_caught():
    good, bad = make_pair(2, 100, torch.bfloat16)
    given = arguments(good, bad, make_rows(2))
    kernel = compile_for(triton_sample.sample_kernel, given, 90, num_warps=triton_sample.NUM_WARPS)
    with pytest.raises(errors.Fault):
        launch(kernel, (3,), *(given[name] for name in kernel.argument_names))


def test_source_in_tritons_interpreter(tmp_path):
    """Its own process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import torch
from cdgen_kernels import reference, triton_sample
from cdgen_kernels.ops import make_rows
torch.manual_seed(1)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for size in (5, 333):
        for outside in (0, 1, 2):
            good, bad = (3 * torch.randn(3, size)).to(dtype), (2 * torch.randn(3, size)).to(dtype)
            rows = make_rows(3, alpha=[0.1, 0.02, 1.0], temperature=[1, 0, 2], seed=size)
            banned = torch.tensor([[0, -1], [3, 2], [-1, -1]])
            rest = (rows, banned, size, outside, -3.0, True)
            wanted, got = reference.sample(good, bad, *rest), triton_sample.sample(good, bad, *rest)
            assert got.token.equal(wanted.token), (dtype, size, outside, got, wanted)
            torch.testing.assert_close(torch.stack(got[1:]), torch.stack(wanted[1:]), rtol=1e-4, atol=1e-4)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
