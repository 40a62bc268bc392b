"""The part `profile`: the kernels of a step and a refill, and the gaps in which the device is idle."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.generation import EngineLoop, sampling_params, synchronize
from benchmarks.gpu.context import Context
from benchmarks.gpu.models import PAPER, make
from benchmarks.gpu.records import Record
from cdgen.engine.engine import Engine
from cdgen.models.language_model import LanguageModel

BATCH, PROMPT, NEW_TOKENS = 512, 20, 40
TOP, GAPS = 20, 10  # number of recorded kernels and gaps
MAX_TRACE_BYTES = 12 << 20  # larger traces are not kept
NAME_LENGTH = 90  # recorded characters of a kernel's name


class Span(NamedTuple):
    """An activity of the device; times in microseconds."""

    start: float
    end: float
    name: str


def spans(profiler: profile, device: torch.device) -> list[Span]:
    """Return the activities of the device, by start time."""
    device_type = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    events = (event for event in profiler.events() if event.device_type == device_type)
    return sorted(Span(event.time_range.start, event.time_range.end, event.name[:NAME_LENGTH]) for event in events)


class Gap(NamedTuple):
    """A time in which the device was idle."""

    microseconds: float
    before: str  # the activity that ended before it
    after: str  # the activity that started after it


def gaps(found: list[Span]) -> list[Gap]:
    """Return the gaps between activities."""
    waits, last = [], found[0]
    for span in found[1:]:
        if span.start > last.end:
            waits.append(Gap(span.start - last.end, last.name, span.name))
        if span.end > last.end:
            last = span
    return waits


def start_loop(context: Context) -> EngineLoop:
    """Start the paper's pair with a full batch running and two others waiting."""
    batch = 4 if context.dry else BATCH
    good, bad = (LanguageModel(make(PAPER, seed, context.device), f"model {seed}") for seed in range(2))
    loop = EngineLoop(good, bad, sampling_params(max_tokens=NEW_TOKENS))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(good.width, (3 * batch, PROMPT), generator=generator).tolist()
    loop.start(prompts, batch)
    return loop


def advance(engine: Engine, context: Context) -> None:
    """Start waiting sequences if there is room, and run one round of steps."""
    engine.advance()
    synchronize(context.device)


def figures(ran: list[Span]) -> Record:
    """Return the figures of the record."""
    waits = gaps(ran)
    total = max(span.end for span in ran) - ran[0].start
    idle = sum(gap.microseconds for gap in waits)
    times: dict[str, float] = defaultdict(float)
    for span in ran:
        times[span.name] += span.end - span.start
    counts = Counter(span.name for span in ran)
    longest = sorted(times, key=times.__getitem__, reverse=True)
    return {
        "microseconds": total,
        "idle share": idle / total,
        "top kernels": [(kernel, times[kernel], counts[kernel]) for kernel in longest[:TOP]],
        "longest gaps": sorted(waits, reverse=True)[:GAPS],
        "line": f"{len(ran)} launches in {total / 1e3:.1f} ms, idle {idle / total:.0%}",
    }


def profile_job(context: Context) -> None:
    """Profile rounds of steps until a batch ends and the waiting one starts."""
    name = "rounds of steps and a refill"
    context.plan([name])
    with context.case(name) as found, torch.inference_mode():
        loop = start_loop(context)
        engine = loop.engine
        while not loop.finished:  # the first batch and a refill: graphs are captured outside the profile
            advance(engine, context)
        advance(engine, context)  # starts the second batch
        while NEW_TOKENS - len(loop.new_tokens()[0]) > 3 * engine.backend.steps_per_round:
            advance(engine, context)
        before = len(loop.finished)
        kinds = [ProfilerActivity.CPU] + ([] if context.dry else [ProfilerActivity.CUDA])
        with profile(activities=kinds) as profiler:
            while len(loop.finished) == before:  # the sequences of a batch end together, and the waiting ones start
                advance(engine, context)
            advance(engine, context)
        found |= figures(spans(profiler, context.device))
    if found["status"] != "ok":
        return
    for kernel, time, count in found["top kernels"][:8]:
        context.record("note", line=f"{time / found['microseconds']:5.1%} {count:5} x {kernel}")
    keep_trace(context, profiler)


def keep_trace(context: Context, profiler: profile) -> None:
    """Write the compressed Chrome trace beside the results file, unless it is large."""
    path = context.out.with_suffix(".trace.json.gz")
    profiler.export_chrome_trace(str(path))
    size = path.stat().st_size
    if size > MAX_TRACE_BYTES:
        path.unlink()
    context.record("note", trace=str(path) if size <= MAX_TRACE_BYTES else None, bytes=size)


JOBS: dict[str, Callable[[Context], None]] = {"paper_512": profile_job}
