"""What the decode loop asks of a device, counted with a backend that has no models, and the host's time per round.

    python -m benchmarks.cpu.scheduler

Every sequence has a prompt of 20 tokens. Rounds have four steps, and two rounds are in flight, as on a GPU. Fault codes
simulate lists of candidates that are too short, and stop tokens simulate ends of text. A token is a function of the
sequence and the position, so that results can be checked before anything is reported.
"""

import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.generation import random_model
from cdgen import CompletionOutput, SamplingParams
from cdgen.engine.backend import Round, Rows, Start
from cdgen.engine.engine import Engine
from cdgen.engine.graphs import GraphSizes
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.page_store import CacheShape
from cdgen.engine.paged_backend import STEPS_PER_ROUND
from cdgen.engine.paged_prompts import EAGER_PREFILLS, PREFILL_TOKENS
from cdgen.engine.requests import Prompts, Request, make_requests
from cdgen.engine.shared_cache import SharedKVCache
from cdgen_kernels import Samples
from cdgen_kernels.codes import CANDIDATES_OVERFLOW

PROMPT, VOCABULARY, STOP, GARBAGE = 20, 32_000, 1, 2
# Estimates on paper for an H100 and the paper's pair at 512 rows: a step, a prefill without a graph, the few launches
# around one, and the capture of a graph.
STEP_MS, EAGER_PREFILL_MS, EAGER_START_MS, CAPTURE_MS = 3.5, 8.0, 0.4, 50.0
NEW = 400  # greatest number of new tokens per sequence


class CountingBackend:
    """A backend without models, for sequences of prompts [place] * PROMPT.

    Args:
        max_num_seqs: greatest number of sequences that run at once.
        lengths: number of tokens of each sequence, by place; the last one is STOP.
        overflow: share of the draws whose list of candidates is too short.
        steps_per_round, rounds_in_flight: see :class:`cdgen.engine.backend.Backend`.
    Attributes:
        steps, rounds, refills, eager_prefills, redraws: how often each was asked for.
        decode, prefill: the sizes of the graphs.
        rows: sum over the steps of their rows.
        padded_rows: the same for the rows of the graphs that run them.
    """

    def __init__(
        self,
        max_num_seqs: int,
        lengths: list[int],
        overflow: float = 0.0,
        steps_per_round: int = STEPS_PER_ROUND,
        rounds_in_flight: int = 2,
    ) -> None:
        self.max_num_seqs, self.cache_rows = max_num_seqs, 2 * max_num_seqs + 1
        self.steps_per_round, self.rounds_in_flight = steps_per_round, rounds_in_flight
        self._lengths, self._overflow = np.array(lengths), overflow
        self._prompts: dict[Request, int] = {}  # cache rows
        self._place = np.zeros(self.cache_rows, np.int64)
        self._broken = np.zeros(self.cache_rows, bool)  # rows whose tokens are undefined until they are drawn again
        shape = CacheShape(1, 1, 1, torch.float32)
        self._cache = SharedKVCache(
            [shape], cache_rows=self.cache_rows, sequences=max_num_seqs + 1, max_length=PROMPT + NEW, device="cpu"
        )
        self.decode, self.prefill = GraphSizes(max_num_seqs), GraphSizes(PREFILL_TOKENS, EAGER_PREFILLS)
        self.steps = self.rounds = self.refills = self.eager_prefills = self.redraws = self.rows = self.padded_rows = 0

    def admit(self, request: Request, most: int) -> int:
        """Reserve the pages of a sequence."""
        self._prompts[request] = self._cache.allocate(PROMPT, 1, NEW)
        return 1

    def start(self, starts: list[Start]) -> Round:
        """Count a refill, and the prefills that have no graph."""
        tokens, self.refills = PROMPT * len(starts), self.refills + 1
        self.eager_prefills += sum(
            self.prefill.choose(min(PREFILL_TOKENS, tokens - done)) is None for done in range(0, tokens, PREFILL_TOKENS)
        )
        prompts = [self._prompts.pop(request) for request, _ in starts]
        rows = [row for prompt in prompts for row in self._cache.fork(prompt, 1)]
        self._cache.release(prompts)
        self._place[rows] = [request.token_ids[0] for request, _ in starts]
        self._broken[rows] = False
        return Round(np.array(rows), [self._draw(np.array(rows), np.zeros(len(rows), np.int64))])

    def launch(self, rows: Rows, lengths: npt.NDArray[np.int64], count: int) -> Round:
        """Count a round."""
        self._cache.extend_to(rows, lengths + count - 1)
        self._cache.publish()
        self.rounds, self.steps, self.rows = self.rounds + 1, self.steps + count, self.rows + count * len(rows)
        self.padded_rows += count * (self.decode.choose(len(rows)) or 0)
        return Round(rows, [self._draw(rows, lengths - PROMPT + step) for step in range(count)])

    def redraw(self, drawn: Round, steps: list[int], columns: list[int], positions: list[int]) -> Round:
        """Count a redraw, which never fails."""
        self.redraws += 1
        rows = drawn.rows[columns]
        self._broken[rows] = False
        return Round(rows, [self._draw(rows, np.array(positions) - PROMPT, may_overflow=False)])

    def _draw(self, rows: Rows, index: npt.NDArray[np.int64], may_overflow: bool = True) -> Samples:
        """Return the tokens number `index` of these rows, of which some are replaced by a fault code."""
        place = self._place[rows]
        token = np.where(index + 1 == self._lengths[place], STOP, token_at(place, index))
        if may_overflow and self._overflow:
            draw = (place * 2654435761 + index * 40503 + 12345) * 2246822519 % 2**32 / 2**32
            now = (draw < self._overflow) & ~self._broken[rows]
            token = np.where(self._broken[rows], GARBAGE, np.where(now, CANDIDATES_OVERFLOW, token))
            self._broken[rows] |= now
        return Samples(torch.from_numpy(token))

    def release(self, rows: Rows) -> None:
        """Free the rows."""
        self._cache.release(rows)

    def close(self) -> None:
        """Do nothing."""


