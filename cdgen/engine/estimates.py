"""Memory and shortest time of a generation job, computed from the sizes of its models.

A step of the decode loop is a sequence of parts, each of which takes as long as the slower of its bytes and its
operations (Williams, Waterman & Patterson 2009, the roofline). Launches, latency and prompts are left out, so no job is
faster than this bound.
"""

import bisect
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cdgen.engine.model_sizes import PairShapes
from cdgen.engine.paged_prompts import PREFILL_TOKENS
from cdgen.engine.shared_cache import PAGE_SIZE
from cdgen.hardware import Machine
from cdgen.values import INT32_MAX, integer, real

_MOST_TOKENS = 1e18


@dataclass(frozen=True)
class Job:
    """What is to be generated.

    Raises:
        InputError: a number is out of range; the message names the field.
    """

    tokens: float  # new tokens in total
    prompt_tokens: int  # tokens per prompt
    max_tokens: int  # new tokens per continuation
    n: int  # continuations per prompt

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", real("tokens", self.tokens, 1, _MOST_TOKENS))
        for name in ("prompt_tokens", "max_tokens", "n"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1, INT32_MAX))


class Storage(NamedTuple):
    """How numbers are stored.

    Attributes:
        weights: dtype of the weights. pages: dtype of the cache.
        packed: whether there is a second copy of the weights of matrix products (see :mod:`cdgen.models.products`).
    """

    weights: torch.dtype
    pages: torch.dtype
    packed: bool = False


def parts_of_memory(pair: PairShapes, batch: int, job: Job, storage: Storage) -> dict[str, int]:
    """Return bytes of memory by part, for `batch` sequences of full length.

    The whole pages of a prompt are shared by its n sequences.
    """
    itemsize = storage.weights.itemsize
    shared = job.prompt_tokens // PAGE_SIZE * PAGE_SIZE
    own = -(-(job.prompt_tokens + job.max_tokens) // PAGE_SIZE) * PAGE_SIZE - shared
    prompts = -(-batch // job.n)
    together = min(prompts * job.prompt_tokens, max(PREFILL_TOKENS, job.prompt_tokens))  # a long prompt is not split
    return {
        "weights": pair.weights * itemsize,
        **({"packed weights": pair.multiplied * itemsize} if storage.packed else {}),
        "cache": (batch * own + prompts * shared) * pair.cache_bytes(storage.pages),
        # Prompts that are computed together; logits and what is derived from them, at most two float32 tensors.
        "activations": together * pair.good.activation * itemsize + batch * 8 * pair.good.vocab_size,
    }


def largest_batch(machine: Machine, pair: PairShapes, job: Job, storage: Storage, limit: int) -> int:
    """Return the greatest multiple of n, up to `limit`, whose memory fits; 0 if not even n sequences fit."""
    sizes = range(job.n, limit + 1, job.n) if limit >= job.n else range(1, limit + 1)

    def fits(batch: int) -> bool:
        return sum(parts_of_memory(pair, batch, job, storage).values()) <= machine.memory

    count = bisect.bisect(sizes, False, key=lambda batch: not fits(batch))  # memory grows with the batch
    return sizes[count - 1] if count else 0


def parts_of_step(
    machine: Machine, pair: PairShapes, batch: int, job: Job, storage: Storage, stored_logits: bool
) -> dict[str, float]:
    """Return seconds of a step by part, for sequences of mean length.

    BAD's output layer is read for the candidates only, which is neglected. With `stored_logits`, GOOD's logits are
    written to memory and read again.
    """
    good, bad, itemsize = pair.good, pair.bad, storage.weights.itemsize

    def seconds(size: float, operations: float = 0.0) -> float:
        return max(size / machine.bandwidth, operations / machine.matmul)

    length = job.prompt_tokens + job.max_tokens / 2
    parts = {"GOOD's layers": seconds(good.products * itemsize, 2.0 * batch * good.products)}
    if bad:
        parts["BAD's layers"] = seconds(bad.products * itemsize, 2.0 * batch * bad.products)
    parts["cache"] = seconds(batch * length * pair.cache_bytes(storage.pages))
    parts["output layer"] = seconds(good.output * itemsize, 2.0 * batch * good.output)
    parts["logits"] = seconds(2 * batch * good.vocab_size * 4 if stored_logits else 0)
    return parts
