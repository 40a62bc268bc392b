"""`cdgen plan`: which batch fits, what memory holds, and how long a corpus takes at best, part by part.

A step of the decode loop is a sequence of parts, each of which takes as long as the slower of its bytes and its
operations (Williams, Waterman & Patterson 2009, the roofline). Launches, latency and prompts are left out, so this is
a bound that no run beats; on the CPU both rates are measured and a short real run stands beside the prediction.
"""

import os
import statistics
import time
from collections import deque
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from cdgen.engine.engine import Engine, Request
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.paged_backend import PREFILL_TOKENS, PagedBackend
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.hardware import GPUS, Machine
from cdgen.models.bad import parse_bad
from cdgen.models.dtypes import default_dtype, dtype_name, float_dtype
from cdgen.models.loading import load_config, stored_dtype
from cdgen.models.quiet import quiet_transformers

_USABLE = 0.9  # of the memory; the rest is the context's and the workspaces'


@dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a model."""

    parameters: int  # all of them
    products: int  # those that a step multiplies with, the output layer left out
    output: int  # of the output layer
    cache: int  # numbers that a token leaves in the cache
    activation: int  # numbers that a token needs while it passes through a layer
    vocab_size: int

    @classmethod
    def of(cls, config, layers=None):
        """Of a transformers config, or of its first `layers`."""
        if layers is not None:
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        with torch.device("meta"), quiet_transformers():
            model = AutoModelForCausalLM.from_config(config)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        total = sum(parameter.numel() for parameter in model.parameters())
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        apart = embedding.numel() + (0 if output is embedding else output.numel())
        inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
        return cls(
            total,
            total - apart,
            output.numel(),
            2 * config.num_hidden_layers * heads * dim,
            3 * inner + 6 * config.hidden_size,  # gate, up and their product; the residual, a norm, q, k, v, attention
            config.vocab_size,
        )


@dataclass(frozen=True)
class Job:
    """What is to be written: `tokens` new ones, in texts of `prompt` + `new` tokens, `n` of each prompt."""

    tokens: float
    prompt: int
    new: int
    n: int


def shapes(good, bad, trust_remote_code=False):
    """(GOOD's :class:`Shape`, BAD's or None, numbers of weights that both keep in memory), from their configs alone."""

    options = {"trust_remote_code": trust_remote_code}
    first = Shape.of(load_config(good, **options))
    if bad is None:
        return first, None, first.parameters
    rule = parse_bad(bad)
    if "bad" not in rule:
        return (
            first,
            Shape.of(load_config(good, **options), rule.get("layers")),
            first.parameters,
        )  # it is made of GOOD's own weights
    second = Shape.of(load_config(rule["bad"], **options))
    return first, second, first.parameters + second.parameters


def parts_of_memory(good, bad, weights, batch, job, itemsize, cache_itemsize):
    """Bytes by what they hold, of `batch` texts at their longest; a prompt's whole pages are shared by its n texts."""
    per_token = (good.cache + (bad.cache if bad else 0)) * cache_itemsize
    pages = 16  # tokens of one
    shared = job.prompt // pages * pages
    own = -(-(job.prompt + job.new) // pages) * pages - shared
    prompts = -(-batch // job.n)
    return {
        "weights": weights * itemsize,
        "cache": (batch * own + prompts * shared) * per_token,
        # of the prompts computed together, and logits and what is made of them: at most two float32 each
        "activations": min(PREFILL_TOKENS, prompts * job.prompt) * good.activation * itemsize
        + batch * 8 * good.vocab_size,
    }


def largest_batch(machine, good, bad, weights, job, itemsize, cache_itemsize, limit):
    """The greatest multiple of n, up to `limit`, whose memory fits; 0 where not even n texts do."""
    for batch in range(limit - limit % job.n or limit, 0, -job.n if limit >= job.n else -1):
        if sum(parts_of_memory(good, bad, weights, batch, job, itemsize, cache_itemsize).values()) <= machine.memory:
            return batch
    return 0


def parts_of_step(machine, good, bad, batch, job, itemsize, cache_itemsize, stored_logits):
    """Seconds of a step by part, at texts of mean length; BAD's output layer is read at the candidates only."""

    def seconds(size, operations=0.0):
        return max(size / machine.bandwidth, operations / machine.matmul)

    length = job.prompt + job.new / 2
    parts = {"GOOD's layers": seconds(good.products * itemsize, 2.0 * batch * good.products)}
    if bad:
        parts["BAD's layers"] = seconds(bad.products * itemsize, 2.0 * batch * bad.products)
    per_token = (good.cache + (bad.cache if bad else 0)) * cache_itemsize
    parts["cache"] = seconds(batch * length * per_token)
    parts["output layer"] = seconds(good.output * itemsize, 2.0 * batch * good.output)
    parts["logits"] = seconds(2 * batch * good.vocab_size * 4 if stored_logits else 0)  # written, then read
    return parts


def measured_machine():
    """The CPU at hand: bandwidth of a read, and products of a decode step's shape, medians of a few calls."""

    def rate(amount, call):
        times = []
        for _ in range(6):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return amount / statistics.median(times[1:])

    block, x, weight = torch.ones(64 << 20), torch.ones(128, 1024), torch.ones(4096, 1024)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        memory, rate(block.nbytes, block.sum), rate(2.0 * len(x) * weight.numel(), lambda: linear(x, weight))
    )


def real_rate(lm, batch, job, steps=8):
    """Tokens a second of a few steps of the engine, at texts of mean length."""
    params = SamplingParams(max_tokens=steps + 2, ignore_eos=True, contrast_strength=1.0 if lm.pair.bad else 0.0)
    length = job.prompt + job.new // 2
    generator, requests = torch.Generator().manual_seed(0), []
    for prompt, start in enumerate(range(0, batch, job.n)):
        ids = torch.randint(lm.pair.vocab_size, (length,), generator=generator).tolist()
        places = range(start, min(start + job.n, batch))
        requests.append(Request(ids, deque((at, (prompt << 32) + at - start) for at in places), prompt << 32))
    backend = PagedBackend(lm.pair, params, batch, length + params.max_tokens, **lm.kv_cache)
    engine = Engine(lm.pair, backend, requests, params)
    with torch.inference_mode():
        engine.refill()
        engine.step()
        start = time.perf_counter()
        for _ in range(steps):
            engine.step()
    return steps * batch / (time.perf_counter() - start)


def plan(args):
    """The lines that `cdgen plan` prints."""
    job = Job(args.tokens, args.prompt_tokens, args.max_tokens, args.n)
    on_cpu = args.gpu == "cpu"
    dtype = args.dtype
    if dtype is None:
        stored = stored_dtype(args.good, trust_remote_code=args.trust_remote_code)
        dtype = default_dtype(stored, "cpu" if on_cpu else "cuda")
    dtype = float_dtype("dtype", dtype)
    cache_dtype = float_dtype("kv_cache_dtype", args.kv_cache_dtype or dtype)
    good, bad, weights = shapes(args.good, args.bad, args.trust_remote_code)
    machine = measured_machine() if on_cpu else GPUS[args.gpu]
    machine = replace(machine, memory=args.memory_gb * 1e9 if args.memory_gb else _USABLE * machine.memory)
    given = good, bad, weights, job, dtype.itemsize, cache_dtype.itemsize
    batch = largest_batch(machine, *given, args.batch_size)
    if not batch:
        need = sum(parts_of_memory(good, bad, weights, 1, job, dtype.itemsize, cache_dtype.itemsize).values())
        raise InputError(f"not one text fits: {need / 1e9:.3g} GB are needed, {machine.memory / 1e9:.3g} GB are there")
    memory = parts_of_memory(good, bad, weights, batch, job, dtype.itemsize, cache_dtype.itemsize)
    parts = parts_of_step(machine, good, bad, batch, job, dtype.itemsize, cache_dtype.itemsize, stored_logits=on_cpu)
    step = sum(parts.values())
    kind = "measured here" if on_cpu else "vendor's data sheet"
    yield f"machine: {args.gpu}, {machine.bandwidth / 1e9:.0f} GB/s, {machine.matmul / 1e12:.2f} TFLOP/s ({kind})"
    dtypes = f"{dtype_name(dtype)}, cache {dtype_name(cache_dtype)}"
    yield f"batch: {batch} texts of {job.prompt} + {job.new} tokens, {dtypes}"
    yield from (f"memory, {name}: {size / 1e9:.2f} GB" for name, size in memory.items())
    yield f"memory, together: {sum(memory.values()) / 1e9:.2f} of {machine.memory / 1e9:.1f} GB"
    yield from (f"step, {name}: {seconds * 1e3:.3f} ms ({seconds / step:.0%})" for name, seconds in parts.items())
    rate = batch / step
    hours = job.tokens / rate / 3600
    yield f"at best: {rate:,.0f} tokens/s, {hours:,.2f} hours for {job.tokens:,.0f} tokens (bound, not a measurement)"
    if on_cpu and args.run:
        chosen = parse_bad(args.bad) if args.bad else {}
        lm = ContrastiveLM(args.good, **chosen, dtype=args.dtype, kv_cache_dtype=args.kv_cache_dtype, device="cpu")
        if lm.static_reason:
            raise InputError(
                f"{lm.static_reason}; the prediction is of the paged engine: leave the run out with --no-run"
            )
        real = real_rate(lm, batch, job)
        yield f"a short run: {real:,.0f} tokens/s, {real / rate:.0%} of that bound"
