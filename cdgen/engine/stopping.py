"""When a sequence finishes: at end of text, a stop token, a stop string, or the greatest number of tokens."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cdgen.engine.backend import Drawn, Rows
from cdgen.engine.outputs import CompletionOutput, TokenLogprobs, TopLogprob
from cdgen.engine.running import RunningSequences
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.text import StopStrings, decode_after
from cdgen.models.pieces import pieces
from cdgen_kernels.codes import CANDIDATES_OVERFLOW, FAULTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_token_ids(params: SamplingParams, eos_token_ids: Iterable[int]) -> list[int]:
    """Return the tokens that end a sequence, in ascending order."""
    return sorted(set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids)))


class StopConditions:
    """Decides which of the drawn tokens are valid, and builds the output of each sequence that finishes.

    Args:
        tokenizer: decodes the outputs; without one their `text` is None.
        params: the stop conditions.
        eos_token_ids: the models' end-of-text tokens.
        vocab_size: token ids are below this number.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase | None",
        params: SamplingParams,
        eos_token_ids: tuple[int, ...],
        vocab_size: int,
    ) -> None:
        self._tokenizer, self._params = tokenizer, params
        self._is_stop = np.zeros(vocab_size, dtype=bool)
        self._is_stop[stop_token_ids(params, eos_token_ids)] = True
        self._watched: dict[int, StopStrings] = {}  # by cache row
        self._pieces: dict[int, str | bytes] = {}  # texts of single tokens
        self._found: dict[int, str] = {}  # by cache row: the text before a stop string

    def enter(self, row: int, prompt_token_ids: list[int]) -> None:
        """Watch the continuation of a prompt for stop strings, if there are any."""
        if self._params.stop:
            self._watched[row] = StopStrings(self._tokenizer, prompt_token_ids, self._params)

    def kept(self, running: RunningSequences, rows: Rows, drawn: Drawn) -> tuple["npt.NDArray[np.int64]", "Ends"]:
        """Return the number of valid tokens of each row, int64 [A], and how the sequences end.

        Args:
            running: the sequences, without these tokens.
            rows: int64 [A].
            drawn: tokens [count, A] for these rows.
        """
        tokens = drawn.tokens
        ends = (tokens < 0) | self._is_stop[np.maximum(tokens, 0)]
        last = np.where(ends.any(0), ends.argmax(0), len(tokens) - 1)  # [A], the last valid step
        token = tokens[last, np.arange(len(rows))]
        fault = token < 0
        kept = last + ~fault
        stopped = ends.any(0) & ~fault
        if self._params.stop:
            for column, row in enumerate(rows.tolist()):
                candidates = tokens[: kept[column] - stopped[column], column].tolist()  # a stop token has no text
                if (at := self._stop_string(row, candidates, int(running.length[row]))) is not None:
                    kept[column], stopped[column], fault[column] = at, True, False
        return kept, Ends(stopped, np.where(fault, token, 0), running.length[rows] + kept == running.limit[rows])

    def _stop_string(self, row: int, tokens: list[int], length: int) -> int | None:
        """Return how many of these tokens precede the end of the first stop string; None if there is none yet."""
        for count, token in enumerate(tokens, 1):
            text = self._watched[row].append(token)
            if text is not None and length + count >= self._params.min_tokens:
                self._found[row] = text
                return count
        return None

    def output(self, running: RunningSequences, row: int, fault: int, stopped: bool, has_bad: bool) -> CompletionOutput:
        """Return the output of a sequence that has finished.

        Args:
            running: holds the sequence with all its tokens.
            row: its cache row.
            fault: why no further token can be drawn; 0 if the sequence ended for another reason.
            stopped: whether a stop token or a stop string ended it.
            has_bad: whether BAD was run.
        """
        tokens, prompt = running.tokens(row), running.prompts[row]
        assert prompt is not None
        self._watched.pop(row, None)
        text = self._found.pop(row, None)
        if text is None and self._tokenizer is not None:
            kept = tokens[:-1] if stopped else tokens
            text = decode_after(self._tokenizer, prompt, kept, self._params.skip_special_tokens)
        reason = "error" if fault else "stop" if stopped else "length"
        return CompletionOutput(
            int(running.continuation[row]),
            text,
            tokens,
            reason,
            running.token_logprobs(row, has_bad),
            FAULTS[fault] if fault else None,
            self._top_logprobs(running.best_logprobs(row, has_bad)),
        )

    def _top_logprobs(self, best: list[dict[int, TokenLogprobs]] | None) -> list[list[TopLogprob]] | None:
        """Return the best tokens of each step with their texts."""
        if best is None:
            return None
        new = {token for step in best for token in step}.difference(self._pieces)
        self._pieces |= pieces(self._tokenizer, new)
        return [[TopLogprob(token, self._pieces[token], *values) for token, values in step.items()] for step in best]


class Ends:
    """How the sequences of a round end, [A] each.

    Attributes:
        stopped: bool, at a stop token or a stop string.
        fault: int64, a fault code, or 0; see :data:`cdgen_kernels.codes.FAULTS`.
        overflow: bool, a list of candidates was too short: the sequence continues with a token that is redrawn.
        finished: bool, for any reason.
    """

    def __init__(
        self, stopped: npt.NDArray[np.bool_], fault: npt.NDArray[np.int64], is_full: npt.NDArray[np.bool_]
    ) -> None:
        self.stopped, self.fault = stopped, fault
        self.overflow = fault == CANDIDATES_OVERFLOW
        self.finished = (stopped | is_full | (fault < 0)) & ~self.overflow
