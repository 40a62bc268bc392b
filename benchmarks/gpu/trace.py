"""The part `profile`: which kernels a step and a refill consist of, and where the device waits."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.generation import OfEngine, params, synchronize
from benchmarks.gpu.context import Context
from benchmarks.gpu.models import PAPER, make
from cdgen.engine.engine import Engine
from cdgen.models.language_model import LanguageModel

BATCH, PROMPT, NEW = 512, 20, 12
TOP, GAPS = 20, 10
MOST = 12 << 20  # bytes of a trace that is kept
NAME = 90  # characters of a kernel's name


class Span(NamedTuple):
    """Something that the device did; times in microseconds."""

    start: float
    end: float
    name: str


def spans(profiler: profile, device: torch.device) -> list[Span]:
    """What ran on the device, in order of its start."""
    wanted = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    events = (event for event in profiler.events() if event.device_type == wanted)
    return sorted(Span(event.time_range.start, event.time_range.end, event.name[:NAME]) for event in events)


def gaps(found: list[Span]) -> list[tuple[float, str, str]]:
    """(microseconds, what ended before it, what started after it) of every time in which nothing ran."""
    waits, last = [], found[0]
    for span in found[1:]:
        if span.start > last.end:
            waits.append((span.start - last.end, last.name, span.name))
        if span.end > last.end:
            last = span
    return waits


def start_engine(context: Context) -> OfEngine:
    """The paper's pair with a full batch running and another one waiting."""
    batch = 4 if context.dry else BATCH
    models = [LanguageModel(make(PAPER, seed, context.device), f"model {seed}") for seed in range(2)]
    variant = OfEngine(*models, params(max_tokens=NEW))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(models[0].width, (2 * batch, PROMPT), generator=generator).tolist()
    variant.compute(prompts, batch)
    return variant


def advance(engine: Engine, context: Context) -> None:
    """One round of steps, then whatever can start."""
    engine.step()
    engine.refill()
    synchronize(context.device)


def profile_job(context: Context) -> None:
    name = "rounds of steps and a refill"
    context.plan([name])
    with context.case(name) as found, torch.inference_mode():
        engine = start_engine(context).engine
        while NEW - len(engine.texts[0].tokens) > 2 * engine.backend.sync_every:
            advance(engine, context)
        kinds = [ProfilerActivity.CPU] + ([] if context.dry else [ProfilerActivity.CUDA])
        with profile(activities=kinds) as profiler:
            while not engine.results:  # all texts of a batch end together, and those that waited start
                advance(engine, context)
            advance(engine, context)
        ran = spans(profiler, context.device)
        waits = gaps(ran)
        total = max(span.end for span in ran) - ran[0].start
        times, counts = Counter(), Counter()
        for span in ran:
            times[span.name] += span.end - span.start
            counts[span.name] += 1
        idle = sum(wait for wait, _, _ in waits)
        found["microseconds"] = total
        found["idle share"] = idle / total
        found["top kernels"] = [(kernel, time, counts[kernel]) for kernel, time in times.most_common(TOP)]
        found["longest gaps"] = sorted(waits, reverse=True)[:GAPS]
        found["line"] = f"{len(ran)} launches in {total / 1e3:.1f} ms, idle {idle / total:.0%}"
    if found["status"] != "ok":
        return
    for kernel, time, count in found["top kernels"][:8]:
        context.record("note", line=f"{time / total:5.1%} {count:5} x {kernel}")
    keep_trace(context, profiler)


def keep_trace(context: Context, profiler: profile) -> None:
    """Write the Chrome trace beside the results, compressed, unless it is large."""
    path = context.out.with_suffix(".trace.json.gz")
    profiler.export_chrome_trace(str(path))
    size = path.stat().st_size
    if size > MOST:
        path.unlink()
    context.record("note", trace=str(path) if size <= MOST else None, bytes=size)


JOBS: dict[str, Callable[[Context], None]] = {"paper_512": profile_job}
