"""Plan a generation job: which batch fits, what the memory holds, and a lower bound on the time.

A step of the decode loop is a sequence of parts, each of which takes as long as the slower of its bytes and its
operations (Williams, Waterman & Patterson 2009, the roofline). Launches, latency and prompts are left out, so no run is
faster than this bound. On the CPU both rates are measured, and a short real run can be compared with the bound.
"""

import bisect
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PretrainedConfig

from cdgen.engine.engine import Engine
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.page_store import CacheShape
from cdgen.engine.paged_backend import PREFILL_TOKENS, PagedBackend
from cdgen.engine.requests import Prompts, make_requests
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.shared_cache import PAGE_SIZE
from cdgen.errors import InputError
from cdgen.hardware import GPUS, Machine
from cdgen.models.bad import parse_bad
from cdgen.models.configs import load_config, stored_dtype
from cdgen.models.dtypes import FP8, cache_dtype, default_dtype, dtype_name, float_dtype
from cdgen.models.load_errors import loading
from cdgen.values import INT32_MAX, integer, real

_MOST_TOKENS = 1e18
_USABLE = 0.9  # share of the memory; the rest is for the CUDA context and workspaces


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that a plan needs."""

    parameters: int  # all parameters
    products: int  # parameters that a step multiplies with, except those of the output layer
    output: int  # parameters of the output layer
    cache: CacheShape  # what a token stores in the cache, in float32
    activation: int  # numbers that a token needs while it passes through a layer
    vocab_size: int

    @classmethod
    def of(cls, config: PretrainedConfig, layers: int | None = None, trust_remote_code: bool = False) -> "Shape":
        """Return the shape of the model with this transformers config, or of its first `layers` layers."""
        if layers is not None:
            total = config.num_hidden_layers
            if not 1 <= layers < total:
                raise InputError(f"layers = {layers}: must be 1 to {total - 1}; GOOD has {total} layers")
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        total = sum(parameter.numel() for parameter in model.parameters())
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        outer = embedding.numel() + (0 if output is embedding else output.numel())
        inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
        return cls(
            total,
            total - outer,
            output.numel(),
            CacheShape(config.num_hidden_layers, heads, dim, torch.float32),
            3 * inner + 6 * config.hidden_size,  # gate, up and their product; the residual, a norm, q, k, v, attention
            config.vocab_size,
        )

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that a token takes in a cache of this dtype."""
        return self.cache._replace(dtype=dtype).bytes_per_token


@dataclass(frozen=True)
class Job:
    """What is to be generated.

    Raises:
        InputError: a number is out of range; the message names the field.
    """

    tokens: float  # new tokens in total
    prompt_tokens: int  # tokens per prompt
    max_tokens: int  # new tokens per continuation
    n: int  # continuations per prompt

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", real("tokens", self.tokens, 1, _MOST_TOKENS))
        for name in ("prompt_tokens", "max_tokens", "n"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1, INT32_MAX))


class PairShapes(NamedTuple):
    """The shapes of GOOD and BAD, and the number of weights that both keep in memory."""

    good: Shape
    bad: Shape | None
    weights: int


def shapes(good: str, bad: str | None, trust_remote_code: bool = False) -> PairShapes:
    """Return the shapes of two models from their configs alone; `bad` is as for :func:`~cdgen.models.bad.parse_bad`."""

    def shape(source: str, layers: int | None = None) -> Shape:
        with loading(source, "the config"):
            config = load_config(source, trust_remote_code=trust_remote_code)
            return Shape.of(config, layers, trust_remote_code)

    first = shape(good)
    if bad is None:
        return PairShapes(first, None, first.parameters)
    rule = parse_bad(bad)
    if "bad" not in rule:  # it shares GOOD's weights
        return PairShapes(first, shape(good, rule.get("layers")), first.parameters)
    second = shape(rule["bad"])
    return PairShapes(first, second, first.parameters + second.parameters)


