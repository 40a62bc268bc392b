"""The backend of the engine for any causal model of transformers: one batch, padded on the left, run to its end."""

import hashlib

import torch

from cdgen.rng import seed_noise
from cdgen_kernels.ops import contrastive_sample


def noise_seed(seed, sequence):
    """Seed of torch's generator for a noisy BAD, of the batch whose first text is `sequence`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sequence}".encode()).digest()[:8], "little") >> 1


class StaticBackend:
    """Texts on transformers' own forward and an :class:`~cdgen.models.in_place_cache.InPlaceCache` a model.

    Args:
        pair: :class:`~cdgen.engine.engine.Pair`. params: :class:`~cdgen.engine.sampling_params.SamplingParams`.
        max_num_seqs: texts of the batch.
    """

    sync_every = 1

    def __init__(self, pair, params, max_num_seqs):
        self.max_num_seqs, self._pair, self._params = max_num_seqs, pair, params
        self._models = pair.models(params)

    def admit(self, request, most):
        """See :mod:`cdgen.engine.engine`. Rows of a batch have one length: all start together, none after them."""
        return most

    def start(self, starts):
        """See :mod:`cdgen.engine.engine`."""
        device = self._pair.good.device
        if any(model.noisy for model in self._models):
            seed_noise(device, noise_seed(self._params.seed, starts[0][0].texts[0][1]))
        ids, mask = _left_padded([request.token_ids for request, _ in starts], device)  # [P, W]
        width = ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        caches = [model.new_cache(width) for model in self._models]
        pairs = zip(self._models, caches, strict=True)
        outputs = [model.last_logits(ids, mask, positions, cache) for model, cache in pairs]
        counts = [count for _, count in starts]
        numbers, repeats = torch.tensor([range(len(starts)), counts], device=device)
        owner = numbers.repeat_interleave(repeats, output_size=sum(counts))  # passing the size avoids a device sync
        self._filled = width
        self._caches = [cache.fork(owner, width + self._params.max_tokens) for cache in caches]
        self._mask = mask.new_ones(len(owner), width + self._params.max_tokens)
        self._mask[:, :width] = mask[owner]
        cache_rows = iter(range(len(owner)))
        return [[next(cache_rows) for _ in range(count)] for count in counts], [
            x.index_select(0, owner) for x in outputs
        ]

    def step(self, texts, cache_rows, lengths):
        """See :mod:`cdgen.engine.engine`. Rows that have ended are computed with the rest, on token 0."""
        self._filled += 1
        ids, position = texts.ids.new_zeros(2, len(self._mask), 1)
        ids[texts.cache_row, 0], position[texts.cache_row, 0] = texts.ids, texts.position
        mask = self._mask[:, : self._filled]
        pairs = zip(self._models, self._caches, strict=True)
        return [model.last_logits(ids, mask, position, cache)[texts.cache_row] for model, cache in pairs]

    def sample(self, outputs, sampling, *, banned, logprobs):
        """Draw from logits [A, V'] of each model."""
        options = {"outside_head": self._params.outside_head, "banned": banned, "logprobs": logprobs}
        bad = outputs[1] if len(outputs) > 1 else None
        return contrastive_sample(outputs[0], bad, sampling, vocab_size=self._pair.vocab_size, **options)

    def release(self, cache_rows):
        """See :mod:`cdgen.engine.engine`: the rows stay until the batch ends."""

    def close(self) -> None:
        """See :mod:`cdgen.engine.engine`."""
        self._caches = self._mask = None


def _left_padded(prompts, device):
    """(ids, mask), int64 [P, W], W the longest prompt; padding has id 0 and mask 0."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
