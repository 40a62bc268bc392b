"""What the engine asks of a backend: it holds the caches, runs the models and samples.

There are two. :class:`~cdgen.engine.paged_backend.PagedBackend` starts a waiting sequence as soon as another one has
finished. :class:`~cdgen.engine.static_backend.StaticBackend` supports any causal model of transformers, but takes one
batch and runs it until all of its sequences have finished.
"""

from typing import NamedTuple, Protocol

import torch

from cdgen.engine.requests import Request, RunningBatch
from cdgen_kernels import Samples, SamplingTensors


class Start(NamedTuple):
    """The next `num_sequences` waiting sequences of a request are to start."""

    request: Request
    num_sequences: int


class Started(NamedTuple):
    """Sequences that have started: their cache rows, and the models' outputs on the last token of their prompts."""

    cache_rows: list[list[int]]  # for each Start, the rows of its sequences
    outputs: list[torch.Tensor]  # for each model [A, ...]; only the backend's own `sample` reads them


class Backend(Protocol):
    """Caches, models and sampling for :class:`~cdgen.engine.engine.Engine`."""

    max_num_seqs: int  # greatest number of sequences that run at once
    sync_every: int  # number of steps to run between two host syncs; if it is 1, `steps` is not called

    def admit(self, request: Request, most: int) -> int:
        """Return how many of a request's waiting sequences can start now, 0 to `most`, and reserve room for them."""

    def start(self, starts: list[Start]) -> Started:
        """Start sequences that have been admitted; compute their prompts if necessary."""

    def step(self, batch: RunningBatch) -> list[torch.Tensor]:
        """Run the models on the newest token of every sequence; return the outputs of each model, [A, ...]."""

    def steps(self, batch: RunningBatch, sampling: SamplingTensors, count: int) -> torch.Tensor:
        """Run `count` steps without a host sync and draw a token after each; return them, int64 [count, A].

        A row from which nothing can be drawn holds a fault code below 0 instead of a token. The rows of later steps
        are then undefined.
        """

    def sample(
        self, outputs: list[torch.Tensor], sampling: SamplingTensors, *, banned: torch.Tensor | None, logprobs: bool
    ) -> Samples:
        """Draw one token per row from the models' outputs, or a fault code below 0 if a row has none.

        Args:
            outputs: outputs of `start` or `step`.
            banned: int64 [A, N], token ids that must not be drawn, -1 for no ban.
            logprobs: also return log-probabilities.
        """

    def release(self, cache_rows: list[int]) -> None:
        """End sequences and free what only they hold."""

    def close(self) -> None:
        """Free everything that the backend holds on its device; no other method may be called afterwards."""
