"""One step of sampling on the CPU, contrastive and plain: the fused op, PyTorch, and a plain read of GOOD's logits.

    python -m pytest benchmarks/cpu/bench_sample.py --benchmark-only --benchmark-json=sample.json

The logits are those of SmolLM2 on English text (V = 49,152; BAD is GOOD with attention dropout), or Zipf-like with a
given number of candidates. Each case first checks that the fused op draws the tokens of the float64 reference, and that
every rival draws candidates. Then all variants are timed in turns, with caches flushed before every call. A table of
ratios is printed at the end of the run. Plain sampling, without BAD or candidates, is timed on one thread.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cpu.harness import Call, compare, plain_reader
from benchmarks.smollm2 import logits_on_text
from cdgen.bench.rivals import literal_chain, strongest_torch
from cdgen.errors import InputError
from cdgen_kernels import codes, contrastive_sample, implementation, make_sampling_tensors, reference, select_candidates

BATCHES = [1, 16, 128]
ALPHA = 0.1


def zipf_like(
    batch: int, vocab_size: int, dtype: torch.dtype, candidate_count: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of GOOD and BAD [B, V], with exactly `candidate_count` candidates per row.

    GOOD's logits fall with the rank of a token as those of a language model do.
    """
    generator = torch.Generator().manual_seed(batch + vocab_size)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)])
    noise = torch.rand(batch, vocab_size, generator=generator)
    inside = 16 - 2.0 * ranks / candidate_count  # down to e^-2 times the largest probability
    outside = 13 - 1.1 * torch.log1p(ranks - candidate_count + 0.0).nan_to_num(0) - noise
    good = torch.where(ranks < candidate_count, inside, outside)
    bad = 0.7 * good + 1.5 * torch.randn(batch, vocab_size, generator=generator)
    return good.to(dtype), bad.to(dtype)


@functools.cache
def smollm2_logits() -> tuple[torch.Tensor, torch.Tensor] | str:
    """Return float32 logits of GOOD and BAD [N, 49152] on an English text, or the reason why there are none."""
    try:
        return logits_on_text(max(BATCHES))
    except InputError as error:
        return str(error)


def make_logits(source: str, batch: int, vocab_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of GOOD and BAD [B, V] from a source; skip the test if it is not available."""
    if source == "zipf":
        return zipf_like(batch, vocab_size, dtype)
    logits = smollm2_logits()
    if isinstance(logits, str):
        pytest.skip(logits)
    good, bad = (x[:batch].to(dtype).clone() for x in logits)
    return good, bad


CASES = [("zipf", v, b, d) for v in (32_000, 49_152, 128_256) for b in BATCHES for d in ("float32", "bfloat16")]
CASES += [("smollm2", 49_152, b, d) for b in BATCHES for d in ("float32", "bfloat16")]


@pytest.mark.parametrize(("source", "vocab_size", "batch", "dtype"), CASES)
def test_sample(benchmark: BenchmarkFixture, source: str, vocab_size: int, batch: int, dtype: str) -> None:
    good, bad = make_logits(source, batch, vocab_size, getattr(torch, dtype))
    sampling = make_sampling_tensors(batch, alpha=ALPHA, seed=1)
    counts = select_candidates(good, sampling).count
    expected = reference.contrastive_sample(good, bad, sampling, None, vocab_size, codes.MASK, 0.0, False).token
    assert contrastive_sample(good, bad, sampling).token.equal(expected)
    compiled = torch.compile(literal_chain, dynamic=False)
    rivals = {"literal chain": literal_chain, "chain, torch.compile": compiled, "strongest torch": strongest_torch}
    is_candidate = good.float() >= (good.float().amax(1) - sampling.margin - 1e-3).unsqueeze(1)
    for rival in rivals.values():
        assert is_candidate.gather(1, rival(good, bad).unsqueeze(1)).all()

    benchmark.group = f"{source} V={vocab_size} {dtype}"
    benchmark.extra_info["implementation"] = implementation("cpu")[0]
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["candidates, mean and max"] = f"{counts.float().mean():.1f}, {int(counts.max())}"
    calls: dict[str, Call] = {name: functools.partial(rival, good, bad) for name, rival in rivals.items()}
    if (read := plain_reader()) is not None:
        calls["plain read"] = functools.partial(read, good)
    compare(benchmark, ("fused", functools.partial(contrastive_sample, good, bad, sampling)), calls, rounds=9)


def race(score: torch.Tensor) -> torch.Tensor:
    """Return the indices [B] drawn from the softmax of scores [B, N] by an exponential race."""
    return (score - torch.empty_like(score).exponential_().log_()).argmax(1)


def torch_top_k(good: torch.Tensor, banned: torch.Tensor, k: int = 50) -> torch.Tensor:
    best = good.topk(k)
    return best.indices.gather(1, race(best.values.float()).unsqueeze(1)).squeeze(1)


def torch_top_p(good: torch.Tensor, banned: torch.Tensor, p: float = 0.9) -> torch.Tensor:
    ordered = good.float().sort(1, descending=True)
    mass = ordered.values.softmax(1)
    kept = ordered.values.masked_fill(mass.cumsum(1) - mass >= p, -torch.inf)
    return ordered.indices.gather(1, race(kept).unsqueeze(1)).squeeze(1)


# {name: (parameters, the same in PyTorch from GOOD's logits and the banned tokens, number of banned tokens)}
PLAIN: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor, torch.Tensor], torch.Tensor], int]] = {
    "greedy": ({"temperature": 0}, lambda good, banned: good.argmax(1), 0),
    "top-k 50": ({"top_k": 50}, torch_top_k, 0),
    "top-p 0.9": ({"top_p": 0.9}, torch_top_p, 0),
    "ancestral": ({}, lambda good, banned: race(good.float()), 0),
    "greedy, 50,000 bans": (
        {"temperature": 0},
        lambda good, banned: good.scatter(1, banned, -torch.inf).argmax(1),
        50_000,
    ),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.usefixtures("one_thread")
def test_plain_sample(benchmark: BenchmarkFixture, method: str, batch: int, dtype: str) -> None:
    vocab_size = 128_256
    parameters, rival, bans = PLAIN[method]
    good, _ = make_logits("zipf", batch, vocab_size, getattr(torch, dtype))
    sampling = make_sampling_tensors(batch, alpha=0, contrast_strength=0, seed=1, **parameters)
    banned = torch.stack([torch.randperm(vocab_size)[:bans] for _ in range(batch)])
    call = functools.partial(contrastive_sample, good, None, sampling, banned=banned if bans else None)
    expected = reference.contrastive_sample(good, None, sampling, banned, vocab_size, codes.MASK, 0.0, False).token
    assert call().token.equal(expected)
    masked = good.float().scatter(1, banned, -torch.inf)
    score = reference.contrastive_scores(masked, torch.zeros_like(masked), sampling, codes.MASK, 0.0)
    top_k = sampling.top_k if sampling.temperature[0] > 0 else torch.ones_like(sampling.top_k)
    top_p = (sampling.top_p + 1e-4).clamp(max=1)  # PyTorch sums in float32
    kept = reference.keep_top(score, top_k, top_p)
    least = torch.where(kept > -torch.inf, kept, torch.inf).amin(1)  # PyTorch may keep other tokens that tie
    assert (score.gather(1, rival(good, banned).unsqueeze(1)).squeeze(1) >= least).all()

    benchmark.group = f"plain sampling, V={vocab_size} {dtype}, 1 thread"
    compare(benchmark, ("fused", call), {"torch": functools.partial(rival, good, banned)}, rounds=25)
