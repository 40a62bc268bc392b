"""The ops as callers meet them: independence of the batch, registration, errors, dispatch."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cdgen_kernels import ops, reference
from cdgen_kernels import registry as dispatch
from cdgen_kernels.ops import (
    SamplingTensors,
    contrastive_sample,
    gather_logits,
    make_sampling_tensors,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
)
from tests.helpers.implementations import IMPLEMENTATIONS, NO_CPP, run_sample


def zipf(batch, vocab_size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)]).float()
    good = -1.2 * torch.log1p(ranks) + 0.3 * torch.randn(batch, vocab_size, generator=generator)
    bad = 0.6 * good + 0.8 * torch.randn(batch, vocab_size, generator=generator)
    return good.to(dtype), bad.to(dtype)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("outside", ["mask", "shifted_good", -8.0])
def test_a_draw_does_not_depend_on_the_batch_around_it(outside, two_threads):
    """In any order, in one batch or many, on one thread or two, from every implementation: the same tokens."""
    batch, vocab_size = 24, 1003
    good, bad = zipf(batch, vocab_size)
    sequence, position = torch.arange(batch) * 2**33 + 5, torch.arange(batch) % 7
    temperature = 0.5 + torch.arange(batch) / batch

    def draw(implementation, rows):
        settings = dict(alpha=0.02, temperature=temperature[rows], sequence=sequence[rows], position=position[rows])
        parameters = make_sampling_tensors(len(rows), seed=42, **settings)
        return run_sample(implementation, good[rows], bad[rows], parameters, outside_head=outside).token

    everything = torch.arange(batch)
    wanted = draw("reference", everything)
    shuffled = torch.randperm(batch, generator=torch.Generator().manual_seed(1))
    for implementation in IMPLEMENTATIONS:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert draw(implementation, everything).equal(wanted)
            assert draw(implementation, shuffled).equal(wanted[shuffled])
            assert torch.cat([draw(implementation, rows) for rows in everything.split(1)]).equal(wanted)
            assert torch.cat([draw(implementation, rows) for rows in everything.split(7)]).equal(wanted)
    assert len(wanted.unique()) > 5


@pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason=NO_CPP)
def test_offsets_beyond_32_bits():
    """Rows that start 2^31 entries and more into their storage (untouched memory costs nothing)."""
    vocab_size, far = 1000, 2**31 + 11
    storage = torch.empty(2 * far + 2 * vocab_size, dtype=torch.float16)
    good = storage.as_strided((3, vocab_size), (far, 1))
    good.copy_(zipf(3, vocab_size)[0])
    bad = storage.as_strided((3, vocab_size), (far, 1), vocab_size)
    bad.copy_(zipf(3, vocab_size)[1])
    sampling = make_sampling_tensors(3, alpha=0.01)
    near = run_sample("cpp", good.contiguous(), bad.contiguous(), sampling, logprobs=True)
    for a, b in zip(run_sample("cpp", good, bad, sampling, logprobs=True), near, strict=True):
        assert a.equal(b)


def calls():
    good, bad = zipf(3, 77)
    sampling = make_sampling_tensors(3, top_k=[0, 4, 0])
    banned = torch.tensor([[1, -1], [2, 3], [-1, -1]])
    candidates = select_candidates(good, sampling, capacity=64)
    return {
        "select_candidates": (good, sampling.margin, banned, 70, 16),
        "contrastive_sample": (good, bad, *sampling, banned, 70, 2, 0.0, True),
        "sample_candidates": (*candidates, bad, *sampling, 77, False, True),
        "select_candidates_linear": (good[:, :9], bad.new_ones(77, 9), sampling.margin, banned, 70, 16),
        "gather_logits": (good[:, :9], bad.new_ones(77, 9), candidates.token, candidates.count),
    }


@pytest.mark.parametrize(
    "name",
    ["select_candidates", "contrastive_sample", "sample_candidates", "select_candidates_linear", "gather_logits"],
)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.cdgen, name).default, calls()[name])


@pytest.mark.parametrize("name", calls())
def test_on_cuda_ops_run_on_the_device_of_their_tensors(name, monkeypatch):
    """Triton launches on the current device, which need not be that of the tensors."""
    current, seen = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(dispatch, "_DECISIONS", {"cuda": ("reference", "")})
    monkeypatch.setattr(reference, name, lambda first, *rest: seen.append(current[:]))
    monkeypatch.setitem(dispatch._CONVENTIONS, name, lambda function, *arguments: function(*arguments))
    first, *rest = calls()[name]
    dispatch._kernel(name, "cuda")(first, *rest)
    assert len(seen) == 1 and seen[0][0] is first and not current


def test_a_decode_step_compiles_whole():
    good, bad = zipf(4, 501)
    sampling = make_sampling_tensors(4, seed=3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(good, bad, sampling):
        candidates = select_candidates(good, sampling, capacity=128)
        token = contrastive_sample(good * 1.0, bad, sampling, logprobs=True).token
        sampling.position.add_(1)
        return token, sample_candidates(candidates, bad, sampling._replace(position=sampling.position - 1))[0]

    for position in range(3):
        wanted = contrastive_sample(good, bad, make_sampling_tensors(4, seed=3, position=position)).token
        for token in step(good, bad, sampling):
            assert token.equal(wanted)


def from_hidden_states(good, bad, good_layer, bad_layer, sampling):
    """A decode step's end in which neither model's logits exist."""
    candidates = select_candidates_linear(good, good_layer, sampling, capacity=64)
    scores = gather_logits(bad, bad_layer, candidates)
    vocab_size = good_layer.shape[0]
    return sample_candidates(candidates, scores, sampling, gathered=True, vocab_size=vocab_size).token


def test_from_hidden_states_to_the_same_token():
    """Of whole numbers, so that every matrix product is exact."""
    good, bad, good_layer, bad_layer = (
        torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
        for seed, shape in enumerate([(6, 16), (6, 8), (501, 16), (501, 8)])
    )
    sampling = make_sampling_tensors(6, alpha=0.01, seed=3)
    token = from_hidden_states(good, bad, good_layer, bad_layer, sampling)
    assert token.equal(contrastive_sample(good @ good_layer.T, bad @ bad_layer.T, sampling).token)
    whole = torch.compile(from_hidden_states, fullgraph=True, backend="aot_eager")
    assert whole(good, bad, good_layer, bad_layer, sampling).equal(token)


def test_a_decode_step_on_cuda_waits_for_nothing():
    """Fake tensors have no values: whatever would wait for the device, or size memory by its data, raises."""
    dtypes = [column.dtype for column in make_sampling_tensors(4)]
    with FakeTensorMode():
        good, bad = (torch.empty(4, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        sampling = SamplingTensors(*(torch.empty(4, device="cuda", dtype=dtype) for dtype in dtypes))
        banned = torch.empty(4, 3, device="cuda", dtype=torch.int64)
        token = contrastive_sample(good, bad, sampling, banned=banned, logprobs=True).token
        sampling.position.add_(1)
        again = sample_candidates(select_candidates(good, sampling, banned=banned), bad, sampling).token
        unseen = from_hidden_states(good, bad, good.new_empty(32_000, 512), good.new_empty(32_000, 512), sampling)
        assert {x.device.type for x in (token, again, unseen)} == {"cuda"}
        assert {x.shape for x in (token, again, unseen)} == {(4,)}


def test_heads_longer_than_the_list_are_told_not_cut():
    good, bad = torch.zeros(2, 50), torch.zeros(2, 50)
    good[0, 3] = 20
    sampling = make_sampling_tensors(2)
    candidates = select_candidates(good, sampling, capacity=8)
    assert candidates.count.tolist() == [1, 50]
    assert candidates.token[1].tolist() == list(range(8))
    with pytest.raises(ValueError, match="row 1: the head is longer than the candidate list"):
        sample_candidates(candidates, bad, sampling)
    assert contrastive_sample(good, bad, sampling).token.shape == (2,)


def test_infinite_logits_mean_what_they_say():
    inf = float("inf")
    good = torch.tensor([[0.0, inf, inf, 3.0], [0.0, 0.0, 0.0, -inf], [0.0, 0.0, 0.0, 0.0]]).repeat(500, 1)
    bad = torch.tensor([[0.0, 0.0, 30.0, 0.0], [0.0, 0.0, -inf, -inf], [inf, 0.0, inf, inf]]).repeat(500, 1)
    for implementation in IMPLEMENTATIONS:
        token = run_sample(implementation, good, bad, make_sampling_tensors(1500, alpha=0)).token.view(500, 3)
        assert set(token[:, 0].tolist()) == {1}  # GOOD has two certain tokens, BAD all but forbids the other
        assert set(token[:, 1].tolist()) == {2}  # BAD gives it no probability at all; token 3 is impossible to GOOD
        assert set(token[:, 2].tolist()) == {1}  # the only one that BAD does not insist on
        drawn = run_sample(implementation, good, None, make_sampling_tensors(1500, alpha=0.5)).token.view(500, 3)
        assert set(drawn[:, 0].tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good, bad: good[1].fill_(-torch.inf), "row 1: GOOD gives every token that is not banned the logit"),
        (lambda good, bad: good[2, 7].fill_(torch.nan), "row 2: GOOD's logits hold NaN"),
        (lambda good, bad: bad[0].fill_(torch.nan), "row 0: BAD's logits hold NaN"),
    ],
)
def test_rows_without_an_answer_are_named(change, message):
    good, bad = zipf(3, 40)
    change(good, bad)
    with pytest.raises(ValueError, match=message):
        contrastive_sample(good, bad, make_sampling_tensors(3))
    with pytest.raises(ValueError, match=message):
        sample_candidates(select_candidates(good, make_sampling_tensors(3)), bad, make_sampling_tensors(3))


def test_bans():
    good, bad = zipf(2, 30)
    best = good.argmax(1, keepdim=True)
    sampling = make_sampling_tensors(2, temperature=0, contrast_strength=0)
    assert contrastive_sample(good, bad, sampling).token.equal(best[:, 0])
    assert contrastive_sample(good, bad, sampling, banned=best).token.equal(good.scatter(1, best, -torch.inf).argmax(1))
    with pytest.raises(ValueError, match="row 0: GOOD gives every token that is not banned"):
        contrastive_sample(good, bad, sampling, banned=torch.arange(30).expand(2, 30))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda g, b, r: contrastive_sample(g[0], b, r),
            r"good: expected float16, bfloat16 or float32 logits \[B, V\]",
        ),
        (lambda g, b, r: contrastive_sample(g.double(), b, r), "got torch.float64"),
        (lambda g, b, r: contrastive_sample(g, b[:1], r), "bad: 1 rows, but GOOD has 3"),
        (lambda g, b, r: contrastive_sample(g, b[:, :20], r, vocab_size=21), "vocab_size = 21: must be 1 to 20"),
        (
            lambda g, b, r: contrastive_sample(g, b, r, outside_head="tail"),
            "outside_head = 'tail': use 'mask', 'shifted_good' or",
        ),
        (
            lambda g, b, r: contrastive_sample(g, b, make_sampling_tensors(2)),
            "sampling: made for 2 rows, but there are 3 rows of logits",
        ),
        (lambda g, b, r: contrastive_sample(g, b, r, banned=torch.zeros(2, 1)), r"banned: expected integers \[3, N\]"),
        (lambda g, b, r: select_candidates(g, r, capacity=0), "capacity = 0: must be at least 1"),
        (lambda g, b, r: sample_candidates(select_candidates(g, r), None, r), "vocab_size: give it"),
        (lambda g, b, r: make_sampling_tensors(3, temperature=-1), r"temperature = -1: must be a finite number >= 0"),
        (lambda g, b, r: make_sampling_tensors(3, alpha=1.5), r"alpha = 1.5: must be in \[0, 1\]"),
        (lambda g, b, r: make_sampling_tensors(3, top_p=0), r"top_p = 0: must be in \(0, 1\]"),
        (
            lambda g, b, r: make_sampling_tensors(3, contrast_strength=torch.nan),
            "contrast_strength = nan: must be a finite number",
        ),
        (lambda g, b, r: make_sampling_tensors(3, seed=[1, 2]), r"seed: \(2,\) values for 3 rows"),
    ],
)
def test_wrong_calls_are_told_in_one_line(call, message):
    good, bad = zipf(3, 30)
    with pytest.raises(ValueError, match=message) as caught:
        call(good, bad, make_sampling_tensors(3))
    assert "\n" not in str(caught.value)


def test_empty_batch():
    good, bad = torch.zeros(0, 10), torch.zeros(0, 10)
    assert contrastive_sample(good, bad, make_sampling_tensors(0), logprobs=True).logprob.shape == (0,)
    assert select_candidates(good, make_sampling_tensors(0)).token.shape == (0, 1024)


def in_a_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_the_choice_of_implementation_can_be_overridden_and_is_logged_once():
    code = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from cdgen_kernels.ops import *
for _ in range(2): sample(torch.zeros(1, 4), None, make_sampling_tensors(1))
"""
    told = in_a_process(code, CDGEN_IMPL="reference")
    lines = [f"{device} tensors: reference implementation (CDGEN_IMPL is set)" for device in ("cpu", "cuda")]
    assert told.stderr.splitlines() == lines
    told = in_a_process(code, CDGEN_IMPL="cuda")
    assert told.returncode == 1
    assert "ValueError: CDGEN_IMPL=cuda: no such implementation; use reference, cpp or" in told.stderr.splitlines()[-1]


def test_what_runs_here_is_said():
    name, reason = ops.implementation("cpu")
    assert os.environ.get("CDGEN_IMPL") in (None, "triton", name)
    assert (name == "cpp") == ("loaded" in reason)
