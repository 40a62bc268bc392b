"""The decode loop with continuous batching: a waiting sequence replaces each one that finishes.

The loop knows nothing about caches and models; see :class:`~cdgen.engine.backend.Backend`. Numpy finds the
sequences that end. Python visits the tokens of the others only if there are stop strings.
"""

from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import torch

from cdgen.engine.backend import Backend, Round, Rows, Start
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.requests import Request
from cdgen.engine.running import RunningSequences
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.stopping import Ends, StopConditions
from cdgen.hardware import tf32_products
from cdgen.rng import private_noise

_REFILL_SHARE = 16  # a prefill interrupts decoding, so it waits until this part of the sequences, 1 / 16, has finished


class Engine:
    """Decodes every sequence of the requests.

    Args:
        pair: the models; the backend runs them.
        backend: closed if :meth:`run` raises.
        requests: see :func:`~cdgen.engine.requests.make_requests`; read as sequences start.
        params: sampling parameters. If a request has parameters of its own, its `max_tokens` takes precedence, and so
            do the values that the backend holds per row. `n` is not used: the requests list their sequences.
        on_finished: called with the place and the output of each sequence that finishes.
        on_tokens: called after each round with the number of tokens drawn.
    Attributes:
        running: the running sequences.
    """

    def __init__(
        self,
        pair: ModelPair,
        backend: Backend,
        requests: Iterable[Request],
        params: SamplingParams,
        on_finished: Callable[[int, CompletionOutput], None],
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        self.backend, self._pair, self._params = backend, pair, params
        listed = min(params.top_logprobs, pair.vocab_size)
        self.running = RunningSequences(backend.cache_rows, bool(params.logprobs), listed)
        self._requests = iter(requests)
        self._next = next(self._requests, None)  # the first request with sequences that have not started
        self._on_finished, self._on_tokens = on_finished, on_tokens
        self._stop = StopConditions(pair.tokenizer, params, pair.eos_token_ids, pair.vocab_size)
        self._full = backend.max_num_seqs  # how many sequences ran after the last refill; memory may hold no more
        self._in_flight: deque[tuple[int, Round]] = deque()  # rounds that have not been read, with their numbers
        self._launched_rounds = 0

    def run(self) -> None:
        """Decode all sequences.

        A sequence for which nothing can be drawn, because its logits hold NaN or all tokens are banned, finishes with
        the reason "error", and the others continue.
        """
        device = self._pair.good.device
        try:
            with torch.inference_mode(), private_noise(device), tf32_products(device):
                while self.advance():
                    pass
        except BaseException:
            self.backend.close()  # explicitly, since a traceback that is kept would keep the cache alive
            raise

    def advance(self) -> bool:
        """Start waiting sequences if there is room, and decode one round; return whether anything is left to do."""
        self.refill()
        self.step()
        return bool(self.running.count or self._next is not None)

    def step(self) -> None:
        """Launch a round, and read an earlier one while the backend works on it: see `rounds_in_flight`."""
        self.read(self.backend.rounds_in_flight - 1 if self._launch() else 0)

    def refill(self) -> None:
        """Start waiting sequences if enough of the running ones have finished, and draw their first tokens."""
        running = self.running
        if running.count and (self._full - running.count) * _REFILL_SHARE < self._full:
            return
        while starts := self._admitted():
            waiting = [[request.waiting.popleft() for _ in range(count)] for request, count in starts]
            begun = [
                Start(request, [sequence.continuation for sequence in sequences])
                for (request, _), sequences in zip(starts, waiting, strict=True)
            ]
            drawn = self.backend.start(begun)
            number, rows = self._add(drawn), iter(drawn.rows.tolist())
            for start, sequences in zip(begun, waiting, strict=True):
                prompt = start.request.token_ids
                limit = self._pair.max_new_tokens(start.request.params or self._params, len(prompt))
                for sequence, row in zip(sequences, rows, strict=False):
                    running.enter(row, start, sequence, limit, number)
                    self._stop.enter(row, prompt)
            self.read(self.backend.rounds_in_flight - 1)
        self._full = running.count

    def _admitted(self) -> list[tuple[Request, int]]:
        """Return requests, and how many of the waiting sequences of each are admitted."""
        found: list[tuple[Request, int]] = []
        room = self.backend.max_num_seqs - self.running.count
        while self._next is not None and room:
            request = self._next
            count = self.backend.admit(request, min(room, len(request.waiting)))
            if count:
                found.append((request, count))
                room -= count
            if count < len(request.waiting):
                break
            self._next = next(self._requests, None)
        return found

    def _launch(self) -> bool:
        """Launch a round of all sequences that need more tokens than are in flight; return whether there are any."""
        running = self.running
        rows = running.to_launch()
        if not len(rows):
            return False
        left = int((running.limit[rows] - running.launched[rows]).min())
        count = min(self.backend.steps_per_round, left)
        self._add(self.backend.launch(rows, running.prompt_length[rows] + running.launched[rows], count))
        running.launched[rows] += count
        return True

    def _add(self, launched: Round) -> int:
        """Add a round to those in flight; return its number."""
        self._launched_rounds += 1
        self._in_flight.append((self._launched_rounds, launched))
        return self._launched_rounds

    def read(self, most_in_flight: int = 0) -> None:
        """Read the oldest rounds until `most_in_flight` are left, not counting new rounds that redraw tokens."""
        for _ in range(len(self._in_flight) - most_in_flight):
            self._accept(*self._in_flight.popleft())

    def _accept(self, number: int, launched: Round) -> None:
        """Add the tokens of a round to its sequences, and finish those that end."""
        drawn, running = launched.read(), self.running
        columns = np.flatnonzero(running.first_round[launched.rows] <= number)
        rows = launched.rows[columns]
        if len(columns) < len(launched.rows):
            drawn = drawn.at(columns)
        kept, ends = self._stop.kept(running, rows, drawn)
        running.append(rows, drawn, kept)
        if self._on_tokens is not None:
            self._on_tokens(int(kept.sum()))
        if ends.overflow.any():
            again = rows[ends.overflow]
            positions = running.prompt_length[again] + running.length[again]
            steps, at = kept[ends.overflow], columns[ends.overflow]
            redrawn = self.backend.redraw(launched, steps.tolist(), at.tolist(), positions.tolist())
            running.repeat(again, self._add(redrawn))
        if ends.finished.any():
            self._finish(rows, ends)

    def _finish(self, rows: Rows, ends: Ends) -> None:
        """Report the outputs of the sequences that end, and release them."""
        finished, has_bad = np.flatnonzero(ends.finished), bool(self._params.contrast_strength)
        done = [
            (
                int(self.running.place[rows[at]]),
                self._stop.output(self.running, int(rows[at]), int(ends.fault[at]), bool(ends.stopped[at]), has_bad),
            )
            for at in finished
        ]
        self.running.leave(rows[finished])
        self.backend.release(rows[finished])
        for place, output in done:
            self._on_finished(place, output)
