"""What a step costs as texts, batches and vocabularies grow, and what memory a run takes beside what was stated.

    python -m benchmarks.cpu.cost [FOLDER]

On the CPU, with the paper's 20x pair (12 layers x 768 and 6 x 256), float32. Writes cost.png and cost.json to the
folder and prints the figures. Each curve is measured point by point in turn, over and over; a point is the median.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.cpu.bench_cross_entropy import high_water, resident
from benchmarks.generation import OfEngine, paper_model, params
from cdgen.engine.plan import Job, Shape, parts_of_memory

GOOD, BAD = (12, 768, 12, 3072), (6, 256, 4, 1024)
LENGTHS, BATCHES, VOCABULARIES = (
    (20, 120, 220, 420, 820, 1620),
    (8, 16, 32, 64, 128, 256),
    (8_000, 16_000, 32_000, 64_000, 128_000),
)
ROUNDS = 7


def curve(points):
    """Median seconds of a step of each point, {x: variant}, and closes them."""
    times = {x: [] for x in points}
    for at in range(ROUNDS + 1):
        for x, variant in points.items():
            start = time.perf_counter()
            variant.step()
            if at:  # the first warms up
                times[x].append(time.perf_counter() - start)
    return {x: statistics.median(seconds) for x, seconds in times.items()}


def placed(pair, rows, length):
    variant = OfEngine(*pair, params())
    variant.place(rows, length)
    return variant


def curves():
    pair = tuple(paper_model(*shape, seed=seed) for seed, shape in enumerate((GOOD, BAD)))
    yield "length (batch 32)", curve({length: placed(pair, 32, length) for length in LENGTHS})
    yield "batch (length 220)", curve({batch: placed(pair, batch, 220) for batch in BATCHES})
    points = {}
    for size in VOCABULARIES:
        small = tuple(paper_model(2, *shape[1:], vocab_size=size, seed=seed) for seed, shape in enumerate((GOOD, BAD)))
        points[size] = placed(small, 32, 220)
    yield "vocabulary (2 layers, batch 32, length 220)", curve(points)


def slopes(curve):
    """d log(time) / d log(x) between neighbours: 1 is proportional."""
    (xs, times) = zip(*curve.items(), strict=True)
    steps = zip(xs, xs[1:], times, times[1:], strict=False)
    return [
        round(torch.log(torch.tensor(b / a)).item() / torch.log(torch.tensor(y / x)).item(), 2) for x, y, a, b in steps
    ]


def memory(batch=64, prompt=20, new=200):
    """(bytes stated, bytes that the process grew by at its highest) of a whole run, in this process."""
    paper_model(1, 8, 1, 8)  # what torch and transformers take once
    before = resident()
    pair = tuple(paper_model(*shape, seed=seed) for seed, shape in enumerate((GOOD, BAD)))
    variant = OfEngine(*pair, params(max_tokens=new))
    variant.compute([[5] * prompt] * batch)
    for _ in range(8):
        variant.step()
    good, bad = (Shape.of(model.module.config) for model in pair)
    job = Job(batch * new, prompt, new, 1)
    stated = parts_of_memory(good, bad, good.parameters + bad.parameters, batch, job, 4, 4)
    return sum(stated.values()), high_water() - before


def plot(found, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        axis.plot(list(points), [seconds * 1e3 for seconds in points.values()], marker="o")
        axis.set(xlabel=name, ylim=(0, None), xlim=(0, None))
        axis.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel("a step, ms")
    figure.savefig(path, dpi=120)


def main(folder="."):
    found = dict(curves())
    for name, points in found.items():
        shown = ", ".join(f"{x}: {seconds * 1e3:.1f}" for x, seconds in points.items())
        print(f"a step in ms by {name}: {shown}; slopes {slopes(points)}", flush=True)
    code = "from benchmarks.cpu.cost import memory; print(*memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stated, peak = map(int, done.stdout.split())
    print(f"memory: {stated / 1e9:.2f} GB stated, {peak / 1e9:.2f} GB at the peak, {peak / stated:.0%}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot(found, folder / "cost.png")
    (folder / "cost.json").write_text(json.dumps({"step": found, "memory": {"stated": stated, "peak": peak}}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
