"""The results of `ContrastiveLM.generate`, with the names that vLLM uses."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from cdgen.wording import counted

_SHOWN_CHARACTERS = 60  # maximum length of a text in a repr
_SHOWN_OUTPUTS = 3  # number of continuations in a repr


class TopLogprob(NamedTuple):
    """One of the tokens that were most likely to be drawn at a step, with natural log-probabilities."""

    token_id: int
    text: str | bytes  # bytes if the token does not consist of whole characters; "<123>", its id, without a tokenizer
    logprob: float  # see TokenLogprobs for this and the next two
    good: float
    bad: float | None


class TokenLogprobs(NamedTuple):
    """Natural log-probabilities of one drawn token."""

    logprob: float  # log-probability in the distribution from which the token was drawn
    good: float  # log-probability under GOOD, without temperature, bans, biases and penalties
    bad: float | None  # log-probability under BAD, likewise; None if BAD was not run


@dataclass
class CompletionOutput:
    """One continuation of a prompt.

    Attributes:
        index: index among the continuations of the prompt.
        text: the new text, without the stop string or token that ended it; None if there is no tokenizer.
        token_ids: all tokens that were drawn, including a stop token or stop string.
        finish_reason: "stop" after an end-of-text token, stop token or stop string; "length" after `max_tokens` tokens;
            "error" if no further token could be drawn, because all are banned or the logits hold NaN.
        logprobs: log-probabilities of each token, if `SamplingParams.logprobs` was set.
        top_logprobs: for each token, the tokens that were most likely to be drawn in its place, the likeliest first, if
            `SamplingParams.logprobs` was a number. There may be fewer: tokens that cannot be drawn are left out.
        error: why no further token could be drawn; None unless `finish_reason` is "error".
    """

    index: int
    text: str | None
    token_ids: list[int]
    finish_reason: str
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    top_logprobs: list[list[TopLogprob]] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of `logprob` over the tokens, or None without logprobs."""
        return None if self.logprobs is None else sum(token.logprob for token in self.logprobs)

    def __repr__(self) -> str:
        error = "" if self.error is None else f", error={_cut(self.error)}"
        return (
            f"CompletionOutput(index={self.index}, text={_cut(self.text)}, token_ids={_count(self.token_ids)}, "
            f"finish_reason={self.finish_reason!r}{error})"
        )


@dataclass
class RequestOutput:
    """A prompt and its continuations.

    Attributes:
        prompt: the prompt's text; None for token ids if there is no tokenizer to decode them. If the token ids end
            inside a multi-byte character, the continuations' texts begin with that character instead.
        prompt_token_ids: the prompt's token ids.
        outputs: the `n` continuations.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]

    def __repr__(self) -> str:
        shown = [repr(output) for output in self.outputs[:_SHOWN_OUTPUTS]]
        return f"RequestOutput({self._prompt()}, outputs=[{', '.join([*shown, *self._left_out()])}])"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print several lines in IPython, whose pretty printer calls this."""
        with printer.group(2, "RequestOutput(", ")"):
            printer.text(f"{self._prompt()}, outputs=[")
            for line in [*map(repr, self.outputs[:_SHOWN_OUTPUTS]), *self._left_out()]:
                printer.break_()
                printer.text(f"{line},")
            printer.text("]")

    def _prompt(self) -> str:
        return f"prompt={_cut(self.prompt)}, prompt_token_ids={_count(self.prompt_token_ids)}"

    def _left_out(self) -> list[str]:
        """Return a line for the continuations that are not shown, if any."""
        count = len(self.outputs) - _SHOWN_OUTPUTS
        return [f"<{count:,} more>"] if count > 0 else []


def _cut(text: str | None) -> str:
    """Return the beginning of a text, quoted on one line."""
    if text is None or len(text) <= _SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:_SHOWN_CHARACTERS]!r}..."


def _count(token_ids: list[int]) -> str:
    return f"<{counted(len(token_ids), 'token')}>"
