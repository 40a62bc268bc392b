"""The backend of the engine for models of the Llama family: pages, forks, refills, both models in one step."""

import torch
from torch.nn.functional import linear

from cdgen.engine.graphs import StepGraphs, give_back_stream, take_stream
from cdgen.engine.shared_cache import CacheShape, SharedKVCache
from cdgen.hardware import free_memory
from cdgen.models.llama import LlamaRunner, slots
from cdgen_kernels.ops import contrast_sample, gathered_scores, linear_head, sample

PREFILL_TOKENS = 4096  # prompts' tokens computed at once
CACHE_SHARE = 0.9  # default upper limit on the cache, as a share of a GPU's free memory; the rest is for activations
_LOOK_EVERY = 4  # steps on a GPU between two looks at what was drawn, each of which waits for the device
_CAPACITY = 256  # of the list of a head; where one is longer, the list is as long as the vocabulary


class PagedTexts:
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
            slots=2 * max_num_seqs + 1,  # prompts have slots of their own until all their texts have started
            texts=max_num_seqs + 1,  # a prompt is kept for those that have not
            max_length=max_length,
            device=device,
            memory_bytes=kv_cache_memory_bytes,
        )
        self._seed = torch.tensor([params.seed], device=device)
        on_gpu = device.type == "cuda"
        self.look_every = _LOOK_EVERY if on_gpu else 1
        self._graphs = StepGraphs(max_num_seqs, device) if on_gpu else None
        self._side = take_stream(device) if on_gpu and len(models) > 1 else None

    def admit(self, request, most):
        """See :mod:`cdgen.engine.engine`. The promise of one more text keeps a prompt that is not started in full."""
        if request.slot is not None:
            for count in range(most, 0, -1):
                extra = count - 1 + (count < len(request.texts))
                if not extra or self.cache.promise(request.slot, extra):
                    return count
            return 0
        length = len(request.token_ids)
        for spare in (1, 0):  # without it the prompt is computed again for the rest
            for count in range(most, 0, -1):
                promised = count + (spare if count < len(request.texts) else 0)
                if self.cache.can_hold(length, promised, self._max_tokens):
                    request.slot = self.cache.allocate(length, promised, self._max_tokens)
                    return count
        return 0

    def start(self, starts):
        """See :mod:`cdgen.engine.engine`."""
        self._prefill([request for request, _ in starts if request.outputs is None])
        slots = [self.cache.fork(request.slot, count) for request, count in starts]
        counts = torch.tensor([count for _, count in starts], device=self.cache.page_table.device)
        size = sum(count for _, count in starts)  # passing the size avoids a device sync
        outputs = [
            torch.stack(each).repeat_interleave(counts, 0, output_size=size)
            for each in zip(*(request.outputs for request, _ in starts), strict=True)
        ]
        for request, _ in starts:
            if not self.cache.promised(request.slot):
                self.cache.release(request.slot)
                request.slot = request.outputs = None
        return slots, outputs

    def step(self, texts, slots, lengths):
        """See :mod:`cdgen.engine.engine`."""
        self.cache.extend_to(slots, lengths)
        return self._run(texts.ids, texts.position, texts.slot, texts.sequence)

    def steps(self, texts, slots, lengths, rows, count):
        """See :mod:`cdgen.engine.engine`."""
        self.cache.extend_to(slots, [length + count - 1 for length in lengths])
        arguments = texts.ids, texts.position, texts.slot, rows, count
        if self._graphs is None:
            return self._advance_in_turn(*arguments)
        return self._graphs(self._advance, *arguments)  # passed per call: storing it would create a cycle

    def sample(self, outputs, rows, *, banned=None, logprobs=False, look=True):
        """Draw from hidden states [A, D] of each model. BAD's output layer is computed at GOOD's candidates only, where
        the method allows; a head longer than their list is drawn with a longer one, or, without `look`, which would
        wait for the device, told by its token.
        """
        weights = [runner.output_weight for runner in self._runners]
        options = {"vocab_size": self._vocab_size, "banned": banned}
        if len(outputs) == 1 or self._outside_head != "mask" or logprobs:
            logits = [linear(*both) for both in zip(outputs, weights, strict=True)]
            bad = logits[1] if len(logits) > 1 else None
            return sample(logits[0], bad, rows, outside_head=self._outside_head, logprobs=logprobs, **options)
        candidates = linear_head(outputs[0], weights[0], rows, capacity=_CAPACITY, **options)
        if look and int(candidates.count.max()) > _CAPACITY:
            candidates = linear_head(outputs[0], weights[0], rows, capacity=self._vocab_size, **options)
        scores = gathered_scores(outputs[1], weights[1], candidates)
        return contrast_sample(candidates, scores, rows, gathered=True, vocab_size=self._vocab_size)

    def release(self, slots):
        """See :mod:`cdgen.engine.engine`."""
        for slot in slots:
            self.cache.release(slot)

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
            row = torch.tensor([request.slot for request in now], dtype=torch.int32, device=device)
            # a prompt's noise is that of its first text, whichever of them start now
            sequence = torch.tensor([request.sequence for request in now], device=device)
            row, sequence = (x.repeat_interleave(counts, output_size=size) for x in (row, sequence))
            last = counts.cumsum(0) - 1
            states = zip(*self._run(ids, position, row, sequence, last), strict=True)
            for request, outputs in zip(now, states, strict=True):
                request.outputs = list(outputs)

    def _advance(self, ids, position, row, rows):
        """A step whole, without a look: reads tokens `ids` at `position`, both int64 [A], and draws the next."""
        outputs = self._run(ids, position, row, rows.sequence)
        return self.sample(outputs, rows._replace(position=position + 1), look=False).token

    def _advance_in_turn(self, ids, position, row, rows, count):
        drawn = []
        for at in range(count):
            ids = self._advance(ids.clamp(min=0), position + at, row, rows)
            drawn.append(ids)
        return torch.stack(drawn)

    def _run(self, ids, position, row, sequence, last=None):
        """Last hidden states [N or L, D] of each model. In a graph the two run beside one another."""
        table = self.cache.page_table
        slot = slots(table, row, position, self.cache.page_size)
        stores = zip(self._runners, self.cache.keys, self.cache.values, strict=True)
        calls = [
            (runner, (ids, position, row, slot, table, *store, self._seed, sequence, last)) for runner, *store in stores
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
