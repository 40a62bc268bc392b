"""The results of `ContrastiveLM.generate`, with the names that vLLM uses."""

from dataclasses import dataclass
from typing import NamedTuple


class TokenLogprobs(NamedTuple):
    """Natural log-probabilities of one drawn token."""

    logprob: float  # log-probability in the distribution from which the token was drawn
    good: float  # log-probability under GOOD, without temperature and bans
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
        error: why no further token could be drawn; None unless `finish_reason` is "error".
    """

    index: int
    text: str | None
    token_ids: list[int]
    finish_reason: str
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of `logprob` over the tokens, or None without logprobs."""
        return None if self.logprobs is None else sum(token.logprob for token in self.logprobs)


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
