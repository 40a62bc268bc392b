"""The worker that runs steps with a checkout's own engine, for benchmarks/cpu/checkouts.py; see worker.py.

Of the checkout's benchmarks, it uses only modules whose interfaces rarely change.
"""

import time
from pathlib import Path
from typing import Any

import torch
from worker import Settings, serve

import cdgen
from benchmarks.generation import EngineLoop, random_model, sampling_params
from cdgen_kernels import implementation

PAPER = (12, 768, 12, 3072)  # layers, width, heads, feed-forward


class Stepper:
    """Runs steps of a pair of models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        dtype = getattr(torch, settings.dtype)
        self._options: dict[str, Any] = {}
        if settings.model == "paper":
            self._pair = random_model(*PAPER, seed=0, dtype=dtype), random_model(*PAPER, seed=1, dtype=dtype)
        else:
            from cdgen.models.loading import load
            from cdgen.models.smollm2 import smollm2_folder

            model, _ = load(smollm2_folder(print), dtype=dtype, device="cpu")
            self._pair = model, model
            self._options = {"alpha": 0.0, "contrast_strength": 0.0}  # plain sampling, without BAD
        self._loop: EngineLoop | None = None

    def greedy(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Return the greedy tokens of each step, a list with one token per prompt."""
        loop = EngineLoop(*self._pair, sampling_params(temperature=0.0, **self._options))
        tokens = [loop.start(prompts), *(loop.step() for _ in range(new_tokens - 1))]
        loop.close()
        return tokens

    def start(self, batch: int, most: int) -> None:
        """Start `batch` sequences, for at most `most` steps, instead of the running ones."""
        if self._loop is not None:
            self._loop.close()
        self._loop = EngineLoop(*self._pair, sampling_params(max_tokens=most + 2, **self._options))
        self._loop.start_at(batch, self._settings.length)

    def steps(self, count: int) -> list[float]:
        """Return the seconds of each of the next `count` steps."""
        assert self._loop is not None
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self._loop.step()
            seconds.append(time.perf_counter() - start)
        return seconds


def start(settings: Settings) -> tuple[str, Any]:
    """Load the models; see :func:`worker.serve`."""
    folder = Path(cdgen.__file__).parents[1]
    if implementation("cpu")[0] != "cpp":
        raise SystemExit(f"{folder}: {implementation('cpu')[1]}")
    torch.set_num_threads(settings.threads)
    stepper = Stepper(settings)
    return str(folder), lambda name, *arguments: getattr(stepper, name)(*arguments)


if __name__ == "__main__":
    serve(start)
