"""Compare a decoding step of this checkout with that of another checkout, on the CPU.

    python -m benchmarks.cpu.checkouts FOLDER [--pair paper|smollm2] [--dtype float32|bfloat16] [--batch N ...]

FOLDER is the other checkout, for example one that `git worktree add FOLDER COMMIT` made, with its extension built:

    (cd FOLDER && python setup.py -q build_ext --inplace && rm -rf build)

Each checkout runs its own code in a process of its own, and the two take turns. `paper` is the paper's GOOD with an
early checkpoint as BAD, both with random weights; `smollm2` is SmolLM2-135M without BAD, sampling from all tokens.
Times are medians. Before any is reported, both checkouts must write the same greedy tokens in float32. In bfloat16,
rounding may change a token, so the number of equal tokens is printed.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.cpu.engine_workers.worker import Settings, Worker

ROOT = Path(__file__).resolve().parents[2]
PROMPTS, PROMPT, NEW = 4, 20, 7  # the greedy check: prompts, tokens per prompt, new tokens per prompt
TURNS = 7
STEPS = 32  # sequences times steps per turn; a turn has at least one step


def start(folder: Path, settings: Settings) -> Worker:
    """Start the worker of a checkout."""
    for name in ("cdgen", "benchmarks"):
        if not (folder / name).is_dir():
            sys.exit(f"{folder} is not a checkout: it has no folder {name}")
    worker = Worker("step", sys.executable, settings, [str(folder / "kernels"), str(folder)])
    if Path(worker.about) != folder:
        sys.exit(f"{folder} is not a checkout: the worker imports cdgen from {worker.about}")
    return worker


def check(workers: list[Worker], dtype: str) -> None:
    """Compare the greedy tokens of the workers, and print how many are equal."""
    prompts = torch.randint(1000, (PROMPTS, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    here, there = (torch.tensor(worker.ask("greedy", prompts, NEW)) for worker in workers)
    equal = int((here == there).sum())
    if dtype == "float32" and equal < here.numel():
        sys.exit(f"the checkouts write different greedy tokens: {here.tolist()} here, {there.tolist()} there")
    print(f"equal greedy tokens: {equal} of {here.numel()}")


def compare(workers: list[Worker], batch: int) -> list[float]:
    """Return the median seconds per step of each worker, measured in turns."""
    steps = max(1, STEPS // batch)
    for worker in workers:
        worker.ask("start", batch, steps * (TURNS + 1))
    seconds: list[list[float]] = [[] for _ in workers]
    for turn in range(TURNS + 1):
        for worker, own in zip(workers, seconds, strict=True):
            found = worker.ask("steps", steps)
            if turn:  # the first is a warm-up
                own += found
    return [statistics.median(own) for own in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.cpu.checkouts", description="Compare a decoding step with that of another checkout."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the other checkout, with its extension built")
    parser.add_argument("--pair", choices=("paper", "smollm2"), default="paper", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 4, 20, 128], metavar="N", help="sequences (default: 1 4 20 128)"
    )
    parser.add_argument("--length", type=int, default=220, metavar="N", help="tokens of each (default: %(default)s)")
    options = parser.parse_args()
    if min(*options.batch, options.length) < 1:
        parser.error("--batch and --length must be at least 1")
    settings = Settings(options.pair, options.dtype, torch.get_num_threads(), max(options.batch), options.length)
    workers: list[Worker] = []
    try:
        for folder in (ROOT, options.folder.resolve()):
            workers.append(start(folder, settings))
        check(workers, options.dtype)
        for batch in options.batch:
            here, there = compare(workers, batch)
            print(
                f"{options.pair}, {options.dtype}, batch {batch}, {options.length} tokens: {here * 1e3:.1f} ms here, "
                f"{there * 1e3:.1f} ms in {options.folder}: {there / here:.2f} times as fast here",
                flush=True,
            )
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    main()
