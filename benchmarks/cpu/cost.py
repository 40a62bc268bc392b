"""How the time of a step grows with length, batch and vocabulary, and the memory of a run compared with its estimate.

    python -m benchmarks.cpu.cost [FOLDER]

On the CPU with the paper's 20x pair (12 layers of width 768, and 6 of width 256), float32. Writes cost.png and
cost.json to the folder (default: the current one) and prints the figures. The points of a curve are measured in turns,
several times; each is a median. docs/images/cost.png is such a picture.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.cpu.bench_cross_entropy import peak_resident, resident
from benchmarks.generation import EngineLoop, random_model, sampling_params
from cdgen.engine.estimates import Job, Storage, parts_of_memory
from cdgen.engine.model_sizes import PairShapes, Shape
from cdgen.models.language_model import LanguageModel
from cdgen.models.products import can_pack

GOOD, BAD = (12, 768, 12, 3072), (6, 256, 4, 1024)
LENGTHS = (20, 120, 220, 420, 820, 1620)
BATCHES = (8, 16, 32, 64, 128, 256)
VOCABULARIES = (8_000, 16_000, 32_000, 64_000, 128_000)
ROUNDS = 7

Pair = tuple[LanguageModel, LanguageModel]
Curve = dict[int, float]  # size -> seconds


def make_pair() -> Pair:
    return random_model(*GOOD, seed=0), random_model(*BAD, seed=1)


def start_loop(pair: Pair, batch: int, length: int) -> EngineLoop:
    loop = EngineLoop(*pair, sampling_params())
    loop.start_at(batch, length)
    return loop


def measure_curve(points: dict[int, EngineLoop]) -> Curve:
    """Return the median seconds per step of each point, measured in turns."""
    times: dict[int, list[float]] = {size: [] for size in points}
    for number in range(ROUNDS + 1):
        for size, loop in points.items():
            start = time.perf_counter()
            loop.step()
            if number:  # the first round is a warm-up
                times[size].append(time.perf_counter() - start)
    return {size: statistics.median(seconds) for size, seconds in times.items()}


def curves() -> Iterator[tuple[str, Curve]]:
    """Measure and yield each curve, with its name."""
    pair = make_pair()
    yield "length (batch 32)", measure_curve({length: start_loop(pair, 32, length) for length in LENGTHS})
    yield "batch (length 220)", measure_curve({batch: start_loop(pair, batch, 220) for batch in BATCHES})
    points = {}
    for size in VOCABULARIES:
        good, bad = (random_model(2, *shape[1:], vocab_size=size, seed=seed) for seed, shape in enumerate((GOOD, BAD)))
        points[size] = start_loop((good, bad), 32, 220)
    yield "vocabulary (2 layers, batch 32, length 220)", measure_curve(points)


def slopes(curve: Curve) -> list[float]:
    """Return d log(time) / d log(size) between neighbouring points; 1 means proportional."""
    size, seconds = (torch.tensor(values, dtype=torch.float64).log() for values in zip(*curve.items(), strict=True))
    return [round(slope, 2) for slope in (seconds.diff() / size.diff()).tolist()]


def memory(batch: int = 64, prompt: int = 20, new_tokens: int = 200) -> tuple[int, int]:
    """Return (estimated bytes, bytes that this process grew by at its peak) of a run."""
    random_model(1, 8, 1, 8)  # makes torch and transformers allocate what they keep
    before = resident()
    pair = make_pair()
    loop = EngineLoop(*pair, sampling_params(max_tokens=new_tokens))
    loop.start([[5] * prompt] * batch)
    for _ in range(8):
        loop.step()
    shapes = PairShapes(*(Shape.of(model.module.config) for model in pair))
    job, dtype = Job(batch * new_tokens, prompt, new_tokens, 1), torch.float32
    estimate = parts_of_memory(shapes, batch, job, Storage(dtype, dtype, can_pack(torch.empty(0, dtype=dtype))))
    return sum(estimate.values()), peak_resident() - before


def plot(found: dict[str, Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        axis.plot(list(points), [seconds * 1e3 for seconds in points.values()], marker="o")
        axis.set(xlabel=name, ylim=(0, None), xlim=(0, None))
        axis.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel("ms per step")
    figure.savefig(path, dpi=120)


def main() -> None:
    description = "Measure how the time of a step grows, and the memory of a run."
    parser = argparse.ArgumentParser(prog="benchmarks.cpu.cost", description=description)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="folder for the results (default: .)")
    folder = parser.parse_args().folder
    found = {}
    for name, points in curves():
        found[name] = points
        shown = ", ".join(f"{size}: {seconds * 1e3:.1f}" for size, seconds in points.items())
        print(f"ms per step by {name}: {shown}; slopes {slopes(points)}", flush=True)
    code = "from benchmarks.cpu.cost import memory; print(*memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    estimate, peak = map(int, done.stdout.split())
    print(f"memory: {estimate / 1e9:.2f} GB estimated, {peak / 1e9:.2f} GB at the peak, {peak / estimate:.0%}")
    folder.mkdir(parents=True, exist_ok=True)
    plot(found, folder / "cost.png")
    figures = {"step": found, "memory": {"estimate": estimate, "peak": peak}}
    (folder / "cost.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
