"""The host's record of the running sequences: numpy arrays by cache row, so that a round needs no loop over them."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cdgen.engine.backend import Drawn, Rows, Start
from cdgen.engine.outputs import TokenLogprobs
from cdgen.engine.requests import WaitingSequence

_Number = TypeVar("_Number", bound=np.generic)


class RunningSequences:
    """The running sequences, by cache row.

    Args:
        cache_rows: cache rows are below this number.
        with_logprobs: whether log-probabilities are kept.
        listed: number of tokens per step that are kept as the most likely ones, with their log-probabilities.
    Attributes:
        prompts: the prompts' token ids; None for a row without a sequence.
        place, continuation: int64; see :class:`~cdgen.engine.requests.WaitingSequence`.
        limit: int64, greatest number of new tokens; 0 for a row without a sequence.
        launched: int64, number of new tokens that have been launched.
        length: int64, number of new tokens that have been read. All of them are in `token_ids`.
        first_round: int64; what earlier rounds draw for a row belongs to another sequence, or is undefined.
        count: number of running sequences.
    """

    def __init__(self, cache_rows: int, with_logprobs: bool, listed: int) -> None:
        self.prompts: list[list[int] | None] = [None] * cache_rows
        self.place, self.continuation, self.prompt_length = np.zeros((3, cache_rows), np.int64)
        self.limit, self.launched, self.length, self.first_round = np.zeros((4, cache_rows), np.int64)
        self.token_ids = np.empty((cache_rows, 0), np.int32)  # widened as longer sequences start
        self.logprobs = np.empty((cache_rows, 0, 1 + listed, 3), np.float32) if with_logprobs else None
        self.best = np.empty((cache_rows, 0, listed), np.int32) if listed else None
        self.count = 0

    def enter(self, row: int, start: Start, waiting: WaitingSequence, limit: int, number: int) -> None:
        """Record a sequence whose first token is drawn in round `number`."""
        prompt = start.request.token_ids
        self.prompts[row], self.prompt_length[row] = prompt, len(prompt)
        self.place[row], self.continuation[row] = waiting.place, waiting.continuation
        self.limit[row], self.launched[row], self.length[row], self.first_round[row] = limit, 1, 0, number
        self.count += 1
        if limit > self.token_ids.shape[1]:
            self.token_ids = _widened(self.token_ids, limit)
            if self.logprobs is not None:
                self.logprobs = _widened(self.logprobs, limit)
            if self.best is not None:
                self.best = _widened(self.best, limit)

    def to_launch(self) -> Rows:
        """Return the rows whose sequences need tokens beyond those in flight."""
        return np.flatnonzero(self.launched < self.limit)

    def append(self, rows: Rows, drawn: Drawn, kept: npt.NDArray[np.int64]) -> None:
        """Add the first `kept` [A] tokens of each sequence in these rows [A]."""
        lengths = self.length[rows]
        for step, tokens in enumerate(drawn.tokens):
            columns = slice(None) if (step < kept).all() else np.flatnonzero(step < kept)
            self.token_ids[rows[columns], lengths[columns] + step] = tokens[columns]
            if self.logprobs is not None and drawn.logprobs is not None:
                self.logprobs[rows[columns], lengths[columns] + step] = drawn.logprobs[step, columns]
            if self.best is not None and drawn.best is not None:
                self.best[rows[columns], lengths[columns] + step] = drawn.best[step, columns]
        self.length[rows] = lengths + kept

    def repeat(self, rows: Rows, number: int) -> None:
        """Record that round `number` redraws the token that follows those that were read."""
        self.launched[rows], self.first_round[rows] = self.length[rows] + 1, number

    def tokens(self, row: int) -> list[int]:
        """Return the new tokens of a sequence."""
        found: list[int] = self.token_ids[row, : self.length[row]].tolist()
        return found

    def token_logprobs(self, row: int, has_bad: bool) -> list[TokenLogprobs] | None:
        """Return the log-probabilities of a sequence's new tokens, if they are kept."""
        if self.logprobs is None:
            return None
        columns = self.logprobs[row, : self.length[row], 0].tolist()
        return [TokenLogprobs(logprob, good, bad if has_bad else None) for logprob, good, bad in columns]

    def best_logprobs(self, row: int, has_bad: bool) -> list[dict[int, TokenLogprobs]] | None:
        """Return the log-probabilities of the best tokens at each step of a sequence, if they are kept."""
        if self.logprobs is None or self.best is None:
            return None
        tokens, columns = self.best[row, : self.length[row]], self.logprobs[row, : self.length[row], 1:]
        return [
            {
                token: TokenLogprobs(logprob, good, bad if has_bad else None)
                for token, (logprob, good, bad) in zip(step, values, strict=True)
                if token >= 0
            }
            for step, values in zip(tokens.tolist(), columns.tolist(), strict=True)
        ]

    def leave(self, rows: Rows) -> None:
        """Forget sequences that have finished."""
        self.limit[rows] = self.launched[rows] = 0
        self.first_round[rows] = np.iinfo(np.int64).max  # rounds in flight may still draw tokens for them
        for row in rows.tolist():
            self.prompts[row] = None
        self.count -= len(rows)


def _widened(array: npt.NDArray[_Number], width: int) -> npt.NDArray[_Number]:
    """Return a copy with at least `width` columns. It is at least twice as wide, so that copies are rare."""
    wider = np.empty((len(array), max(width, 2 * array.shape[1]), *array.shape[2:]), array.dtype)
    wider[:, : array.shape[1]] = array
    return wider
