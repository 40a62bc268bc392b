"""The engine's backend for any causal model of transformers: one batch, padded on the left, until all of it ends."""

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from cdgen.engine.backend import Round, Rows, Start
from cdgen.engine.device_state import DeviceState
from cdgen.engine.draw import draw
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.requests import Request
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.stopping import stop_token_ids
from cdgen.errors import InputError
from cdgen.hardware import free_memory, free_memory_text
from cdgen.models.in_place_cache import InPlaceCache
from cdgen.rng import seed_noise


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
        varied: whether requests have parameters of their own; see :class:`~cdgen.engine.device_state.DeviceState`.
    """

    steps_per_round = 1
    rounds_in_flight = 1

    def __init__(self, pair: ModelPair, params: SamplingParams, max_num_seqs: int, varied: bool = False) -> None:
        self.max_num_seqs = self.cache_rows = max_num_seqs
        self._pair, self._params, self._varied = pair, params, varied
        self._models = pair.models(params)
        self._caches: list[InPlaceCache] = []
        self._mask: torch.Tensor | None = None  # int64 [B, W], attention mask of the batch
        self._filled = 0  # columns of the mask in use
        self._state = DeviceState(
            params,
            stop_token_ids(params, pair.eos_token_ids),
            pair.bad_word_ids(params),
            varied=varied,
            cache_rows=max_num_seqs,
            max_num_seqs=max_num_seqs,
            device=pair.good.device,
        )

    def admit(self, request: Request, most: int) -> int:
        """Return `most`: the engine asks only before the batch starts, since no row is released before its end."""
        return most

    def start(self, starts: list[Start]) -> Round:
        """Compute the prompts as one batch, copy each prompt's cache for its sequences, and draw their first tokens."""
        device = self._pair.good.device
        if any(model.noisy for model in self._models):
            request, continuations = starts[0]
            seed_noise(device, noise_seed(self._params.seed, request.sequence_number(continuations[0])))
        ids, mask = _left_padded([request.token_ids for request, _ in starts], device)  # [P, W]
        width = ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        caches = [model.new_cache(width) for model in self._models]
        pairs = zip(self._models, caches, strict=True)
        outputs = [model.last_logits(ids, mask, positions, cache) for model, cache in pairs]
        counts = [len(continuations) for _, continuations in starts]
        prompts, repeats = torch.tensor([range(len(starts)), counts], device=device)
        owner = prompts.repeat_interleave(repeats, output_size=sum(counts))  # passing the size avoids a device sync
        length = width + max(
            self._pair.max_new_tokens(request.params or self._params, len(request.token_ids)) for request, _ in starts
        )
        self._fork(caches, mask, owner, length)
        cache_row = torch.arange(len(owner), device=device)
        newest = self._state.start(cache_row, starts, length)
        outputs = [x.index_select(0, owner) for x in outputs]
        return self._draw(np.arange(len(owner)), outputs, cache_row, newest.position + 1, newest.sequence)

    def _fork(self, caches: list[InPlaceCache], mask: torch.Tensor, owner: torch.Tensor, length: int) -> None:
        """Keep the cache and the mask of each sequence, with room for `length` tokens; `owner` [B] are its prompts."""
        device, width = mask.device, mask.shape[1]
        try:
            self._caches = [cache.fork(owner, length) for cache in caches]
            self._mask = mask.new_ones(len(owner), length)
        except RuntimeError as error:  # torch.OutOfMemoryError on GPUs
            raise InputError(
                f"a cache for {len(owner)} sequences of {length} tokens cannot be allocated: "
                f"{free_memory_text(device, free_memory(device))}; lower max_num_seqs or max_tokens"
            ) from error
        self._mask[:, :width] = mask[owner]
        self._filled = width

    def launch(self, rows: Rows, lengths: npt.NDArray[np.int64], count: int) -> Round:
        """Run the models on every row of the batch; finished rows read token 0."""
        assert self._mask is not None
        self._filled += 1
        cache_row = torch.tensor(rows, device=self._mask.device)
        newest = self._state.newest(cache_row)
        ids, position = newest.token.new_zeros(2, len(self._mask), 1)
        ids[cache_row, 0], position[cache_row, 0] = newest.token, newest.position
        mask = self._mask[:, : self._filled]
        pairs = zip(self._models, self._caches, strict=True)
        outputs = [model.last_logits(ids, mask, position, cache)[cache_row] for model, cache in pairs]
        return self._draw(rows, outputs, cache_row, newest.position + 1, newest.sequence)

    def _draw(
        self,
        rows: Rows,
        outputs: list[torch.Tensor],
        cache_row: torch.Tensor,
        position: torch.Tensor,
        sequence: torch.Tensor,
    ) -> Round:
        """Draw a token at `position` for each sequence from the logits [A, V'] of each model."""
        draws = draw(
            outputs[0],
            outputs[1] if len(outputs) > 1 else None,
            self._state.sampling(cache_row, position, sequence),
            self._state.adjustment(cache_row, position),
            self._params,
            vocab_size=self._pair.vocab_size,
            banned=self._state.banned(cache_row, position),
            varied=self._varied,
        )
        self._state.append(cache_row, draws.token, position)
        return Round(rows, [draws])

    def redraw(self, drawn: Round, steps: list[int], columns: list[int], positions: list[int]) -> Round:
        """Not called: there are no lists of candidates that could be too short."""
        raise AssertionError("contrastive_sample reads all logits")

    def release(self, rows: Rows) -> None:
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
