"""Plan a generation job: which batch fits, what the memory holds, a lower bound on the time, and the corpus's size.

On the CPU, the machine's rates are measured, and the time of a few real steps can be compared with the bound.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear

from cdgen.engine import corpus_size
from cdgen.engine.engine import Engine
from cdgen.engine.estimates import Job, Storage, largest_batch, parts_of_memory, parts_of_step
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.model_sizes import shapes
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, default_batch, make_requests
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.hardware import GPUS, Machine
from cdgen.models.configs import stored_dtype
from cdgen.models.dtypes import FP8, cache_dtype, default_dtype, dtype_name, float_dtype
from cdgen.models.products import can_pack
from cdgen.values import INT32_MAX, integer

_USABLE = 0.9  # share of the memory; the rest is for the CUDA context and workspaces


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
    storage: Storage
    batch: int
    memory: dict[str, int]  # bytes by part
    step: dict[str, float]  # seconds of a step by part
    machines: int = 1  # number of such machines that share the job

    @property
    def rate(self) -> float:
        """Upper bound on the tokens per second of one machine."""
        return self.batch / sum(self.step.values())

    def lines(self) -> Iterator[str]:
        """Describe the plan in lines of text."""
        machine, job, step = self.machine, self.job, sum(self.step.values())
        kind = "measured here" if self.measured else "vendor's data sheet"
        rates = f"{machine.bandwidth / 1e9:.0f} GB/s, {machine.matmul / 1e12:.2f} TFLOP/s"
        yield f"machine: {self.machine_name}, {rates} ({kind})"
        dtypes = f"{dtype_name(self.storage.weights)}, cache {dtype_name(self.storage.pages)}"
        yield f"batch: {self.batch} sequences of {job.prompt_tokens} + {job.max_tokens} tokens, {dtypes}"
        yield from (f"memory, {name}: {size / 1e9:.2f} GB" for name, size in self.memory.items())
        yield f"memory, total: {sum(self.memory.values()) / 1e9:.2f} of {machine.memory / 1e9:.1f} GB"
        for name, seconds in self.step.items():
            yield f"step, {name}: {seconds * 1e3:.3f} ms ({seconds / step:.0%})"
        hours = job.tokens / self.rate / 3600
        spent = f"{hours / self.machines:,.2f} hours"
        if self.machines > 1:
            spent += f" on {self.machines:,} GPUs, {hours:,.2f} GPU-hours"
        rate = self.rate * self.machines
        yield f"at best: {rate:,.0f} tokens/s, {spent} for {job.tokens:,.0f} tokens (bound, not a measurement)"
        yield from corpus_size.lines(job)


def plan(
    good: str,
    bad: str | None,
    job: Job,
    gpu: str,
    *,
    gpus: int = 1,
    max_num_seqs: int | None = None,
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
        gpus: number of such GPUs that share the job; each decodes batches of its own.
        max_num_seqs: greatest batch of one GPU; default: that of :class:`~cdgen.ContrastiveLM`.
        memory_bytes: memory to use; default: 90 % of the machine's.
        dtype: dtype of the weights; default: that of :class:`~cdgen.ContrastiveLM` on this kind of device.
        kv_cache_dtype: dtype of the cache; default: that of the weights.
        trust_remote_code: run Python code that comes with a checkpoint.
    Raises:
        InputError: a model cannot be read, a dtype is unknown or not supported by the GPU, a number is out of range, or
            not one sequence fits into the memory.
    """
    on_cpu = gpu == "cpu"
    gpus = integer("gpus", gpus, 1, INT32_MAX)
    if on_cpu and gpus > 1:
        raise InputError(f"gpus = {gpus}: a job on the CPU is planned for this machine alone")
    if max_num_seqs is None:
        max_num_seqs = default_batch("cpu" if on_cpu else "cuda")
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
    storage = Storage(weights_dtype, pages, packed=on_cpu and can_pack(torch.empty(0, dtype=weights_dtype)))
    pair = shapes(good, bad, trust_remote_code)
    machine = measured_machine() if on_cpu else GPUS[gpu]
    machine = replace(machine, memory=memory_bytes or _USABLE * machine.memory)
    batch = largest_batch(machine, pair, job, storage, max_num_seqs)
    if not batch:
        need = sum(parts_of_memory(pair, 1, job, storage).values()) / 1e9
        raise InputError(
            f"not one sequence fits: it needs {need:.3g} GB, and {machine.memory / 1e9:.3g} GB may be used"
        )
    memory = parts_of_memory(pair, batch, job, storage)
    step = parts_of_step(machine, pair, batch, job, storage, stored_logits=on_cpu)
    return Plan(gpu, machine, on_cpu, job, storage, batch, memory, step, gpus)


def measured_rate(lm: ContrastiveLM, batch: int, job: Job, steps: int = 8) -> float:
    """Return the tokens per second of a few steps of the engine, for sequences of mean length.

    Raises:
        InputError: the models do not run on the paged cache, which a plan describes.
    """
    if lm.static_reason:
        raise InputError(f"{lm.static_reason}; only models on the paged cache can be compared with their plan")
    tokens = steps + 3  # one is drawn by the refill and one by the step before the timed ones, and one is never drawn
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, contrast_strength=1.0 if lm.pair.bad else 0.0)
    length = job.prompt_tokens + job.max_tokens // 2
    generator = torch.Generator().manual_seed(0)
    count = -(-batch // job.n)
    prompts = [torch.randint(lm.pair.vocab_size, (length,), generator=generator).tolist() for _ in range(count)]
    requests = make_requests(Prompts(prompts), [divmod(at, job.n) for at in range(batch)])
    backend = PagedBackend(lm.pair, params, batch, length + tokens, **lm.kv_cache)
    engine = Engine(lm.pair, backend, requests, params, lambda place, output: None)  # none finishes in so few steps
    try:
        with torch.inference_mode():
            engine.refill()
            engine.step()
            start = time.perf_counter()
            for _ in range(steps):
                engine.step()
            return steps * batch / (time.perf_counter() - start)
    finally:
        backend.close()
