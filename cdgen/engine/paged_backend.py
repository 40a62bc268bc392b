"""The engine's backend for models of the Llama family: a paged cache, and both models in one step."""

from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from torch.nn.functional import linear

from cdgen.engine.backend import Start, Started
from cdgen.engine.graphs import StepGraphs, give_back_stream, take_stream
from cdgen.engine.requests import ModelPair, Request, RunningBatch
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.shared_cache import CacheShape, SharedKVCache
from cdgen.hardware import free_memory
from cdgen.models.llama import LlamaRunner, slot_mapping
from cdgen_kernels import (
    Samples,
    SamplingTensors,
    contrastive_sample,
    gather_logits,
    sample_candidates,
    select_candidates_linear,
)

PREFILL_TOKENS = 4096  # greatest number of prompt tokens to compute at once, unless one prompt is longer
CACHE_SHARE = 0.9  # default upper limit on the cache, as a share of a GPU's free memory; the rest is for activations
_SYNC_EVERY = 4  # steps between two host syncs on a GPU
_CAPACITY = 256  # length of the candidate lists; with more candidates, the lists are as long as the vocabulary


class CacheOptions(TypedDict, total=False):
    """Options of the paged cache; see :class:`PagedBackend`."""

    kv_cache_dtype: torch.dtype | None
    kv_cache_memory_bytes: int | None


@dataclass
class _Prompt:
    """A prompt that is kept in the cache until all of its sequences have started."""

    cache_row: int
    outputs: list[torch.Tensor] | None = None  # last hidden state [D] of each model; None until it is computed


