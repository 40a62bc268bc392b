"""The engine's data model: the pair of models, requests, and the batch of running sequences."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

from cdgen.engine.outputs import TokenLogprobs
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.text import StopStrings
from cdgen.models.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sequence_number(prompt: int, continuation: int) -> int:
    """Return the number that keys the noise of a sequence: `prompt * 2**32 + continuation`, both indices."""
    return (prompt << 32) + continuation


@dataclass
class ModelPair:
    """GOOD, BAD (or None), and what they share."""

    good: LanguageModel
    bad: LanguageModel | None
    tokenizer: "PreTrainedTokenizerBase | None"
    vocab_size: int  # token ids in use; wider output layers are padded
    eos_token_ids: tuple[int, ...]

    def models(self, params: SamplingParams) -> list[LanguageModel]:
        """Return the models that `params` need: GOOD, and BAD if there is contrast."""
        return [self.good, self.bad] if self.bad is not None and params.contrast_strength else [self.good]


class WaitingSequence(NamedTuple):
    """A sequence that has not started."""

    place: int  # index of its output in the engine's results
    continuation: int  # its index among the continuations of the prompt


@dataclass(eq=False)  # hashable by identity: backends keep state for each request
class Request:
    """A prompt, and those of its sequences that have not started."""

    prompt: int  # index of the prompt, part of the sequence numbers
    token_ids: list[int]
    waiting: deque[WaitingSequence]

    @property
    def first_sequence_number(self) -> int:
        """The number of the prompt's continuation 0, which also keys the noise of the prompt itself."""
        return sequence_number(self.prompt, 0)

    @property
    def next_sequence_number(self) -> int:
        """The number of the sequence that starts next."""
        return sequence_number(self.prompt, self.waiting[0].continuation)


def make_requests(token_ids: Sequence[list[int]], sequences: Iterable[tuple[int, int]]) -> list[Request]:
    """Return the requests that decode these sequences; results have the same order as `sequences`.

    Args:
        token_ids: all prompts.
        sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent.
    """
    requests = []
    for prompt, group in groupby(enumerate(sequences), key=lambda item: item[1][0]):
        waiting = deque(WaitingSequence(place, continuation) for place, (_, continuation) in group)
        requests.append(Request(prompt, token_ids[prompt], waiting))
    return requests


@dataclass
class RunningSequence:
    """The host's part of a running sequence."""

    place: int  # see WaitingSequence
    continuation: int
    prompt_token_ids: list[int]
    cache_row: int
    stop_strings: StopStrings | None
    token_ids: list[int] = field(default_factory=list)  # the continuation so far
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens so far, including the prompt."""
        return len(self.prompt_token_ids) + len(self.token_ids)


@dataclass
class RunningBatch:
    """The running sequences, and their state on the device with one row for each."""

    sequences: list[RunningSequence]
    cache_row: torch.Tensor  # int32 [A], row of the backend's cache
    ids: torch.Tensor  # int64 [A], the newest token, which the models have not read
    position: torch.Tensor  # int64 [A], position of that token in its sequence
    sequence: torch.Tensor  # int64 [A], sequence numbers
    history: torch.Tensor | None  # int64 [A, L], all tokens from the left; only if n-grams are banned

    def __len__(self) -> int:
        return len(self.sequences)

    def select(self, rows: list[int]) -> "RunningBatch":
        """Return the batch of these rows."""
        keep = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        return RunningBatch(
            [self.sequences[row] for row in rows],
            self.cache_row[keep],
            self.ids[keep],
            self.position[keep],
            self.sequence[keep],
            None if self.history is None else self.history[keep],
        )

    def joined(self, other: "RunningBatch") -> "RunningBatch":
        """Return the rows of this batch, followed by those of another."""
        history = None
        if self.history is not None and other.history is not None:
            history = torch.cat([self.history, other.history])
        return RunningBatch(
            self.sequences + other.sequences,
            torch.cat([self.cache_row, other.cache_row]),
            torch.cat([self.ids, other.ids]),
            torch.cat([self.position, other.position]),
            torch.cat([self.sequence, other.sequence]),
            history,
        )

    def append(self, token: torch.Tensor) -> None:
        """Make `token`, int64 [A], the newest token of each sequence; `position` is already that of the token."""
        self.ids = token
        if self.history is not None:
            self.history.scatter_(1, self.position.unsqueeze(1), token.unsqueeze(1))