def parts_of_memory(
    good: Shape, bad: Shape | None, weights: int, batch: int, job: Job, itemsize: int, pages: torch.dtype
) -> dict[str, int]:
    """Return bytes of memory by part, for `batch` sequences of full length.

    The whole pages of a prompt are shared by its n sequences. `pages` is the dtype of the cache.
    """
    per_token = good.cache_bytes(pages) + (bad.cache_bytes(pages) if bad else 0)
    shared = job.prompt_tokens // PAGE_SIZE * PAGE_SIZE
    own = -(-(job.prompt_tokens + job.max_tokens) // PAGE_SIZE) * PAGE_SIZE - shared
    prompts = -(-batch // job.n)
    return {
        "weights": weights * itemsize,
        "cache": (batch * own + prompts * shared) * per_token,
        # Prompts that are computed together; logits and what is derived from them, at most two float32 tensors.
        "activations": min(PREFILL_TOKENS, prompts * job.prompt_tokens) * good.activation * itemsize
        + batch * 8 * good.vocab_size,
    }


def largest_batch(
    machine: Machine,
    good: Shape,
    bad: Shape | None,
    weights: int,
    job: Job,
    itemsize: int,
    pages: torch.dtype,
    limit: int,
) -> int:
    """Return the greatest multiple of n, up to `limit`, whose memory fits; 0 if not even n sequences fit."""
    sizes = range(job.n, limit + 1, job.n) if limit >= job.n else range(1, limit + 1)

    def fits(batch: int) -> bool:
        return sum(parts_of_memory(good, bad, weights, batch, job, itemsize, pages).values()) <= machine.memory

    count = bisect.bisect(sizes, False, key=lambda batch: not fits(batch))  # memory grows with the batch
    return sizes[count - 1] if count else 0


def parts_of_step(
    machine: Machine,
    good: Shape,
    bad: Shape | None,
    batch: int,
    job: Job,
    itemsize: int,
    pages: torch.dtype,
    stored_logits: bool,
) -> dict[str, float]:
    """Return seconds of a step by part, for sequences of mean length.

    BAD's output layer is read for the candidates only, which is neglected. With `stored_logits`, GOOD's logits are
    written to memory and read again.
    """

    def seconds(size: float, operations: float = 0.0) -> float:
        return max(size / machine.bandwidth, operations / machine.matmul)

    length = job.prompt_tokens + job.max_tokens / 2
    parts = {"GOOD's layers": seconds(good.products * itemsize, 2.0 * batch * good.products)}
    if bad:
        parts["BAD's layers"] = seconds(bad.products * itemsize, 2.0 * batch * bad.products)
    per_token = good.cache_bytes(pages) + (bad.cache_bytes(pages) if bad else 0)
    parts["cache"] = seconds(batch * length * per_token)
    parts["output layer"] = seconds(good.output * itemsize, 2.0 * batch * good.output)
    parts["logits"] = seconds(2 * batch * good.vocab_size * 4 if stored_logits else 0)
    return parts


def measured_machine() -> Machine:
    """Measure this CPU: bandwidth of a read, and matrix products of a decode step's shape; medians of a few calls."""

    def rate(amount: float, call: Callable[[], object]) -> float:
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


@dataclass(frozen=True)
class Plan:
    """What fits on a machine, and how long a job takes at best."""

    machine_name: str
    machine: Machine  # its memory is the part that may be used
    measured: bool  # the machine's rates were measured, not taken from a data sheet
    job: Job
    dtype: torch.dtype
    cache_dtype: torch.dtype
    batch: int
    memory: dict[str, int]  # bytes by part
    step: dict[str, float]  # seconds of a step by part

    @property
    def rate(self) -> float:
        """Upper bound on the tokens per second."""
        return self.batch / sum(self.step.values())

    def lines(self) -> Iterator[str]:
        """Describe the plan in lines of text."""
        machine, job, step = self.machine, self.job, sum(self.step.values())
        kind = "measured here" if self.measured else "vendor's data sheet"
        rates = f"{machine.bandwidth / 1e9:.0f} GB/s, {machine.matmul / 1e12:.2f} TFLOP/s"
        yield f"machine: {self.machine_name}, {rates} ({kind})"
        dtypes = f"{dtype_name(self.dtype)}, cache {dtype_name(self.cache_dtype)}"
        yield f"batch: {self.batch} sequences of {job.prompt_tokens} + {job.max_tokens} tokens, {dtypes}"
        yield from (f"memory, {name}: {size / 1e9:.2f} GB" for name, size in self.memory.items())
        yield f"memory, total: {sum(self.memory.values()) / 1e9:.2f} of {machine.memory / 1e9:.1f} GB"
        for name, seconds in self.step.items():
            yield f"step, {name}: {seconds * 1e3:.3f} ms ({seconds / step:.0%})"
        hours = f"{job.tokens / self.rate / 3600:,.2f} hours for {job.tokens:,.0f} tokens"
        yield f"at best: {self.rate:,.0f} tokens/s, {hours} (bound, not a measurement)"


def plan(
    good: str,
    bad: str | None,
    job: Job,
    gpu: str,
    *,
    max_num_seqs: int = 512,
    memory_bytes: float | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Plan a job from the models' configs.

    Args:
        good: as for :class:`~cdgen.ContrastiveLM`.
        bad: as for :func:`~cdgen.models.bad.parse_bad`; None for plain sampling.
        job: what is to be generated.
        gpu: a name in :data:`~cdgen.hardware.GPUS`, or "cpu" for this machine's CPU, which is measured.
        max_num_seqs: greatest batch.
        memory_bytes: memory to use; default: 90 % of the machine's.
        dtype: dtype of the weights; default: that of :class:`~cdgen.ContrastiveLM` on this kind of device.
        kv_cache_dtype: dtype of the cache; default: that of the weights.
        trust_remote_code: run Python code that comes with a checkpoint.
    Raises:
        InputError: a model cannot be read, a dtype is unknown or not supported by the GPU, a number is out of range, or
            not one sequence fits into the memory.
    """
    on_cpu = gpu == "cpu"
    max_num_seqs = integer("max_num_seqs", max_num_seqs, 1, INT32_MAX)
    if dtype is None:
        weights_dtype = default_dtype(
            stored_dtype(good, trust_remote_code=trust_remote_code), "cpu" if on_cpu else "cuda"
        )
    else:
        weights_dtype = float_dtype("dtype", dtype)
    pages = cache_dtype(kv_cache_dtype or weights_dtype)
    if pages == FP8 and gpu == "a100":
        raise InputError("kv_cache_dtype = 'fp8': an A100 has no fp8 instructions; use bfloat16 or float16")
    sizes = weights_dtype.itemsize, pages
    pair = shapes(good, bad, trust_remote_code)
    machine = measured_machine() if on_cpu else GPUS[gpu]
    machine = replace(machine, memory=memory_bytes or _USABLE * machine.memory)
    batch = largest_batch(machine, *pair, job, *sizes, max_num_seqs)
    if not batch:
        need = sum(parts_of_memory(*pair, 1, job, *sizes).values()) / 1e9
        raise InputError(
            f"not one sequence fits: it needs {need:.3g} GB, and {machine.memory / 1e9:.3g} GB may be used"
        )
    memory = parts_of_memory(*pair, batch, job, *sizes)
    step = parts_of_step(machine, pair.good, pair.bad, batch, job, *sizes, stored_logits=on_cpu)
    return Plan(gpu, machine, on_cpu, job, weights_dtype, pages, batch, memory, step)


def measured_rate(lm: ContrastiveLM, batch: int, job: Job, steps: int = 8) -> float:
    """Return the tokens per second of a few steps of the engine, for sequences of mean length.

    Raises:
        InputError: the models do not run on the paged cache, which a plan describes.
    """
    if lm.static_reason:
        raise InputError(f"{lm.static_reason}; only models on the paged cache can be compared with their plan")
    params = SamplingParams(max_tokens=steps + 2, ignore_eos=True, contrast_strength=1.0 if lm.pair.bad else 0.0)
    length = job.prompt_tokens + job.max_tokens // 2
    generator = torch.Generator().manual_seed(0)
    count = -(-batch // job.n)
    prompts = [torch.randint(lm.pair.vocab_size, (length,), generator=generator).tolist() for _ in range(count)]
    requests = make_requests(Prompts(prompts), [divmod(at, job.n) for at in range(batch)])
    backend = PagedBackend(lm.pair, params, batch, length + steps + 2, **lm.kv_cache)
    engine = Engine(lm.pair, backend, requests, params, lambda place, output: None)  # none finishes in so few steps
    with torch.inference_mode():
        engine.refill()
        engine.step()
        start = time.perf_counter()
        for _ in range(steps):
            engine.step()
    return steps * batch / (time.perf_counter() - start)
