"""The public ops: independence of the batch, registration, errors, and the choice of implementation."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cdgen_kernels import (
    SamplingTensors,
    contrastive_sample,
    gather_logits,
    make_sampling_tensors,
    reference,
    registry,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
)
from tests.helpers.implementations import IMPLEMENTATIONS, NO_CPP, run_sample


def zipf(batch: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return logits of GOOD and BAD [B, V], Zipf-like and related to each other."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)]).float()
    good = -1.2 * torch.log1p(ranks) + 0.3 * torch.randn(batch, vocab_size, generator=generator)
    bad = 0.6 * good + 0.8 * torch.randn(batch, vocab_size, generator=generator)
    return good, bad


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("outside", ["mask", "shifted_good", -8.0])
def test_draws_do_not_depend_on_the_batch(outside, two_threads) -> None:
    """Every implementation draws the same tokens in any order, in one batch or many, and on one thread or two."""
    batch, vocab_size = 24, 1003
    good, bad = zipf(batch, vocab_size)
    sequence, position = torch.arange(batch) * 2**33 + 5, torch.arange(batch) % 7
    temperature = 0.5 + torch.arange(batch) / batch

    def draw(implementation: str, rows: Tensor) -> Tensor:
        settings = dict(alpha=0.02, temperature=temperature[rows], sequence=sequence[rows], position=position[rows])
        sampling = make_sampling_tensors(len(rows), seed=42, **settings)
        return run_sample(implementation, good[rows], bad[rows], sampling, outside_head=outside).token

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
def test_offsets_beyond_32_bits() -> None:
    """Rows start 2^31 entries or more into their storage, most of which is never touched and takes no memory."""
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


def calls() -> dict[str, tuple[Any, ...]]:
    """Return arguments of each sampling op."""
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


@pytest.mark.parametrize("name", calls())
def test_opcheck(name) -> None:
    torch.library.opcheck(getattr(torch.ops.cdgen, name).default, calls()[name])


@pytest.mark.parametrize("name", calls())
def test_ops_run_on_the_cuda_device_of_their_tensors(name, monkeypatch) -> None:
    """Triton launches on the current device, which may be another one."""
    first, *rest = calls()[name]
    current, seen = [], []

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(registry, "_DECISIONS", {"cuda": ("reference", "")})
    monkeypatch.setattr(reference, name, lambda first, *rest: seen.append(current[:]))
    spec = replace(registry.OPS[name], convention=registry.call_directly)
    monkeypatch.setitem(registry.OPS, name, spec)
    registry.kernel(name, "cuda")(first, *rest)
    assert len(seen) == 1 and seen[0][0] is first and not current


def test_a_decode_step_compiles_without_graph_breaks() -> None:
    good, bad = zipf(4, 501)
    sampling = make_sampling_tensors(4, seed=3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(good: Tensor, bad: Tensor, sampling: SamplingTensors) -> tuple[Tensor, Tensor]:
        candidates = select_candidates(good, sampling, capacity=128)
        token = contrastive_sample(good * 1.0, bad, sampling, logprobs=True).token
        sampling.position.add_(1)
        return token, sample_candidates(candidates, bad, sampling._replace(position=sampling.position - 1))[0]

    for position in range(3):
        wanted = contrastive_sample(good, bad, make_sampling_tensors(4, seed=3, position=position)).token
        for token in step(good, bad, sampling):
            assert token.equal(wanted)


def from_hidden_states(
    good: Tensor, bad: Tensor, good_layer: Tensor, bad_layer: Tensor, sampling: SamplingTensors
) -> Tensor:
    """Draw tokens from hidden states, without the logits of either model."""
    candidates = select_candidates_linear(good, good_layer, sampling, capacity=64)
    logits = gather_logits(bad, bad_layer, candidates)
    vocab_size = good_layer.shape[0]
    return sample_candidates(candidates, logits, sampling, gathered=True, vocab_size=vocab_size).token


def test_hidden_states_give_the_same_tokens_as_logits() -> None:
    """All numbers are whole, so every matrix product is exact."""
    good, bad, good_layer, bad_layer = (
        torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
        for seed, shape in enumerate([(6, 16), (6, 8), (501, 16), (501, 8)])
    )
    sampling = make_sampling_tensors(6, alpha=0.01, seed=3)
    token = from_hidden_states(good, bad, good_layer, bad_layer, sampling)
    assert token.equal(contrastive_sample(good @ good_layer.T, bad @ bad_layer.T, sampling).token)
    whole = torch.compile(from_hidden_states, fullgraph=True, backend="aot_eager")
    assert whole(good, bad, good_layer, bad_layer, sampling).equal(token)


def test_a_decode_step_on_cuda_never_waits_for_the_device() -> None:
    """Fake tensors have no values: waiting for the device, or sizing memory by its data, raises an error."""
    dtypes = [column.dtype for column in make_sampling_tensors(4)]
    with FakeTensorMode():
        good, bad = (torch.empty(4, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        sampling = SamplingTensors(*(torch.empty(4, device="cuda", dtype=dtype) for dtype in dtypes))
        banned = torch.empty(4, 3, device="cuda", dtype=torch.int64)
        token = contrastive_sample(good, bad, sampling, banned=banned, logprobs=True).token
        sampling.position.add_(1)
        from_list = sample_candidates(select_candidates(good, sampling, banned=banned), bad, sampling).token
        from_hidden = from_hidden_states(good, bad, good.new_empty(32_000, 512), good.new_empty(32_000, 512), sampling)
        assert {x.device.type for x in (token, from_list, from_hidden)} == {"cuda"}
        assert {x.shape for x in (token, from_list, from_hidden)} == {(4,)}


def test_an_overflow_of_the_list_is_reported_not_truncated() -> None:
    good, bad = torch.zeros(2, 50), torch.zeros(2, 50)
    good[0, 3] = 20
    sampling = make_sampling_tensors(2)
    candidates = select_candidates(good, sampling, capacity=8)
    assert candidates.count.tolist() == [1, 50]
    assert candidates.token[1].tolist() == list(range(8))
    with pytest.raises(ValueError, match="row 1: there are more candidates than the list holds"):
        sample_candidates(candidates, bad, sampling)
    assert contrastive_sample(good, bad, sampling).token.shape == (2,)


def test_infinite_logits_are_taken_literally() -> None:
    inf = float("inf")
    good = torch.tensor([[0.0, inf, inf, 3.0], [0.0, 0.0, 0.0, -inf], [0.0, 0.0, 0.0, 0.0]]).repeat(500, 1)
    bad = torch.tensor([[0.0, 0.0, 30.0, 0.0], [0.0, 0.0, -inf, -inf], [inf, 0.0, inf, inf]]).repeat(500, 1)
    for implementation in IMPLEMENTATIONS:
        token = run_sample(implementation, good, bad, make_sampling_tensors(1500, alpha=0)).token.view(500, 3)
        assert set(token[:, 0].tolist()) == {1}  # GOOD is certain of two tokens; BAD all but rules out the other one
        assert set(token[:, 1].tolist()) == {2}  # BAD gives it probability 0; token 3 is impossible under GOOD
        assert set(token[:, 2].tolist()) == {1}  # the only token that BAD is not certain of
        drawn = run_sample(implementation, good, None, make_sampling_tensors(1500, alpha=0.5)).token.view(500, 3)
        assert set(drawn[:, 0].tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good, bad: good[1].fill_(-torch.inf), "row 1: GOOD gives every token that is not banned the logit"),
        (lambda good, bad: good[2, 7].fill_(torch.nan), "row 2: GOOD's logits contain NaN"),
        (lambda good, bad: bad[0].fill_(torch.nan), "row 0: BAD's logits contain NaN"),
    ],
)
def test_errors_name_the_faulty_row(change, message) -> None:
    good, bad = zipf(3, 40)
    change(good, bad)
    with pytest.raises(ValueError, match=message):
        contrastive_sample(good, bad, make_sampling_tensors(3))
    with pytest.raises(ValueError, match=message):
        sample_candidates(select_candidates(good, make_sampling_tensors(3)), bad, make_sampling_tensors(3))


def test_banned_tokens_are_not_drawn() -> None:
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
            lambda g, b, s: contrastive_sample(g[0], b, s),
            r"good: expected float16, bfloat16 or float32 logits \[B, V\]",
        ),
        (lambda g, b, s: contrastive_sample(g.double(), b, s), "got torch.float64"),
        (lambda g, b, s: contrastive_sample(g, b[:1], s), "bad: has batch size 1, but GOOD has 3"),
        (
            lambda g, b, s: contrastive_sample(g, b[:, :20], s, vocab_size=21),
            "vocab_size = 21: must be between 1 and 20",
        ),
        (
            lambda g, b, s: contrastive_sample(g, b, s, outside_head="tail"),
            "outside_head = 'tail': use 'mask', 'shifted_good' or",
        ),
        (
            lambda g, b, s: contrastive_sample(g, b, make_sampling_tensors(2)),
            "sampling: has batch size 2, but the logits have 3",
        ),
        (lambda g, b, s: contrastive_sample(g, b, s, banned=torch.zeros(2, 1)), r"banned: expected integers \[3, N\]"),
        (lambda g, b, s: select_candidates(g, s, capacity=0), "capacity = 0: must be a whole number from 1 to"),
        (lambda g, b, s: sample_candidates(select_candidates(g, s), None, s), "vocab_size: required"),
        (lambda g, b, s: make_sampling_tensors(3, temperature=-1), r"temperature = -1: must be a finite number >= 0"),
        (lambda g, b, s: make_sampling_tensors(3, alpha=1.5), r"alpha = 1.5: must be in \[0, 1\]"),
        (lambda g, b, s: make_sampling_tensors(3, top_p=0), r"top_p = 0: must be in \(0, 1\]"),
        (
            lambda g, b, s: make_sampling_tensors(3, contrast_strength=torch.nan),
            "contrast_strength = nan: must be a finite number",
        ),
        (lambda g, b, s: make_sampling_tensors(3, seed=[1, 2]), r"seed: \(2,\) values for 3 rows"),
    ],
)
def test_wrong_arguments_raise_an_error_of_one_line(call, message) -> None:
    good, bad = zipf(3, 30)
    with pytest.raises(ValueError, match=message) as caught:
        call(good, bad, make_sampling_tensors(3))
    assert "\n" not in str(caught.value)


def drawn(implementation: str, good: Tensor, **parameters: float) -> set[int]:
    """Return the tokens that 400 draws from one row of GOOD's logits give."""
    sampling = make_sampling_tensors(400, contrast_strength=0, seed=1, **parameters)
    return set(run_sample(implementation, good.expand(400, -1), None, sampling).token.tolist())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_conventions_that_differ_from_other_libraries(implementation) -> None:
    """Exactly k of the scores that tie are kept, those with lower ids, and min-p comes before top-p."""
    tied = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert drawn(implementation, tied, alpha=0, top_k=2) == {1, 2}
    assert drawn(implementation, tied, alpha=0, top_k=3) == {1, 2, 3}
    # Of (0.4, 0.3, 0.2, 0.1), min-p 0.6 leaves (4/7, 3/7), of which top-p 0.5 keeps one.
    mass = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert drawn(implementation, mass, alpha=0.6) == {0, 1} == drawn(implementation, mass, alpha=0, top_p=0.5)
    assert drawn(implementation, mass, alpha=0.6, top_p=0.5) == {0}


