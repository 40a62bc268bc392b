"""The engine's backend for models of the Llama family: a paged cache, and both models in one step."""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from cdgen.engine.backend import Round, Rows, Start
from cdgen.engine.device_state import DeviceState
from cdgen.engine.draw import Draws
from cdgen.engine.graphs import GraphSizes, StepGraphs
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.page_store import CacheShape
from cdgen.engine.paged_prompts import PagedPrompts, prefill_graphs
from cdgen.engine.pair_runner import PairRunner
from cdgen.engine.requests import Request
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.shared_cache import SharedKVCache
from cdgen.engine.stopping import stop_token_ids
from cdgen.errors import InputError
from cdgen.hardware import free_memory, to_device

CACHE_SHARE = 0.9  # default upper limit on the cache, as a share of a GPU's free memory; the rest is for activations
STEPS_PER_ROUND = 4  # steps between two host syncs on a GPU
CAPACITY = 256  # length of the candidate lists; with more candidates, the lists are as long as the vocabulary


class CacheOptions(TypedDict, total=False):
    """Options of the paged cache; see :class:`PagedBackend`."""

    kv_cache_dtype: torch.dtype | None
    kv_cache_memory_bytes: int | None


class _Graphs(NamedTuple):
    decode: StepGraphs
    prefill: StepGraphs


