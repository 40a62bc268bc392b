"""The part `generate`: speed and memory of ContrastiveLM.generate, called as users call it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.models import LLAMA3_1B, LLAMA3_8B, PAPER, PAPER_20X, Shape, make
from benchmarks.gpu.records import Record
from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.estimates import Job, Storage, parts_of_memory, parts_of_step
from cdgen.engine.model_sizes import PairShapes
from cdgen.engine.model_sizes import Shape as PlanShape
from cdgen.hardware import data_sheet

PROMPT, N = 20, 8  # tokens per prompt, continuations per prompt


class Setting(NamedTuple):
    """One configuration: the pair, the batch, and the number of tokens to generate."""

    good: Shape
    bad: Shape | None  # None: GOOD with attention dropout
    batch: int  # max_num_seqs
    new_tokens: int  # per continuation
    rounds: int = 1  # number of continuations divided by the batch
    stop_every: int = 0  # one token id in this many is a stop token; 0: no stop tokens

    def for_dry_run(self) -> "Setting":
        """Return a small version of this setting."""
        return self._replace(batch=2 * N, new_tokens=6, stop_every=min(self.stop_every, 10))


SETTINGS: dict[str, Setting] = {
    "paper_128": Setting(PAPER, PAPER, 128, 128),
    "paper_512": Setting(PAPER, PAPER, 512, 128),
    "paper_1024": Setting(PAPER, PAPER, 1024, 128),
    "paper_20x_512": Setting(PAPER, PAPER_20X, 512, 128),
    "paper_dropout_512": Setting(PAPER, None, 512, 128),
    "paper_512_refills": Setting(PAPER, PAPER, 512, 128, rounds=3, stop_every=300),
    "llama3_64": Setting(LLAMA3_8B, LLAMA3_1B, 64, 64),
    "llama3_256": Setting(LLAMA3_8B, LLAMA3_1B, 256, 64),
}
DROPOUT = 0.3


def build(setting: Setting, device: torch.device) -> ContrastiveLM:
    """Create the pair with random weights."""
    good = make(setting.good, 0, device)
    bad = {"dropout": DROPOUT} if setting.bad is None else {"bad": make(setting.bad, 1, device)}
    return ContrastiveLM(good, **bad, max_num_seqs=setting.batch)


class GraphTimes:
    """Times of the CUDA graphs that are replayed and captured within a `watched_graphs` block."""

    def __init__(self) -> None:
        self.replays: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.captures = 0
        self.capturing = 0.0  # total seconds of the captures

    @property
    def seconds(self) -> float:
        """Total time of the replays on the device."""
        return float(sum(start.elapsed_time(end) for start, end in self.replays)) * 1e-3


@contextmanager
def watched_graphs() -> Iterator[GraphTimes]:
    """Record every replay and capture of a torch.cuda.CUDAGraph within the block."""
    times, graph = GraphTimes(), torch.cuda.CUDAGraph
    replay, begin, end = graph.replay, graph.capture_begin, graph.capture_end
    started: dict[int, float] = {}

    def timed_replay(self: torch.cuda.CUDAGraph) -> None:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay(self)
        stop.record()
        times.replays.append((start, stop))

    def timed_begin(self: torch.cuda.CUDAGraph, *arguments: Any, **options: Any) -> None:
        started[id(self)] = time.perf_counter()
        begin(self, *arguments, **options)

    def timed_end(self: torch.cuda.CUDAGraph) -> None:
        end(self)
        times.captures += 1
        times.capturing += time.perf_counter() - started.pop(id(self))

    graph.replay, graph.capture_begin, graph.capture_end = timed_replay, timed_begin, timed_end
    try:
        yield times
    finally:
        graph.replay, graph.capture_begin, graph.capture_end = replay, begin, end


class Memory:
    """Bytes that torch has allocated on the device; None on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def allocated(self) -> int | None:
        """Return the bytes in use now."""
        return torch.cuda.memory_allocated() if self._on_gpu else None

    def peak(self) -> int | None:
        """Return the largest number of bytes in use since the last reset."""
        return torch.cuda.max_memory_allocated() if self._on_gpu else None

    def reset(self) -> None:
        """Let the peak start from the bytes in use now."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()


def plan_figures(lm: ContrastiveLM, setting: Setting) -> Record:
    """Return the figures of `cdgen plan` for this run: the bytes of each part, and the bound on tokens per second."""
    pair = lm.pair
    good, bad = (PlanShape.of(model.module.config) for model in (pair.good, pair.bad))
    shapes = PairShapes(good, bad, shared=setting.bad is None)
    job = Job(setting.batch * setting.new_tokens, PROMPT, setting.new_tokens, N)
    dtype, sheet = pair.good.module.dtype, data_sheet(pair.good.device)
    storage = Storage(dtype, dtype)
    found = {"planned bytes": parts_of_memory(shapes, setting.batch, job, storage)}
    if sheet is None:
        return found | {"bound, tokens/s": None}
    step = parts_of_step(sheet, shapes, setting.batch, job, storage, stored_logits=False)
    return found | {"bound, tokens/s": setting.batch / sum(step.values())}


def measure(lm: ContrastiveLM, setting: Setting, found: Record) -> None:
    """Call generate() twice, and record figures of the second call, for which everything is compiled."""
    vocab_size = lm.pair.vocab_size
    count = setting.batch * setting.rounds // N
    prompts = torch.randint(vocab_size, (count, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    stops = tuple(range(0, vocab_size, setting.stop_every)) if setting.stop_every else ()
    params = SamplingParams(n=N, max_tokens=setting.new_tokens, ignore_eos=True, stop_token_ids=stops, seed=1)
    memory = Memory(lm.pair.good.device)
    start = time.perf_counter()
    lm.generate(prompts, params)
    found["first call, seconds"] = time.perf_counter() - start
    found["allocated after first call"] = memory.allocated()
    memory.reset()
    with watched_graphs() as graphs:
        start = time.perf_counter()
        outputs = lm.generate(prompts, params)
        wall = time.perf_counter() - start
    continuations = [output.token_ids for request in outputs for output in request.outputs]
    tokens = sum(map(len, continuations))
    found |= {
        "seconds of the call": wall,
        "tokens": tokens,
        "tokens/s": tokens / wall,
        "mean length": tokens / len(continuations),
        "distinct tokens": len({token for ids in continuations for token in ids}),
        "graph replays": len(graphs.replays),
        "seconds of replays": graphs.seconds,
        "host share": 1 - graphs.seconds / wall,
        "graph captures": graphs.captures,
        "seconds of captures": graphs.capturing,
        "allocated after second call": memory.allocated(),
        "peak bytes": memory.peak(),
    }
    found |= plan_figures(lm, setting)
    if not setting.stop_every and any(len(ids) != setting.new_tokens for ids in continuations):
        found |= {"status": "wrong", "failure": "a continuation ended early, although there are no stop tokens"}


def describe(name: str, found: Record) -> str:
    """Return the figures in one line."""
    line = f"{name}: {found['tokens/s']:,.0f} tokens/s"
    if found["bound, tokens/s"]:
        line += f" of {found['bound, tokens/s']:,.0f}"
    if found["graph replays"]:
        step = found["seconds of replays"] / found["graph replays"]
        line += f", {step * 1e3:.2f} ms per replay, host share {found['host share']:.0%}"
        line += f", {found['graph captures']} captures {found['seconds of captures']:.2f} s"
    if found["peak bytes"]:
        planned = sum(found["planned bytes"].values())
        line += f", peak {found['peak bytes'] / 1e9:.2f} GB ({found['peak bytes'] / planned:.0%} of plan)"
    return line


def generate_job(context: Context, name: str) -> None:
    """Measure one setting."""
    setting = SETTINGS[name].for_dry_run() if context.dry else SETTINGS[name]
    context.plan([name])
    with context.case(name) as found:
        found["setting"] = str(setting)
        start = time.perf_counter()
        lm = build(setting, context.device)
        found["seconds to build"] = time.perf_counter() - start
        measure(lm, setting, found)
        found["line"] = describe(name, found)


JOBS: dict[str, Callable[[Context], None]] = {name: partial(generate_job, name=name) for name in SETTINGS}