def test_empty_batch() -> None:
    good, bad = torch.zeros(0, 10), torch.zeros(0, 10)
    assert contrastive_sample(good, bad, make_sampling_tensors(0), logprobs=True).logprob.shape == (0,)
    assert select_candidates(good, make_sampling_tensors(0)).token.shape == (0, 1024)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.slow
def test_the_choice_of_implementation_can_be_overridden_and_is_logged_once() -> None:
    code = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from cdgen_kernels import *
for _ in range(2): contrastive_sample(torch.zeros(1, 4), None, make_sampling_tensors(1))
"""
    done = run_python(code, CDGEN_IMPL="reference")
    lines = [f"{device} tensors: reference implementation (CDGEN_IMPL is set)" for device in ("cpu", "cuda")]
    assert done.stderr.splitlines() == lines
    done = run_python(code, CDGEN_IMPL="cuda")
    assert done.returncode == 1
    assert "ValueError: CDGEN_IMPL=cuda: no such implementation; use reference, cpp or" in done.stderr.splitlines()[-1]


def test_implementation_gives_a_matching_reason() -> None:
    name, reason = registry.implementation("cpu")
    assert os.environ.get("CDGEN_IMPL") in (None, "triton", name)
    assert (name == "cpp") == ("loaded" in reason)