class PagedBackend:
    """Runs sequences of both models on a :class:`SharedKVCache`.

    See :class:`~cdgen.engine.backend.Backend` for the methods.

    Args:
        pair: the models.
        params: sampling parameters; :meth:`begin` replaces them.
        max_num_seqs: greatest number of sequences that run at once.
        max_length: number of tokens of the longest sequence, including its prompt.
        varied: whether requests have parameters of their own; see :class:`~cdgen.engine.device_state.DeviceState`.
        kv_cache_dtype: dtype of the pages; default: the models' own.
        kv_cache_memory_bytes: budget for the pages of both models. Default: what `max_num_seqs` sequences need, and on
            a GPU at most CACHE_SHARE of its free memory.
    Attributes:
        max_length: see above.
        options: the options of the cache.
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
        varied: bool = False,
        kv_cache_dtype: torch.dtype | None = None,
        kv_cache_memory_bytes: int | None = None,
    ) -> None:
        self._pair, self._models, self._params = pair, pair.models(params), params
        self._varied = varied
        self.max_num_seqs, self.max_length = max_num_seqs, max_length
        self.options = CacheOptions(kv_cache_dtype=kv_cache_dtype, kv_cache_memory_bytes=kv_cache_memory_bytes)
        self._runner = PairRunner(self._models, max_length, pair.vocab_size)
        shapes = [
            CacheShape(model.num_layers, runner.num_kv_heads, runner.head_dim, kv_cache_dtype or model.module.dtype)
            for model, runner in zip(self._models, self._runner.runners, strict=True)
        ]
        device = pair.good.device
        free = free_memory(device)  # the weights are loaded already
        if kv_cache_memory_bytes is None and free is not None:
            kv_cache_memory_bytes = int(CACHE_SHARE * free)
        self.cache_rows = 2 * max_num_seqs + 1  # a prompt has a row of its own until all its sequences have started
        try:
            self.cache = SharedKVCache(
                shapes,
                cache_rows=self.cache_rows,
                sequences=max_num_seqs + 1,  # one more for the prompt whose sequences have not all started
                max_length=max_length,
                device=device,
                memory_bytes=kv_cache_memory_bytes,
            )
        except InputError:
            self._runner.close()
            raise
        self._seed = torch.tensor([params.seed], device=device)
        self._prompts = PagedPrompts(self.cache, self._runner, self._seed)
        self._state = DeviceState(
            params,
            stop_token_ids(params, pair.eos_token_ids),
            pair.bad_word_ids(params),
            varied=varied,
            cache_rows=self.cache_rows,
            max_num_seqs=max_num_seqs,
            device=device,
        )
        on_gpu = device.type == "cuda"
        self.steps_per_round, self.rounds_in_flight = (STEPS_PER_ROUND, 2) if on_gpu else (1, 1)
        self._graphs = self._new_graphs() if on_gpu else None

    def _new_graphs(self) -> _Graphs:
        device = self._pair.good.device
        sizes = [GraphSizes(self.max_num_seqs) for _ in range(2)]  # without and with shared prefixes
        return _Graphs(StepGraphs(sizes, [-1], device), prefill_graphs(self.max_length, device))

    def begin(self, params: SamplingParams, varied: bool = False) -> bool:
        """Prepare for another call, after all sequences have finished; return False if that is impossible."""
        if self._models != self._pair.models(params) or not self._runner.refresh():
            return False
        if self._graphs is not None and _traits(params, varied) != _traits(self._params, self._varied):
            self._graphs.decode.clear()
        self._params, self._varied = params, varied
        stops, words = stop_token_ids(params, self._pair.eos_token_ids), self._pair.bad_word_ids(params)
        self._state.begin(params, stops, words, varied)
        self._seed.fill_(params.seed)
        return True

    def admit(self, request: Request, most: int) -> int:
        """Return how many sequences of a request can start now, and reserve their pages."""
        new_tokens = self._pair.max_new_tokens(request.params or self._params, len(request.token_ids))
        return self._prompts.admit(request, most, new_tokens)

    def start(self, starts: list[Start]) -> Round:
        """Compute the prompts that are new, fork sequences from them, and draw the first token of each."""
        rows, outputs = self._prompts.start(starts, self._graphs and self._graphs.prefill)
        cache_row = to_device(rows, self.cache.page_table.device)
        newest = self._state.start(cache_row, starts, self.max_length)
        drawn = self._draw(outputs, cache_row, newest.position + 1, newest.sequence)
        return self._round(np.array(rows), [drawn])

    def launch(self, rows: Rows, lengths: npt.NDArray[np.int64], count: int) -> Round:
        """Launch `count` steps of the sequences in these rows."""
        # The steps read the newest token, and all but the last of those that they draw.
        self.cache.extend_to(rows, lengths + count - 1)
        self.cache.publish()
        shared = self.cache.shared_lengths.any(rows)
        if shared:
            rows = self.cache.by_prompt(rows)  # attention reads a prefix once for a block of neighbours
        step, inputs = partial(self._step, shared=shared), torch.from_numpy(rows).unsqueeze(0)
        if self._graphs is not None:  # the step is passed per call: storing it would create a cycle
            return self._round(rows, self._graphs.decode(step, inputs, count, kind=int(shared)))
        inputs = inputs.to(self.cache.page_table.device)
        return self._round(rows, [step(inputs) for _ in range(count)])

    def redraw(self, drawn: Round, steps: list[int], columns: list[int], positions: list[int]) -> Round:
        """Draw from the outputs of these steps again, with lists that hold all candidates."""
        assert drawn.outputs is not None, "only lists of candidates overflow"
        rows = drawn.rows[columns]
        numbers = to_device(np.array([rows, steps, columns, positions]), self.cache.page_table.device)
        cache_row, step, column, position = numbers
        outputs = [torch.stack(each)[step, column] for each in zip(*drawn.outputs, strict=True)]
        sequence = self._state.newest(cache_row).sequence
        return self._round(rows, [self._draw(outputs, cache_row, position, sequence, capacity=self._pair.vocab_size)])

    def release(self, rows: Rows) -> None:
        """Free the pages that only these sequences hold."""
        self.cache.release(rows)

    def close(self) -> None:
        """Free graphs and pages now, even if this object is still referenced."""
        graphs, self._graphs = self._graphs, None
        with contextlib.ExitStack() as stack:  # calls all of them, the last one first, even if one raises
            stack.callback(self.cache.close)
            for each in reversed(graphs or ()):
                stack.callback(each.close)
            stack.callback(self._runner.close)

    @property
    def _lists_candidates(self) -> bool:
        """Whether BAD's output layer is computed for GOOD's candidates only, which needs a list of them."""
        return len(self._models) == 2 and self._params.lists_candidates

    def _round(self, rows: Rows, steps: Sequence[tuple[torch.Tensor, ...]]) -> Round:
        """Return the round of these steps, each with the results of :meth:`_draw`."""
        if not self._lists_candidates:
            return Round(rows, [Draws(*step) for step in steps])
        return Round(rows, [Draws(token) for token, *_ in steps], [outputs for _, *outputs in steps])

    def _step(self, inputs: torch.Tensor, shared: bool = False) -> tuple[torch.Tensor, ...]:
        """Run the models on the newest token of each sequence, and draw the next, without a host sync.

        Args:
            inputs: int64 [1, A], cache rows; -1 for unused rows.
            shared: whether attention should read a prefix once for all sequences that share it.
        Returns:
            see :meth:`_draw`.
        """
        cache_row = inputs.squeeze(0)
        token, position, sequence = self._state.newest(cache_row)
        outputs = self._runner.hidden_states(
            self.cache, token, position, cache_row, self._seed, sequence, shared=shared
        )
        return self._draw(outputs, cache_row, position + 1, sequence)

    def _draw(
        self,
        outputs: Sequence[torch.Tensor],
        cache_row: torch.Tensor,
        position: torch.Tensor,
        sequence: torch.Tensor,
        capacity: int | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Draw a token at `position` for each sequence, and make it the newest.

        Returns:
            the fields of :class:`~cdgen.engine.draw.Draws` that are not None; after them, if the token may have to be
            drawn again, each model's last hidden states [A, D].
        """
        sampling = self._state.sampling(cache_row, position, sequence)
        options: dict[str, Any] = {
            "banned": self._state.banned(cache_row, position),
            "adjustment": self._state.adjustment(cache_row, position),
        }
        if self._lists_candidates:
            samples = self._runner.sample_listed(outputs, sampling, capacity=capacity or CAPACITY, **options)
            self._state.append(cache_row, samples.token, position)
            return (samples.token, *outputs)
        draws = self._runner.sample(outputs, sampling, params=self._params, varied=self._varied, **options)
        self._state.append(cache_row, draws.token, position)
        return tuple(x for x in draws if x is not None)


def _traits(params: SamplingParams, varied: bool) -> tuple[Any, ...]:
    """Return what decides which kernels a step launches, and with which constants and tensors."""
    bans = params.min_tokens, params.no_repeat_ngram_size
    stops = (params.stop_token_ids, params.ignore_eos) if params.min_tokens else ()
    changes = params.bad_words, params.logit_bias, params.penalizes
    best = params.top_logprobs, params.top_logprobs > 0 and params.cuts
    return (varied, params.lists_candidates, params.outside_head, params.logprobs, *best, *bans, *stops, *changes)
