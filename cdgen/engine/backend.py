"""What the engine asks of a backend: it holds the caches, runs the models and samples.

There are two. :class:`~cdgen.engine.paged_backend.PagedBackend` starts a waiting sequence as soon as another one has
finished. :class:`~cdgen.engine.static_backend.StaticBackend` supports any causal model of transformers, but takes one
batch and runs it until all of its sequences have finished.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cdgen.engine.draw import Draws
from cdgen.engine.requests import Request

Rows = npt.NDArray[np.int64]  # cache rows


class Start(NamedTuple):
    """Continuations of a request that are to start."""

    request: Request
    continuations: list[int]


class Drawn(NamedTuple):
    """What a round drew, on the host."""

    tokens: npt.NDArray[np.int64]  # [count, A], token ids; below 0: a fault code
    logprobs: npt.NDArray[np.float32] | None = None  # [count, A, 1 + n, 3], see Draws; only if requested
    best: npt.NDArray[np.int64] | None = None  # [count, A, n], see Draws; only if requested

    def at(self, columns: npt.NDArray[np.int64]) -> "Drawn":
        """Return what was drawn for some of the sequences."""
        logprobs = None if self.logprobs is None else self.logprobs[:, columns]
        return Drawn(self.tokens[:, columns], logprobs, None if self.best is None else self.best[:, columns])


class Round:
    """A few steps that have been launched: one token per step for each of A sequences.

    What was drawn is copied to the host without waiting for the device; :meth:`read` waits.

    Args:
        rows: the cache rows of the sequences, [A].
        steps: what each step drew, for A sequences.
        outputs: for each step, each model's outputs [A, ...], if tokens may have to be drawn again.
    """

    def __init__(
        self, rows: Rows, steps: Sequence[Draws], outputs: Sequence[Sequence[torch.Tensor]] | None = None
    ) -> None:
        self.rows, self.outputs = rows, outputs
        stacked = [torch.stack(each) for each in zip(*(_present(step) for step in steps), strict=True)]
        self._on_host = [_to_host(each) for each in stacked]
        self._copied = torch.cuda.Event() if stacked[0].is_cuda else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(stacked[0].device))

    def read(self) -> Drawn:
        """Wait for the round and return what it drew."""
        if self._copied is not None:
            self._copied.synchronize()
        return Drawn(*(each.numpy() for each in self._on_host))


def _present(draws: Draws) -> list[torch.Tensor]:
    """Return the fields that are not None. They come first."""
    return [each for each in draws if each is not None]


def _to_host(x: torch.Tensor) -> torch.Tensor:
    """Start a copy to pinned host memory. A copy to pageable memory would wait for the device."""
    if not x.is_cuda:
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


class Backend(Protocol):
    """Caches, models and sampling for :class:`~cdgen.engine.engine.Engine`.

    A running sequence is identified by its cache row. The backend keeps its newest token and its position on the
    device, so that a round can be launched before the one before it has been read.
    """

    max_num_seqs: int  # greatest number of sequences that run at once
    cache_rows: int  # cache rows are below this number
    steps_per_round: int  # number of steps to run between two host syncs
    rounds_in_flight: int  # how many rounds to launch before the first of them is read

    def admit(self, request: Request, most: int) -> int:
        """Return how many of a request's waiting sequences can start now, 0 to `most`, and reserve room for them."""

    def start(self, starts: list[Start]) -> Round:
        """Start sequences that have been admitted, compute their prompts if necessary, and draw their first tokens."""

    def launch(self, rows: Rows, lengths: npt.NDArray[np.int64], count: int) -> Round:
        """Run `count` steps of the sequences in these cache rows without a host sync.

        If nothing can be drawn for a sequence, it gets a fault code below 0 instead of a token. Its later tokens are
        then undefined, in this round and in those that are in flight.

        Args:
            rows: int64 [A], distinct.
            lengths: int64 [A], number of tokens of each sequence before the round, including its prompt.
            count: number of steps, 1 to `steps_per_round`.
        Returns:
            the round; its rows may be in another order than `rows`.
        """

    def redraw(self, drawn: Round, steps: list[int], columns: list[int], positions: list[int]) -> Round:
        """Redraw tokens whose candidates did not fit into their list, with lists that hold all candidates.

        Args:
            drawn: the round.
            steps: the step of each token in the round.
            columns: the column of each token in the round, distinct.
            positions: the position of each token in its sequence.
        """

    def release(self, rows: Rows) -> None:
        """End sequences and free what only they hold."""

    def close(self) -> None:
        """Free everything that the backend holds on its device; no other method may be called afterwards."""
