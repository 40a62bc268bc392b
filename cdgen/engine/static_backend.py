"""The engine's backend for any causal model of transformers: one batch, padded on the left, until all of it ends."""

import hashlib

import torch

from cdgen.engine.backend import Start, Started
from cdgen.engine.requests import ModelPair, Request, RunningBatch
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.hardware import free_memory, free_memory_text
from cdgen.models.in_place_cache import InPlaceCache
from cdgen.rng import seed_noise
from cdgen_kernels import Samples, SamplingTensors, contrastive_sample


def noise_seed(seed: int, sequence: int) -> int:
    """Return the seed of torch's generator for a noisy BAD, for a batch that starts with sequence number `sequence`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sequence}".encode()).digest()[:8], "little") >> 1


class StaticBackend:
    """Runs transformers' own forward, with one :class:`~cdgen.models.in_place_cache.InPlaceCache` per model.

    A cache row is a row of the batch. All sequences start together, and rows that have finished are computed with the
    rest. See :class:`~cdgen.engine.backend.Backend` for the methods.

    Args:
        pair: the models.
        params: sampling parameters.
        max_num_seqs: number of sequences in the batch.
    """

    sync_every = 1

    def __init__(self, pair: ModelPair, params: SamplingParams, max_num_seqs: int) -> None:
        self.max_num_seqs, self._pair, self._params = max_num_seqs, pair, params
        self._models = pair.models(params)
        self._caches: list[InPlaceCache] = []
        self._mask: torch.Tensor | None = None  # int64 [B, W], attention mask of the batch
        self._filled = 0  # columns of the mask in use

    def admit(self, request: Request, most: int) -> int:
        """Return `most`: the engine asks only before the batch starts, since no row is released before its end."""
        return most

    def start(self, starts: list[Start]) -> Started:
        """Compute the prompts as one batch, and copy each prompt's cache for its sequences."""
        device = self._pair.good.device
        if any(model.noisy for model in self._models):
            first = starts[0].request
            number = first.sequence_number(first.waiting[0].continuation)
            seed_noise(device, noise_seed(self._params.seed, number))
        ids, mask = _left_padded([request.token_ids for request, _ in starts], device)  # [P, W]
        width = ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        caches = [model.new_cache(width) for model in self._models]
        pairs = zip(self._models, caches, strict=True)
        outputs = [model.last_logits(ids, mask, positions, cache) for model, cache in pairs]
        counts = [count for _, count in starts]
        prompts, repeats = torch.tensor([range(len(starts)), counts], device=device)
        owner = prompts.repeat_interleave(repeats, output_size=sum(counts))  # passing the size avoids a device sync
        self._filled = width
        length = width + max(self._pair.max_new_tokens(self._params, len(request.token_ids)) for request, _ in starts)
        try:
            self._caches = [cache.fork(owner, length) for cache in caches]
            self._mask = mask.new_ones(len(owner), length)
        except RuntimeError as error:  # torch.OutOfMemoryError on GPUs
            raise InputError(
                f"a cache for {len(owner)} sequences of {length} tokens cannot be allocated: "
                f"{free_memory_text(device, free_memory(device))}; lower max_num_seqs or max_tokens"
            ) from error
        self._mask[:, :width] = mask[owner]
        rows = iter(range(len(owner)))
        cache_rows = [[next(rows) for _ in range(count)] for count in counts]
        return Started(cache_rows, [x.index_select(0, owner) for x in outputs])

    def step(self, batch: RunningBatch) -> list[torch.Tensor]:
        """Run the models on every row of the batch; finished rows read token 0."""
        assert self._mask is not None
        self._filled += 1
        ids, position = batch.ids.new_zeros(2, len(self._mask), 1)
        ids[batch.cache_row, 0], position[batch.cache_row, 0] = batch.ids, batch.position
        mask = self._mask[:, : self._filled]
        pairs = zip(self._models, self._caches, strict=True)
        return [model.last_logits(ids, mask, position, cache)[batch.cache_row] for model, cache in pairs]

    def steps(self, batch: RunningBatch, sampling: SamplingTensors, count: int) -> torch.Tensor:
        """Not supported: `sync_every` is 1."""
        raise AssertionError("the engine calls `steps` only if sync_every is above 1")

    def sample(
        self, outputs: list[torch.Tensor], sampling: SamplingTensors, *, banned: torch.Tensor | None, logprobs: bool
    ) -> Samples:
        """Draw from the logits [A, V'] of each model."""
        return contrastive_sample(
            outputs[0],
            outputs[1] if len(outputs) > 1 else None,
            sampling,
            vocab_size=self._pair.vocab_size,
            outside_head=self._params.outside_head,
            banned=banned,
            logprobs=logprobs,
            raise_faults=False,
        )

    def release(self, cache_rows: list[int]) -> None:
        """Do nothing: rows stay until the batch ends."""

    def close(self) -> None:
        """Free the caches."""
        self._caches, self._mask = [], None


def _left_padded(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, mask), int64 [P, W] for P prompts of up to W tokens; padding has id 0 and mask 0."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
