"""The part `rivals`: compare a step of the engine with transformers' own loop, for the same pair."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.generation import CompiledLoop, EngineLoop, PaperLoop, StaticLoop, sampling_params, synchronize
from benchmarks.gpu.context import Context
from benchmarks.gpu.models import PAPER, make
from benchmarks.gpu.records import Record
from cdgen.models.language_model import LanguageModel

BATCH, LENGTH, STEPS = 128, 220, 20  # sequences, tokens before the first step, timed steps
PROMPTS, PROMPT, GREEDY_TOKENS = 8, 20, 9  # prompts, tokens of each, new tokens that are compared before the timing
WARM_UP = 4  # untimed steps of a loop; for the engine, which draws several tokens per step, one step
LOOPS: dict[str, type[PaperLoop]] = {"DynamicCache": PaperLoop, "StaticCache": StaticLoop}
COMPILED: dict[str, type[PaperLoop]] = {"StaticCache, torch.compile": CompiledLoop}


def make_pair(context: Context, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    good, bad = (LanguageModel(make(PAPER, seed, context.device, dtype), f"model {seed}") for seed in range(2))
    return good, bad


def greedy_tokens(
    kind: type[PaperLoop] | type[EngineLoop], models: tuple[LanguageModel, LanguageModel]
) -> list[list[int]]:
    """Return the first GREEDY_TOKENS tokens that a loop writes after each prompt at temperature 0."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(models[0].width, (PROMPTS, PROMPT), generator=generator).tolist()
    loop = kind(*models, sampling_params(temperature=0.0, max_tokens=GREEDY_TOKENS + WARM_UP))
    first = loop.start(prompts)
    if isinstance(loop, EngineLoop):
        while len(loop.new_tokens()[0]) < GREEDY_TOKENS:
            loop.step()
        found = loop.new_tokens()
    else:
        steps = [first, *(loop.step() for _ in range(GREEDY_TOKENS - 1))]
        found = [list(tokens) for tokens in zip(*steps, strict=True)]
    loop.close()
    return [tokens[:GREEDY_TOKENS] for tokens in found]


def compare(context: Context, loops: dict[str, type[PaperLoop]], found: Record) -> None:
    """Check that all loops write the same greedy tokens in float32, in which rounding hardly ever changes a token."""
    models = make_pair(context, torch.float32)
    expected = greedy_tokens(EngineLoop, models)
    differing = {}
    for name, kind in loops.items():
        tokens = greedy_tokens(kind, models)
        differing[name] = sum(a != b for a, b in zip(tokens, expected, strict=True))
    found["greedy sequences that differ"] = differing
    if any(differing.values()):
        found |= {"status": "wrong", "failure": f"greedy sequences that differ, of {PROMPTS}: {differing}"}


def engine_seconds(loop: EngineLoop, tokens: int, device: torch.device) -> list[float]:
    """Return the seconds per token of each step, in which the engine may draw several tokens per sequence."""
    loop.step()
    times: list[float] = []
    drawn = 0
    while drawn < tokens:
        before = len(loop.new_tokens()[0])
        synchronize(device)
        start = time.perf_counter()
        loop.step()
        synchronize(device)
        seconds = time.perf_counter() - start
        count = len(loop.new_tokens()[0]) - before
        times.append(seconds / count)
        drawn += count
    return times


def loop_seconds(loop: PaperLoop, steps: int, device: torch.device) -> list[float]:
    """Return the mean seconds per step, as a list of one."""
    for _ in range(WARM_UP):
        loop.advance()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        loop.advance()
    synchronize(device)
    return [(time.perf_counter() - start) / steps]


def time_loops(context: Context, loops: dict[str, type[PaperLoop]], found: Record) -> None:
    """Time the engine and all loops, one after another."""
    batch, length, steps = (4, 12, 3) if context.dry else (BATCH, LENGTH, STEPS)
    models, medians = make_pair(context, torch.bfloat16), {}
    kinds: dict[str, type[PaperLoop] | type[EngineLoop]] = {"cdgen": EngineLoop, **loops}
    for name, kind in kinds.items():
        loop = kind(*models, sampling_params(max_tokens=steps + 3 * WARM_UP))
        loop.start_at(batch, length)
        if isinstance(loop, EngineLoop):
            seconds = engine_seconds(loop, steps, context.device)
        else:
            seconds = loop_seconds(loop, steps, context.device)
        medians[name] = statistics.median(seconds)
        loop.close()
        del loop
    ratios = {name: seconds / medians["cdgen"] for name, seconds in medians.items() if name != "cdgen"}
    found |= {"batch": batch, "length": length, "seconds per step": medians, "ratio to cdgen": ratios}
    shown = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    found["line"] = f"a step of {batch} sequences at {length} tokens: cdgen {medians['cdgen'] * 1e3:.2f} ms; {shown}"


def loops_job(context: Context, loops: dict[str, type[PaperLoop]]) -> None:
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
