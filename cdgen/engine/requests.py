"""What the engine is asked to decode: prompts, the numbers that key their noise, and requests."""

import hashlib
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import NamedTuple, TypeVar

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError

_Item = TypeVar("_Item")

NOISE_KEY = "own id or occurrence"  # name of the rule by which the noise of a corpus is keyed; corpora record it


def sequence_number(token_ids: Sequence[int], continuation: int = 0, occurrence: int = 0) -> int:
    """Return the number that keys the noise of a sequence: a hash of the prompt's token ids and two indices.

    Neither the other prompts of a job nor their order matter. Equal arguments give equal noise in any job; different
    arguments give independent noise.

    Args:
        token_ids: the prompt.
        continuation: index of the sequence among the continuations of the prompt.
        occurrence: number of equal prompts before this one in the job; for a seed of a corpus that has an id of its
            own, :func:`id_number` of the id.
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


def id_number(seed_id: str) -> int:
    """Return a hash of a seed's own id, below 2**63. With it, equal prompts of a corpus have noise of their own.

    Unlike the number of equal prompts before this one, it does not depend on the other seeds, so any of them can be
    decoded alone.
    """
    return int.from_bytes(hashlib.blake2b(seed_id.encode(), digest_size=8).digest(), "little") >> 1


class Prompts:
    """All prompts of a job, each with a number that tells equal ones apart. A job of many calls builds it once.

    Args:
        token_ids: the prompts as lists of ids.
        own_ids: the prompts' own ids, if they have any; None for a prompt without one.
    Attributes:
        token_ids: the prompts as lists of ids.
        occurrences: :func:`id_number` of each prompt's own id; for a prompt without one, how many equal prompts without
            ids precede it.
    """

    def __init__(self, token_ids: Sequence[list[int]], own_ids: Iterable[str | None] | None = None) -> None:
        self.token_ids = token_ids
        self.occurrences = array("q")
        seen: dict[int, int] = {}
        for ids, own_id in zip(token_ids, repeat(None, len(token_ids)) if own_ids is None else own_ids, strict=True):
            if own_id is not None:
                self.occurrences.append(id_number(own_id))
                continue
            content = sequence_number(ids)  # a hash takes less memory than the prompt
            self.occurrences.append(seen.setdefault(content, 0))
            seen[content] += 1

    def __len__(self) -> int:
        return len(self.token_ids)


class WaitingSequence(NamedTuple):
    """A sequence that has not started."""

    place: int  # index of the sequence in the job
    continuation: int  # its index among the continuations of the prompt


@dataclass(eq=False)  # hashable by identity: backends keep state for each request
class Request:
    """A prompt, and those of its sequences that have not started."""

    token_ids: list[int]
    occurrence: int  # number that tells equal prompts apart, see Prompts
    waiting: deque[WaitingSequence]
    params: SamplingParams | None = None  # None: those with which the backend began

    def sequence_number(self, continuation: int) -> int:
        """Return the number of a continuation. That of continuation 0 also keys the noise of the prompt itself."""
        return sequence_number(self.token_ids, continuation, self.occurrence)


def make_requests(
    prompts: Prompts, sequences: Iterable[tuple[int, int]], params: Sequence[SamplingParams] | None = None
) -> Iterator[Request]:
    """Iterate over the requests that decode these sequences, whose places are their indices in `sequences`.

    Args:
        prompts: all prompts of the job.
        sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent.
        params: the sampling parameters of each prompt of the job, if they differ.
    """
    for prompt, group in groupby(enumerate(sequences), key=lambda item: item[1][0]):
        waiting = deque(WaitingSequence(place, continuation) for place, (_, continuation) in group)
        own = None if params is None else params[prompt]
        yield Request(prompts.token_ids[prompt], prompts.occurrences[prompt], waiting, own)


def default_batch(device_type: str) -> int:
    """Return the greatest number of sequences to decode at the same time, unless the user states another one."""
    return 512 if device_type == "cuda" else 64


def batches(sequences: Sequence[_Item], n: int, max_num_seqs: int) -> list[Sequence[_Item]]:
    """Split `sequences`, n adjacent ones per prompt, into batches of at most max_num_seqs.

    The n sequences of a prompt stay in one batch if n <= max_num_seqs.
    """
    size = max_num_seqs - max_num_seqs % n if n <= max_num_seqs else max_num_seqs
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]
