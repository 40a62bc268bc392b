"""The part `rivals`: a step of the engine beside the same pair in transformers' own loop."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.generation import CompiledLoop, OfEngine, PaperLoop, StaticLoop, params, synchronize
from benchmarks.gpu.context import Context
from benchmarks.gpu.models import PAPER, make
from benchmarks.gpu.records import Record
from cdgen.models.language_model import LanguageModel

BATCH, LENGTH, STEPS = 128, 220, 20  # texts, tokens before the first step, steps that are timed
PROMPTS, PROMPT, GREEDY_TOKENS = 8, 20, 9  # compared before anything is timed
WARM_UP = 4  # steps of a loop; the engine makes several tokens in one
LOOPS: dict[str, type] = {"DynamicCache": PaperLoop, "StaticCache": StaticLoop}
COMPILED: dict[str, type] = {"StaticCache, torch.compile": CompiledLoop}


def pair(context: Context, dtype: torch.dtype) -> list[LanguageModel]:
    return [LanguageModel(make(PAPER, seed, context.device, dtype), f"model {seed}") for seed in range(2)]


def greedy_tokens(kind: type, models: list[LanguageModel]) -> list[list[int]]:
    """GREEDY_TOKENS new tokens of each prompt, best of the head at each step."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(models[0].width, (PROMPTS, PROMPT), generator=generator).tolist()
    variant = kind(*models, params(temperature=0.0, max_tokens=GREEDY_TOKENS + WARM_UP))
    found = [variant.compute(prompts)]
    if kind is OfEngine:
        while len(variant.written()[0]) < GREEDY_TOKENS:
            variant.step()
        found = variant.written()
    else:
        found += [variant.step() for _ in range(GREEDY_TOKENS - 1)]
        found = [list(tokens) for tokens in zip(*found, strict=True)]
    variant.close()
    return [tokens[:GREEDY_TOKENS] for tokens in found]


def compare(context: Context, loops: dict[str, type], found: Record) -> None:
    """All loops must write the same greedy texts in float32, where rounding hardly ever changes a token."""
    models = pair(context, torch.float32)
    wanted = greedy_tokens(OfEngine, models)
    differing = {}
    for name, kind in loops.items():
        texts = greedy_tokens(kind, models)
        differing[name] = sum(a != b for a, b in zip(texts, wanted, strict=True))
    found["greedy texts that differ"] = differing
    if any(differing.values()):
        found |= {"status": "wrong", "failure": f"greedy texts of {PROMPTS} differ: {differing}"}


def seconds_per_token(variant: Any, steps: int, device: torch.device) -> list[float]:
    """Seconds per step of a loop; seconds per token of the engine, whose steps draw several."""
    times = []
    if isinstance(variant, OfEngine):
        variant.step()
        while sum(count for count, _ in times) < steps:
            before = len(variant.written()[0])
            synchronize(device)
            start = time.perf_counter()
            variant.step()
            synchronize(device)
            seconds = time.perf_counter() - start
            times.append((len(variant.written()[0]) - before, seconds))
        return [seconds / count for count, seconds in times]
    for _ in range(WARM_UP):
        variant.advance()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        variant.advance()
    synchronize(device)
    return [(time.perf_counter() - start) / steps]


def time_loops(context: Context, loops: dict[str, type], found: Record) -> None:
    rows, length, steps = (4, 12, 3) if context.dry else (BATCH, LENGTH, STEPS)
    models, medians = pair(context, torch.bfloat16), {}
    for name, kind in {"cdgen": OfEngine, **loops}.items():
        variant = kind(*models, params(max_tokens=steps + 3 * WARM_UP))
        variant.place(rows, length)
        medians[name] = statistics.median(seconds_per_token(variant, steps, context.device))
        variant.close()
        del variant
    ratios = {name: seconds / medians["cdgen"] for name, seconds in medians.items() if name != "cdgen"}
    found |= {"batch": rows, "length": length, "seconds per step": medians, "times cdgen": ratios}
    shown = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    found["line"] = f"a step of {rows} texts at {length} tokens: cdgen {medians['cdgen'] * 1e3:.2f} ms; {shown}"


def loops_job(context: Context, loops: dict[str, type]) -> None:
    if context.dry:  # traced, not compiled
        CompiledLoop.options = {"backend": "eager"}
    names = ", ".join(loops)
    context.plan([f"greedy, {names}", f"step, {names}"])
    with context.case(f"greedy, {names}") as found:
        compare(context, loops, found)
    if found["status"] == "ok":
        with context.case(f"step, {names}") as found:
            time_loops(context, loops, found)


JOBS: dict[str, Callable[[Context], None]] = {
    "eager": partial(loops_job, loops=LOOPS),
    "compiled": partial(loops_job, loops=COMPILED),
}
