"""What the engine is asked to decode: the pair of models, prompts, and requests."""

import hashlib
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.models.language_model import LanguageModel
from cdgen.models.vocabulary import shared_vocab_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_Item = TypeVar("_Item")

NOISE_KEY = "prompt"  # name of the rule by which :func:`sequence_number` keys the noise; corpora record it


def sequence_number(token_ids: Sequence[int], continuation: int = 0, occurrence: int = 0) -> int:
    """Return the number that keys the noise of a sequence: a hash of the prompt's token ids and two indices.

    Neither the other prompts of a job nor their order matter. Equal arguments give equal noise in any job; different
    arguments give independent noise.

    Args:
        token_ids: the prompt.
        continuation: index of the sequence among the continuations of the prompt.
        occurrence: number of equal prompts before this one in the job.
    Returns:
        a number below 2**63: `sequence` of :func:`cdgen_kernels.make_sampling_tensors`.
    Raises:
        InputError (a ValueError): an argument is not a whole number of 64 bits.
    """
    numbers = (*token_ids, occurrence, continuation)
    try:
        content = struct.pack(f"<{len(numbers)}q", *numbers)
    except struct.error as error:
        raise InputError(f"token_ids, continuation, occurrence: must be whole numbers of 64 bits: {error}") from error
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


class Prompts:
    """All prompts of a job, each with the number of equal prompts before it. A job of many calls builds it once.

    Args:
        token_ids: the prompts as lists of ids.
    Attributes:
        token_ids: the prompts as lists of ids.
        occurrences: for each prompt, how many equal ones precede it.
    """

    def __init__(self, token_ids: Sequence[list[int]]) -> None:
        self.token_ids = token_ids
        self.occurrences = array("q")
        seen: dict[int, int] = {}
        for ids in token_ids:
            content = sequence_number(ids)  # a hash takes less memory than the prompt
            self.occurrences.append(seen.setdefault(content, 0))
            seen[content] += 1

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass
class ModelPair:
    """GOOD, BAD (or None), and what they share."""

    good: LanguageModel
    bad: LanguageModel | None
    tokenizer: "PreTrainedTokenizerBase | None"
    vocab_size: int  # token ids in use; wider output layers are padded
    eos_token_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        good: LanguageModel,
        bad: LanguageModel | None,
        good_tokenizer: "PreTrainedTokenizerBase | None",
        bad_tokenizer: "PreTrainedTokenizerBase | None",
    ) -> "ModelPair":
        """Return the pair of two models, whose tokenizer is GOOD's, otherwise BAD's.

        Raises:
            InputError: the models and tokenizers do not share a vocabulary.
        """
        vocab_size = shared_vocab_size(good, bad, good_tokenizer, bad_tokenizer)
        tokenizer = good_tokenizer or bad_tokenizer
        eos = set(good.eos_token_ids)
        if tokenizer and tokenizer.eos_token_id is not None:
            eos.add(tokenizer.eos_token_id)
        return cls(good, bad, tokenizer, vocab_size, tuple(sorted(token for token in eos if token < vocab_size)))

    def models(self, params: SamplingParams) -> list[LanguageModel]:
        """Return the models that `params` need: GOOD, and BAD if there is contrast."""
        return [self.good, self.bad] if self.bad is not None and params.contrast_strength else [self.good]

    def position_limit(self, params: SamplingParams) -> int | None:
        """Return the least number of positions of the models that `params` need; None if they do not state it."""
        return min((limit for model in self.models(params) if (limit := model.position_limit)), default=None)

    def max_new_tokens(self, params: SamplingParams, prompt_length: int) -> int:
        """Return how many tokens a continuation may have: `params.max_tokens`, or the positions that are left."""
        if params.max_tokens is not None:
            return params.max_tokens
        limit = self.position_limit(params)
        assert limit is not None, "`check` refuses this"
        return limit - prompt_length

    def longest_sequence(self, params: SamplingParams, prompt_lengths: Iterable[int]) -> int:
        """Return the greatest number of tokens, prompt included, that a continuation of these prompts may have."""
        return max(length + self.max_new_tokens(params, length) for length in set(prompt_lengths))

    def check(
        self, token_ids: Sequence[Sequence[int]], params: SamplingParams, names: Sequence[str] | None = None
    ) -> None:
        """Check that these prompts can be continued.

        Args:
            token_ids: the prompts as lists of ids.
            params: sampling parameters.
            names: the prompts' names for error messages; default: `prompt 0`, `prompt 1` and so on.
        Raises:
            InputError: a prompt or parameter that cannot be used.
        """
        self.check_params(params)
        if not any(model.noisy for model in self.models(params)):
            params.check_distinct()
        limit = self.position_limit(params)
        if limit is None and params.max_tokens is None:
            raise InputError("max_tokens = None: the models do not state for how many positions they were made")
        for index, ids in enumerate(token_ids):
            name = names[index] if names else f"prompt {index}"
            self.check_ids(ids, f"{name}: token id")
            most_new = params.max_tokens or 1
            if limit is not None and len(ids) + most_new > limit:
                raise InputError(
                    f"{name}: {len(ids)} tokens and max_tokens = {most_new} more exceed the models' {limit} "
                    "positions; shorten the prompt or lower max_tokens"
                )

    def check_params(self, params: SamplingParams) -> None:
        """Raise InputError if `params` need a BAD that is missing, or tokens that the models do not have."""
        if params.contrast_strength and self.bad is None:
            raise InputError(
                f"contrast_strength = {params.contrast_strength:g}: there is no BAD; pass bad=, dropout= or layers=, "
                "or set contrast_strength=0"
            )
        self.check_ids(params.stop_token_ids, "stop_token_ids:")

    def check_ids(self, ids: Iterable[int], name: str) -> None:
        """Raise InputError if a token id is out of range; the message begins with `name`."""
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise InputError(f"{name} {wrong} is out of range; the vocabulary has {self.vocab_size} tokens")


class WaitingSequence(NamedTuple):
    """A sequence that has not started."""

    place: int  # index of the sequence in the job
    continuation: int  # its index among the continuations of the prompt


@dataclass(eq=False)  # hashable by identity: backends keep state for each request
class Request:
    """A prompt, and those of its sequences that have not started."""

    token_ids: list[int]
    occurrence: int  # how many equal prompts precede it in the job
    waiting: deque[WaitingSequence]

    def sequence_number(self, continuation: int) -> int:
        """Return the number of a continuation. That of continuation 0 also keys the noise of the prompt itself."""
        return sequence_number(self.token_ids, continuation, self.occurrence)


def make_requests(prompts: Prompts, sequences: Iterable[tuple[int, int]]) -> Iterator[Request]:
    """Iterate over the requests that decode these sequences, whose places are their indices in `sequences`.

    Args:
        prompts: all prompts of the job.
        sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent.
    """
    for prompt, group in groupby(enumerate(sequences), key=lambda item: item[1][0]):
        waiting = deque(WaitingSequence(place, continuation) for place, (_, continuation) in group)
        yield Request(prompts.token_ids[prompt], prompts.occurrences[prompt], waiting)


def batches(sequences: Sequence[_Item], n: int, max_num_seqs: int) -> list[Sequence[_Item]]:
    """Split `sequences`, n adjacent ones per prompt, into batches of at most max_num_seqs.

    The n sequences of a prompt stay in one batch if n <= max_num_seqs.
    """
    size = max_num_seqs - max_num_seqs % n if n <= max_num_seqs else max_num_seqs
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]
