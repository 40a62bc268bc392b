"""Prompts in the shared cache: if there is room, each is kept until all of its sequences have started."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cdgen.engine.backend import Start
from cdgen.engine.graphs import GraphSizes, StepGraphs
from cdgen.engine.pair_runner import PairRunner
from cdgen.engine.requests import Request
from cdgen.engine.shared_cache import SharedKVCache
from cdgen.hardware import to_device

PREFILL_TOKENS = 4096  # greatest number of prompt tokens to compute at once, unless one prompt is longer
EAGER_PREFILLS = 4  # prefills that run without a graph before the first one is captured


@dataclass
class _Prompt:
    """A prompt in the cache."""

    cache_row: int
    outputs: list[torch.Tensor] | None = None  # last hidden state [D] of each model; None until it is computed


class PagedPrompts:
    """The prompts in the cache, by request.

    Args:
        cache: holds the pages of the prompts.
        runner: computes the prompts.
        seed: int64 [1] on the device, key of a dropout BAD's mask.
    """

    def __init__(self, cache: SharedKVCache, runner: PairRunner, seed: torch.Tensor) -> None:
        self._cache, self._runner, self._seed = cache, runner, seed
        self._prompts: dict[Request, _Prompt] = {}

    def __len__(self) -> int:
        return len(self._prompts)

    def admit(self, request: Request, most: int, max_new_tokens: int) -> int:
        """Return how many sequences of a request can start now, at most `most`, and reserve their pages.

        If some of them have to wait, one more is reserved if possible: that keeps the prompt in the cache.
        """
        if request in self._prompts:
            cache_row = self._prompts[request].cache_row
            for count in range(most, 0, -1):
                extra = count - 1 + (count < len(request.waiting))
                if not extra or self._cache.reserve(cache_row, extra):
                    return count
            return 0
        length = len(request.token_ids)
        for spare in (1, 0):  # without the spare one, the prompt is computed again for the rest
            for count in range(most, 0, -1):
                reserved = count + (spare if count < len(request.waiting) else 0)
                if self._cache.can_hold(length, reserved, max_new_tokens):
                    self._prompts[request] = _Prompt(self._cache.allocate(length, reserved, max_new_tokens))
                    return count
        return 0

    def start(self, starts: Sequence[Start], graphs: StepGraphs | None) -> tuple[list[int], list[torch.Tensor]]:
        """Compute the prompts that are new, and fork the admitted sequences from their prompts.

        Args:
            starts: the sequences.
            graphs: from :func:`prefill_graphs`; None to compute without CUDA graphs.
        Returns:
            the sequences' cache rows, and each model's last hidden states [A, D].
        """
        for requests in _chunks([request for request, _ in starts if self._prompts[request].outputs is None]):
            self._prefill(requests, graphs)
        prompts = [self._prompts[request] for request, _ in starts]
        counts = [len(continuations) for _, continuations in starts]
        rows = [row for prompt, n in zip(prompts, counts, strict=True) for row in self._cache.fork(prompt.cache_row, n)]
        repeats = to_device(counts, self._seed.device)
        outputs = [  # passing the size avoids a device sync
            torch.stack(each).repeat_interleave(repeats, 0, output_size=len(rows))
            for each in zip(*(prompt.outputs or [] for prompt in prompts), strict=True)
        ]
        for request, _ in starts:
            if not self._cache.reserved(self._prompts[request].cache_row):
                self._cache.release([self._prompts.pop(request).cache_row])
        return rows, outputs

    def _prefill(self, requests: Sequence[Request], graphs: StepGraphs | None) -> None:
        """Compute the prompts of these requests, and keep each model's last hidden state."""
        lengths = [len(request.token_ids) for request in requests]
        # A prompt's noise is that of its first sequence, whichever sequences start now.
        of_prompt = [[self._prompts[request].cache_row, request.sequence_number(0)] for request in requests]
        tokens = [token for request in requests for token in request.token_ids]
        positions = [at for length in lengths for at in range(length)]
        inputs = torch.tensor([tokens, positions, *np.repeat(np.array(of_prompt).T, lengths, axis=1).tolist()])
        self._cache.publish()
        device = self._seed.device
        if graphs is not None:  # the function is passed per call: storing it would create a cycle
            outputs = graphs(self.compute, inputs)[0]
        else:
            outputs = self.compute(inputs.to(device, non_blocking=True))
        last = to_device(np.cumsum(lengths) - 1, device)
        states = zip(*(output[last] for output in outputs), strict=True)
        for request, own in zip(requests, states, strict=True):
            self._prompts[request].outputs = list(own)

    def compute(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the last hidden states [N, D] of each model.

        Args:
            inputs: int64 [4, N], token ids, positions, cache rows (-1 for unused rows), and sequence numbers.
        """
        ids, position, cache_row, sequence = inputs.unbind()
        outputs = self._runner.hidden_states(self._cache, ids, position, cache_row, self._seed, sequence, prefill=True)
        self._runner.join()
        return tuple(outputs)


def prefill_graphs(max_length: int, device: torch.device) -> StepGraphs:
    """Return the CUDA graphs that compute prompts of up to `max_length` tokens."""
    return StepGraphs([GraphSizes(max(PREFILL_TOKENS, max_length), EAGER_PREFILLS)], [0, 0, -1, 0], device)


def _chunks(requests: list[Request]) -> Iterator[list[Request]]:
    """Split requests into parts of at most PREFILL_TOKENS prompt tokens. A longer prompt is a part of its own."""
    part: list[Request] = []
    size = 0
    for request in requests:
        length = len(request.token_ids)
        if part and size + length > PREFILL_TOKENS:
            yield part
            part, size = [], 0
        part.append(request)
        size += length
    if part:
        yield part
