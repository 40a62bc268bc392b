"""The backend of the engine for models of the Llama family: pages, forks, refills, both models in one step."""

import torch
from torch.nn.functional import linear

from cdgen.engine.graphs import StepGraphs, give_back_stream, take_stream
from cdgen.engine.shared_cache import CacheShape, SharedKVCache
from cdgen.hardware import free_memory
from cdgen.models.llama import LlamaRunner, slot_mapping
from cdgen_kernels.ops import contrastive_sample, gather_logits, sample_candidates, select_candidates_linear

PREFILL_TOKENS = 4096  # prompts' tokens computed at once
CACHE_SHARE = 0.9  # default upper limit on the cache, as a share of a GPU's free memory; the rest is for activations
_SYNC_EVERY = 4  # steps on a GPU between two looks at what was drawn, each of which waits for the device
_CAPACITY = 256  # of the list of a head; where one is longer, the list is as long as the vocabulary


class PagedBackend:
    """Texts on a :class:`SharedKVCache`, run by :class:`LlamaRunner`.

    Args:
        pair: :class:`~cdgen.engine.engine.Pair`. params: :class:`~cdgen.engine.sampling_params.SamplingParams`.
        max_num_seqs: texts that run together at most. max_length: tokens of the longest, prompt included.
        kv_cache_dtype: torch dtype of the pages; default the models' own.
        kv_cache_memory_bytes: budget for the pages of both models; default: what `max_num_seqs` texts need, and on a
            GPU at most CACHE_SHARE of the memory that is free there.

    Raises:
        InputError: one text of `max_length` does not fit into the budget or the free memory.
    """

    def __init__(self, pair, params, max_num_seqs, max_length, *, kv_cache_dtype=None, kv_cache_memory_bytes=None):
        models = pair.models(params)
        self.max_num_seqs, self._vocab_size = max_num_seqs, pair.vocab_size
        self._max_tokens, self._outside_head = params.max_tokens, params.outside_head
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
            cache_rows=2 * max_num_seqs + 1,  # prompts keep their own until all their texts have started
            texts=max_num_seqs + 1,  # a prompt is kept for those that have not
            max_length=max_length,
            device=device,
            memory_bytes=kv_cache_memory_bytes,
        )
        self._seed = torch.tensor([params.seed], device=device)
        on_gpu = device.type == "cuda"
        self.sync_every = _SYNC_EVERY if on_gpu else 1
        self._graphs = StepGraphs(max_num_seqs, device) if on_gpu else None
        self._side = take_stream(device) if on_gpu and len(models) > 1 else None

    def admit(self, request, most):
        """See :mod:`cdgen.engine.engine`. The promise of one more text keeps a prompt that is not started in full."""
        if request.cache_row is not None:
            for count in range(most, 0, -1):
                extra = count - 1 + (count < len(request.texts))
                if not extra or self.cache.reserve(request.cache_row, extra):
                    return count
            return 0
        length = len(request.token_ids)
        for spare in (1, 0):  # without it the prompt is computed again for the rest
            for count in range(most, 0, -1):
                reserved = count + (spare if count < len(request.texts) else 0)
                if self.cache.can_hold(length, reserved, self._max_tokens):
                    request.cache_row = self.cache.allocate(length, reserved, self._max_tokens)
                    return count
        return 0

    def start(self, starts):
        """See :mod:`cdgen.engine.engine`."""
        self._prefill([request for request, _ in starts if request.outputs is None])
        cache_rows = [self.cache.fork(request.cache_row, count) for request, count in starts]
        counts = torch.tensor([count for _, count in starts], device=self.cache.page_table.device)
        size = sum(count for _, count in starts)  # passing the size avoids a device sync
        outputs = [
            torch.stack(each).repeat_interleave(counts, 0, output_size=size)
            for each in zip(*(request.outputs for request, _ in starts), strict=True)
        ]
        for request, _ in starts:
            if not self.cache.reserved(request.cache_row):
                self.cache.release(request.cache_row)
                request.cache_row = request.outputs = None
        return cache_rows, outputs

    def step(self, texts, cache_rows, lengths):
        """See :mod:`cdgen.engine.engine`."""
        self.cache.extend_to(cache_rows, lengths)
        return self._run(texts.ids, texts.position, texts.cache_row, texts.sequence)

    def steps(self, texts, cache_rows, lengths, sampling, count):
        """See :mod:`cdgen.engine.engine`."""
        self.cache.extend_to(cache_rows, [length + count - 1 for length in lengths])
        arguments = texts.ids, texts.position, texts.cache_row, sampling, count
        if self._graphs is None:
            return self._advance_in_turn(*arguments)
        return self._graphs(self._advance, *arguments)  # passed per call: storing it would create a cycle

    def sample(self, outputs, sampling, *, banned=None, logprobs=False, sync=True):
        """Draw from hidden states [A, D] of each model. BAD's output layer is computed at GOOD's candidates only, where
        the method allows; a head longer than their list is drawn with a longer one, or, without `look`, which would
        wait for the device, told by its token.
        """
        weights = [runner.output_weight for runner in self._runners]
        options = {"vocab_size": self._vocab_size, "banned": banned}
        if len(outputs) == 1 or self._outside_head != "mask" or logprobs:
            logits = [linear(*both) for both in zip(outputs, weights, strict=True)]
            bad = logits[1] if len(logits) > 1 else None
            return contrastive_sample(
                logits[0], bad, sampling, outside_head=self._outside_head, logprobs=logprobs, **options
            )
        candidates = select_candidates_linear(outputs[0], weights[0], sampling, capacity=_CAPACITY, **options)
        if sync and int(candidates.count.max()) > _CAPACITY:
            candidates = select_candidates_linear(
                outputs[0], weights[0], sampling, capacity=self._vocab_size, **options
            )
        scores = gather_logits(outputs[1], weights[1], candidates)
        return sample_candidates(candidates, scores, sampling, gathered=True, vocab_size=self._vocab_size)

    def release(self, cache_rows):
        """See :mod:`cdgen.engine.engine`."""
        for cache_row in cache_rows:
            self.cache.release(cache_row)

    def close(self) -> None:
        """See :mod:`cdgen.engine.engine`. Frees graphs and pages now, even if this object is still referenced."""
        graphs, side, self._graphs, self._side = self._graphs, self._side, None, None
        try:
            if graphs is not None:
                graphs.close()
        finally:
            if side is not None:
                give_back_stream(side)
            self.cache.close()

    def _prefill(self, requests):
        """Compute prompts and keep each model's last state of each."""
        while requests:
            size, count = 0, 0
            while count < len(requests) and (not count or size + len(requests[count].token_ids) <= PREFILL_TOKENS):
                size, count = size + len(requests[count].token_ids), count + 1
            now, requests = requests[:count], requests[count:]
            lengths = [len(request.token_ids) for request in now]
            ids = [token for request in now for token in request.token_ids]
            position = [at for length in lengths for at in range(length)]
            device = self.cache.page_table.device
            ids, position = torch.tensor([ids, position], device=device).unbind()
            counts = torch.tensor(lengths, device=device)
            cache_row = torch.tensor([request.cache_row for request in now], dtype=torch.int32, device=device)
            # a prompt's noise is that of its first text, whichever of them start now
            sequence = torch.tensor([request.sequence for request in now], device=device)
            cache_row, sequence = (x.repeat_interleave(counts, output_size=size) for x in (cache_row, sequence))
            last = counts.cumsum(0) - 1
            states = zip(*self._run(ids, position, cache_row, sequence, last), strict=True)
            for request, outputs in zip(now, states, strict=True):
                request.outputs = list(outputs)

    def _advance(self, ids, position, cache_row, sampling):
        """A step whole, without a look: reads tokens `ids` at `position`, both int64 [A], and draws the next."""
        outputs = self._run(ids, position, cache_row, sampling.sequence)
        return self.sample(outputs, sampling._replace(position=position + 1), sync=False).token

    def _advance_in_turn(self, ids, position, cache_row, sampling, count):
        drawn = []
        for at in range(count):
            ids = self._advance(ids.clamp(min=0), position + at, cache_row, sampling)
            drawn.append(ids)
        return torch.stack(drawn)

    def _run(self, ids, position, cache_row, sequence, last=None):
        """Last hidden states [N or L, D] of each model. In a graph the two run beside one another."""
        table = self.cache.page_table
        slots = slot_mapping(table, cache_row, position, self.cache.page_size)
        stores = zip(self._runners, self.cache.keys, self.cache.values, strict=True)
        calls = [
            (runner, (ids, position, cache_row, slots, table, *store, self._seed, sequence, last))
            for runner, *store in stores
        ]
        if self._side is None or not torch.cuda.is_current_stream_capturing():
            return [runner.hidden_states(*arguments) for runner, arguments in calls]
        main, ((good, arguments), (bad, others)) = torch.cuda.current_stream(), calls
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            second = bad.hidden_states(*others)
        first = good.hidden_states(*arguments)
        main.wait_stream(self._side)
        return [first, second]
