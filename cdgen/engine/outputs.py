"""What generate() returns; names as in vLLM."""

from dataclasses import dataclass
from typing import NamedTuple


class TokenLogprobs(NamedTuple):
    """Natural log-probabilities of one drawn token."""

    logprob: float  # under the distribution it was drawn from
    good: float  # under plain GOOD
    bad: float | None  # under plain BAD; None where BAD was not run


@dataclass
class CompletionOutput:
    """One continuation. `text` ends before the stop string or token that ended it; `token_ids` keep what was drawn."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str  # "stop" or "length"
    logprobs: list[TokenLogprobs] | None = None

    @property
    def cumulative_logprob(self):
        """Sum of `logprob` over the tokens, or None without logprobs."""
        return None if self.logprobs is None else sum(token.logprob for token in self.logprobs)


@dataclass
class RequestOutput:
    """A prompt and its n continuations. `prompt` is None where token ids came without a tokenizer to decode them."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
