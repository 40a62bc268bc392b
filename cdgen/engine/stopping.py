"""When a sequence finishes: at end of text, a stop token, a stop string, or the greatest number of tokens."""

from typing import TYPE_CHECKING

from cdgen.engine.outputs import CompletionOutput, TokenLogprobs
from cdgen.engine.requests import RunningSequence
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.text import StopStrings, decode_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopConditions:
    """Adds tokens to sequences and builds the output of each one that finishes.

    Args:
        tokenizer: decodes the outputs; without one their `text` is None.
        params: the stop conditions.
        eos_token_ids: the models' end-of-text tokens.
    Attributes:
        token_ids: tokens that end a sequence.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase | None", params: SamplingParams, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._tokenizer, self._params = tokenizer, params
        self.token_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids))

    def stop_strings(self, prompt_token_ids: list[int]) -> StopStrings | None:
        """Return what watches a continuation of this prompt for stop strings, or None if there are none."""
        return StopStrings(self._tokenizer, prompt_token_ids, self._params) if self._params.stop else None

    def append(
        self, sequence: RunningSequence, token: int, logprobs: TokenLogprobs | None = None
    ) -> CompletionOutput | None:
        """Add a token to a sequence; return the output if that finishes the sequence, else None."""
        params = self._params
        sequence.token_ids.append(token)
        if logprobs is not None:
            sequence.logprobs.append(logprobs)
        if token in self.token_ids:
            return self._output(sequence, "stop", self._decode(sequence, sequence.token_ids[:-1]))
        text = sequence.stop_strings.append(token) if sequence.stop_strings else None
        if text is not None and len(sequence.token_ids) >= params.min_tokens:
            return self._output(sequence, "stop", text)
        if len(sequence.token_ids) == sequence.max_tokens:
            return self._output(sequence, "length", self._decode(sequence, sequence.token_ids))
        return None

    def fail(self, sequence: RunningSequence, error: str) -> CompletionOutput:
        """Return the output of a sequence for which no further token can be drawn; `error` is the reason."""
        output = self._output(sequence, "error", self._decode(sequence, sequence.token_ids))
        output.error = error
        return output

    def _decode(self, sequence: RunningSequence, token_ids: list[int]) -> str | None:
        if self._tokenizer is None:
            return None
        return decode_after(self._tokenizer, sequence.prompt_token_ids, token_ids, self._params.skip_special_tokens)

    def _output(self, sequence: RunningSequence, reason: str, text: str | None) -> CompletionOutput:
        logprobs = sequence.logprobs if self._params.logprobs else None
        return CompletionOutput(sequence.continuation, text, sequence.token_ids, reason, logprobs)