def token_at(place: Any, index: Any) -> Any:
    """Return token number `index` of a sequence: neither STOP nor GARBAGE."""
    return 3 + (place * 31 + index * 7) % (VOCABULARY - 3)


def run(backend: CountingBackend, lengths: list[int], advanced: Callable[[Engine], object] | None = None) -> Engine:
    """Decode sequences of these lengths, and check their tokens.

    Args:
        advanced: called with the engine before each round.
    """
    module = random_model(1, 8, 1, 8, vocab_size=16)
    pair = ModelPair(module, None, None, VOCABULARY, (STOP,))
    asked = make_requests(
        Prompts([[place] * PROMPT for place in range(len(lengths))]), [(place, 0) for place in range(len(lengths))]
    )
    results: dict[int, CompletionOutput] = {}
    params = SamplingParams(max_tokens=NEW, contrast_strength=0.0)
    engine = Engine(pair, backend, asked, params, results.__setitem__)
    with torch.inference_mode():
        while engine.advance():
            if advanced is not None:
                advanced(engine)
    for place, length in enumerate(lengths):
        expected = [token_at(place, index) for index in range(length - 1)]
        expected.append(STOP if length < NEW else int(token_at(place, length - 1)))
        assert results[place].token_ids[: length - 1] == expected[: length - 1], f"sequence {place} has wrong tokens"
    return engine


def geometric(count: int, stop: float, seed: int = 0) -> list[int]:
    """Return lengths of sequences that end with probability `stop` after each token, or after NEW tokens."""
    generator = random.Random(seed)
    return [min(NEW, 1 + int(generator.expovariate(stop))) for _ in range(count)]


def report(title: str, backend: CountingBackend, lengths: list[int], usual: int | None = None) -> int:
    """Print what a run asked for; return its number of steps.

    Args:
        usual: steps of the run to compare with.
    """
    run(backend, lengths)
    launches = backend.eager_prefills * EAGER_PREFILL_MS + backend.refills * EAGER_START_MS
    captures = (len(backend.decode.captured) + len(backend.prefill.captured)) * CAPTURE_MS
    steps = backend.steps * STEP_MS
    print(
        f"{title:<33} {backend.steps:5} steps" + (f" ({backend.steps / usual - 1:+.1%})" if usual else ""),
        f"{backend.rows / sum(lengths) - 1:+.1%} row-steps, {backend.rounds} rounds, {backend.refills} refills, "
        f"{backend.eager_prefills} prefills without a graph, {backend.redraws} redraws, unused rows "
        f"{1 - backend.rows / backend.padded_rows:.1%}",
        f"eager launches {launches / (launches + steps):.1%} of the time, captures {captures / 1e3:.1f} s",
        sep=", ",
    )
    return backend.steps


def host_milliseconds(size: int) -> tuple[float, float]:
    """Return the median time per round of a full batch, and of the round in which all sequences end."""
    times: list[float] = []

    def timed(engine: Engine) -> None:
        times.append(time.perf_counter())

    run(CountingBackend(size, [NEW] * size), [NEW] * size, timed)
    rounds = [(after - before) * 1e3 for before, after in pairwise(times)]
    return statistics.median(rounds), max(rounds[-3:])


def main() -> None:
    """Print counts for overflows and ends of text, and host times."""
    generator = random.Random(0)
    lengths, usual = [generator.randint(NEW // 2, NEW) for _ in range(4096)], None
    for overflow in (0.0, 1e-5, 1e-4, 1e-3, 5e-3):
        steps = report(
            f"512 rows, overflow {overflow:g} per draw", CountingBackend(512, lengths, overflow), lengths, usual
        )
        usual = usual or steps
    for size in (128, 512):
        lengths = geometric(40 * size, 1 / 300)
        report(f"{size} rows, end of text 1/300", CountingBackend(size, lengths), lengths)
    for size in (128, 512, 1024):
        usual, last = host_milliseconds(size)
        print(f"{size:5} rows: host {usual:.2f} ms per round; {last:.1f} ms if all end")


if __name__ == "__main__":
    main()