class PagedBackend:
    """Runs sequences with one :class:`LlamaRunner` per model on a :class:`SharedKVCache`.

    See :class:`~cdgen.engine.backend.Backend` for the methods.

    Args:
        pair: the models.
        params: sampling parameters.
        max_num_seqs: greatest number of sequences that run at once.
        max_length: number of tokens of the longest sequence, including its prompt.
        kv_cache_dtype: dtype of the pages; default: the models' own.
        kv_cache_memory_bytes: budget for the pages of both models. Default: what `max_num_seqs` sequences need, and on
            a GPU at most CACHE_SHARE of its free memory.
    Raises:
        InputError: one sequence of `max_length` does not fit into the budget or the free memory.
    """

    def __init__(
        self,
        pair: ModelPair,
        params: SamplingParams,
        max_num_seqs: int,
        max_length: int,
        *,
        kv_cache_dtype: torch.dtype | None = None,
        kv_cache_memory_bytes: int | None = None,
    ) -> None:
        models = pair.models(params)
        self.max_num_seqs, self._vocab_size = max_num_seqs, pair.vocab_size
        self._max_new_tokens, self._outside_head = partial(pair.max_new_tokens, params), params.outside_head
        self._runners = [LlamaRunner(model.module, max_length, model.dropout) for model in models]
        shapes = [
            CacheShape(model.num_layers, runner.num_kv_heads, runner.head_dim, kv_cache_dtype or model.module.dtype)
            for model, runner in zip(models, self._runners, strict=True)
        ]
        device = pair.good.device
        free = free_memory(device)  # the weights are loaded already
        if kv_cache_memory_bytes is None and free is not None:
            kv_cache_memory_bytes = int(CACHE_SHARE * free)
        self.cache = SharedKVCache(
            shapes,
            cache_rows=2 * max_num_seqs + 1,  # a prompt has a row of its own until all its sequences have started
            sequences=max_num_seqs + 1,  # one more for the prompt whose sequences have not all started
            max_length=max_length,
            device=device,
            memory_bytes=kv_cache_memory_bytes,
        )
        self._prompts: dict[Request, _Prompt] = {}
        self._seed = torch.tensor([params.seed], device=device)
        on_gpu = device.type == "cuda"
        self.sync_every = _SYNC_EVERY if on_gpu else 1
        self._graphs = StepGraphs(max_num_seqs, device) if on_gpu else None
        self._side = take_stream(device) if on_gpu and len(models) > 1 else None

    def admit(self, request: Request, most: int) -> int:
        """Return how many sequences of a request can start now, and reserve their pages.

        If some of them have to wait, one more is reserved if possible: that keeps the prompt in the cache.
        """
        if request in self._prompts:
            cache_row = self._prompts[request].cache_row
            for count in range(most, 0, -1):
                extra = count - 1 + (count < len(request.waiting))
                if not extra or self.cache.reserve(cache_row, extra):
                    return count
            return 0
        length = len(request.token_ids)
        most_new = self._max_new_tokens(length)
        for spare in (1, 0):  # without the spare one, the prompt is computed again for the rest
            for count in range(most, 0, -1):
                reserved = count + (spare if count < len(request.waiting) else 0)
                if self.cache.can_hold(length, reserved, most_new):
                    self._prompts[request] = _Prompt(self.cache.allocate(length, reserved, most_new))
                    return count
        return 0

    def start(self, starts: list[Start]) -> Started:
        """Fork sequences from their prompts; compute the prompts that are new."""
        self._prefill([request for request, _ in starts if self._prompts[request].outputs is None])
        prompts = [self._prompts[request] for request, _ in starts]
        cache_rows = [
            self.cache.fork(prompt.cache_row, count) for prompt, (_, count) in zip(prompts, starts, strict=True)
        ]
        counts = torch.tensor([count for _, count in starts], device=self.cache.page_table.device)
        size = sum(count for _, count in starts)  # passing the size avoids a device sync
        outputs = [
            torch.stack(each).repeat_interleave(counts, 0, output_size=size)
            for each in zip(*(prompt.outputs or [] for prompt in prompts), strict=True)
        ]
        for request, _ in starts:
            if not self.cache.reserved(self._prompts[request].cache_row):
                self.cache.release(self._prompts.pop(request).cache_row)
        return Started(cache_rows, outputs)

    def step(self, batch: RunningBatch) -> list[torch.Tensor]:
        """Run one token of each sequence; return the last hidden states [A, D] of each model."""
        self._extend(batch, 1)
        return self._run(batch.ids, batch.position, batch.cache_row, batch.sequence)

    def steps(self, batch: RunningBatch, sampling: SamplingTensors, count: int) -> torch.Tensor:
        """Draw `count` tokens for each sequence without a host sync, int64 [count, A]."""
        self._extend(batch, count)
        arguments = batch.ids, batch.position, batch.cache_row, sampling, count
        if self._graphs is None:
            return self._advance_in_turn(*arguments)
        return self._graphs(self._advance, *arguments)  # passed per call: storing it would create a cycle

    def sample(
        self,
        outputs: list[torch.Tensor],
        sampling: SamplingTensors,
        *,
        banned: torch.Tensor | None = None,
        logprobs: bool = False,
        sync: bool = True,
    ) -> Samples:
        """Draw from the hidden states [A, D] of each model.

        If the method allows it, BAD's output layer is computed for GOOD's candidates only. If there are more
        candidates than their list holds, they are selected again into a longer one. Finding that out waits for the
        device, so with `sync=False` such a row gets a fault code below 0 instead of a token, as does a row for
        which no token can be drawn.
        """
        weights = [runner.output_weight for runner in self._runners]
        if len(outputs) == 1 or self._outside_head != "mask" or logprobs:
            logits = [linear(*both) for both in zip(outputs, weights, strict=True)]
            return contrastive_sample(
                logits[0],
                logits[1] if len(logits) > 1 else None,
                sampling,
                vocab_size=self._vocab_size,
                outside_head=self._outside_head,
                banned=banned,
                logprobs=logprobs,
                raise_faults=False,
            )
        select = partial(
            select_candidates_linear,
            outputs[0],
            weights[0],
            sampling,
            vocab_size=self._vocab_size,
            banned=banned,
            raise_faults=False,
        )
        candidates = select(capacity=_CAPACITY)
        if sync and int(candidates.count.max()) > _CAPACITY:
            candidates = select(capacity=self._vocab_size)
        bad = gather_logits(outputs[1], weights[1], candidates)
        return sample_candidates(
            candidates, bad, sampling, gathered=True, vocab_size=self._vocab_size, raise_faults=False
        )

    def release(self, cache_rows: list[int]) -> None:
        """Free the pages that only these sequences hold."""
        for cache_row in cache_rows:
            self.cache.release(cache_row)

    def close(self) -> None:
        """Free graphs and pages now, even if this object is still referenced."""
        graphs, side, self._graphs, self._side = self._graphs, self._side, None, None
        try:
            if graphs is not None:
                graphs.close()
        finally:
            if side is not None:
                give_back_stream(side)
            self.cache.close()

    def _extend(self, batch: RunningBatch, count: int) -> None:
        """Make room for the tokens that `count` steps read: the newest of each sequence, and all but the last drawn."""
        rows = [sequence.cache_row for sequence in batch.sequences]
        self.cache.extend_to(rows, [sequence.length + count - 1 for sequence in batch.sequences])

    def _prefill(self, requests: list[Request]) -> None:
        """Compute the prompts of these requests, and keep each model's last hidden state."""
        while requests:
            size, count = 0, 0
            while count < len(requests) and (not count or size + len(requests[count].token_ids) <= PREFILL_TOKENS):
                size, count = size + len(requests[count].token_ids), count + 1
            now, requests = requests[:count], requests[count:]
            lengths = [len(request.token_ids) for request in now]
            tokens = [token for request in now for token in request.token_ids]
            positions = [at for length in lengths for at in range(length)]
            device = self.cache.page_table.device
            ids, position = torch.tensor([tokens, positions], device=device).unbind()
            counts = torch.tensor(lengths, device=device)
            rows = [self._prompts[request].cache_row for request in now]
            cache_row = torch.tensor(rows, dtype=torch.int32, device=device)
            # A prompt's noise is that of its first sequence, whichever sequences start now.
            sequence = torch.tensor([request.sequence_number(0) for request in now], device=device)
            cache_row, sequence = (x.repeat_interleave(counts, output_size=size) for x in (cache_row, sequence))
            last = counts.cumsum(0) - 1
            states = zip(*self._run(ids, position, cache_row, sequence, last), strict=True)
            for request, outputs in zip(now, states, strict=True):
                self._prompts[request].outputs = list(outputs)

    def _advance(
        self, ids: torch.Tensor, position: torch.Tensor, cache_row: torch.Tensor, sampling: SamplingTensors
    ) -> torch.Tensor:
        """Run a whole step without a host sync: read tokens `ids` at `position`, both int64 [A], and draw the next."""
        outputs = self._run(ids, position, cache_row, sampling.sequence)
        return self.sample(outputs, sampling._replace(position=position + 1), sync=False).token

    def _advance_in_turn(
        self, ids: torch.Tensor, position: torch.Tensor, cache_row: torch.Tensor, sampling: SamplingTensors, count: int
    ) -> torch.Tensor:
        drawn = []
        for step in range(count):
            ids = self._advance(ids.clamp(min=0), position + step, cache_row, sampling)
            drawn.append(ids)
        return torch.stack(drawn)

    def _run(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        cache_row: torch.Tensor,
        sequence: torch.Tensor,
        last: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Return the last hidden states [N or L, D] of each model. In a graph, the two models run on two streams."""
        table = self.cache.page_table
        slots = slot_mapping(table, cache_row, position, self.cache.page_size)

        def run(model: int) -> torch.Tensor:
            keys, values = self.cache.keys[model], self.cache.values[model]
            runner = self._runners[model]
            return runner.hidden_states(
                ids, position, cache_row, slots, table, keys, values, self._seed, sequence, last
            )

        if self._side is None or not torch.cuda.is_current_stream_capturing():
            return [run(model) for model in range(len(self._runners))]
        main = torch.cuda.current_stream()
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            bad = run(1)
        good = run(0)
        main.wait_stream(self._side)
        return [good, bad]
