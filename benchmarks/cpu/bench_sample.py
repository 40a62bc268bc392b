"""One step of contrastive sampling on the CPU: the fused op against PyTorch, and against a plain read of GOOD's logits.

    python -m pytest benchmarks/cpu/bench_sample.py --benchmark-only --benchmark-json=sample.json

Rows of logits are SmolLM2's on English text (V = 49,152; BAD is its first 15 layers) or Zipf-like with a stated head
size. Each case first checks that the fused op draws the float64 reference's tokens and that each rival's tokens lie
in the head, then times all variants interleaved, caches flushed before every call. A table of ratios ends the run.
"""

import functools

import pytest
import torch

from benchmarks.cpu.harness import compare, plain_reader
from benchmarks.rivals import literal_chain, strongest_torch
from benchmarks.smollm2 import logits_on_text
from cdgen.errors import InputError
from cdgen_kernels import codes, reference
from cdgen_kernels.ops import contrastive_sample, implementation, make_sampling_tensors, select_candidates

BATCHES = [1, 16, 128]
ALPHA = 0.1


def zipf_like(batch, vocab_size, dtype, head_size=8):
    """Logits that fall as those of a language model do, with exactly `head_size` tokens in the alpha-head."""
    generator = torch.Generator().manual_seed(batch + vocab_size)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)])
    noise = torch.rand(batch, vocab_size, generator=generator)
    inside = 16 - 2.0 * ranks / head_size  # down to e^-2 of the best
    outside = 13 - 1.1 * torch.log1p(ranks - head_size + 0.0).nan_to_num(0) - noise
    good = torch.where(ranks < head_size, inside, outside)
    bad = 0.7 * good + 1.5 * torch.randn(batch, vocab_size, generator=generator)
    return good.to(dtype), bad.to(dtype)


@functools.cache
def smollm2_logits():
    """(good, bad) float32 [N, 49152] at the positions of an English text, or the reason why not."""
    try:
        return logits_on_text(max(BATCHES))
    except InputError as error:
        return str(error)


CASES = [("zipf", v, b, d) for v in (32_000, 49_152, 128_256) for b in BATCHES for d in ("float32", "bfloat16")]
CASES += [("smollm2", 49_152, b, d) for b in BATCHES for d in ("float32", "bfloat16")]


@pytest.mark.parametrize(("source", "vocab_size", "batch", "dtype"), CASES)
def test_sample(benchmark, source, vocab_size, batch, dtype):
    if source == "zipf":
        good, bad = zipf_like(batch, vocab_size, getattr(torch, dtype))
    elif isinstance(smollm2_logits(), str):
        pytest.skip(smollm2_logits())
    else:
        good, bad = (x[:batch].to(getattr(torch, dtype)).clone() for x in smollm2_logits())

    sampling = make_sampling_tensors(batch, alpha=ALPHA, seed=1)
    sizes = select_candidates(good, sampling).count
    wanted = reference.contrastive_sample(good, bad, sampling, None, vocab_size, codes.MASK, 0.0, False).token
    assert contrastive_sample(good, bad, sampling).token.equal(wanted)
    compiled = torch.compile(literal_chain, dynamic=False)
    rivals = {"literal chain": literal_chain, "chain, torch.compile": compiled, "strongest torch": strongest_torch}
    inside = good.float() >= (good.float().amax(1) - sampling.margin - 1e-3).unsqueeze(1)
    for rival in rivals.values():
        assert inside.gather(1, rival(good, bad).unsqueeze(1)).all()

    benchmark.group = f"{source} V={vocab_size} {dtype}"
    benchmark.extra_info["implementation"] = implementation("cpu")[0]
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["head, mean and max"] = f"{sizes.float().mean():.1f}, {int(sizes.max())}"
    calls = {name: functools.partial(rival, good, bad) for name, rival in rivals.items()}
    if plain_reader():
        calls["plain read"] = functools.partial(plain_reader(), good)
    compare(benchmark, ("fused", functools.partial(contrastive_sample, good, bad, sampling)), calls, rounds=9)
