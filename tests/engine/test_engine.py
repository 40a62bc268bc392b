"""The engine with the paged backend: the same outputs in any batch, order and memory budget, and a busy cache.

Matrix products of another batch size round differently. With the fixture `exact` every product is computed row by row,
so outputs must be equal bit for bit, including log-probabilities.
"""

import random
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from benchmarks.cpu.scheduler import CountingBackend, geometric, run
from cdgen import ContrastiveLM, RequestOutput
from cdgen.engine.backend import Round, Rows, Start
from cdgen.engine.engine import Engine
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import NOISE_KEY, Prompts, id_number, make_requests, sequence_number
from cdgen.errors import InputError
from cdgen.models.dtypes import FP8
from cdgen.models.llama import LlamaRunner
from tests.helpers.engines import PROMPTS, backend, continued, free, outputs_of, requests
from tests.helpers.tiny_models import make_llama


def drawn(requests: list[RequestOutput]) -> list[list[tuple]]:
    return [[(output.token_ids, output.logprobs, output.finish_reason) for output in r.outputs] for r in requests]


@pytest.fixture(scope="module")
def models(good: torch.nn.Module, bad: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"good": good, "bad": bad, "tokenizer": tokenizer}


@pytest.mark.parametrize("kind", [{}, {"dropout": 0.3}, {"layers": 1}], ids=["checkpoint", "dropout", "layers"])
def test_outputs_are_bit_identical_in_any_batch(models, exact, kind) -> None:
    if kind:
        models = {name: value for name, value in models.items() if name != "bad"}
    params = free(stop_token_ids=tuple(range(40, 120)), alpha=0.01)  # so that sequences end at any time
    expected = drawn(ContrastiveLM(**models, **kind, max_num_seqs=1).generate(PROMPTS, params))
    lengths = {len(tokens) for request in expected for tokens, *_ in request}
    assert len(lengths) > 3, "sequences must end at many lengths, otherwise rows are not refilled at different steps"
    for size in (2, 3, 5, 64):
        lm = ContrastiveLM(**models, **kind, max_num_seqs=size)
        assert drawn(lm.generate(PROMPTS, params)) == expected
    for budget in (3, 4, 7):  # in units of what the longest sequence needs
        need = backend(lm, params).cache.page_bytes * -(-(37 + 9) // 16)
        lm = ContrastiveLM(**models, **kind, kv_cache_memory_bytes=need * budget)
        assert drawn(lm.generate(PROMPTS, params)) == expected


def test_outputs_are_the_same_in_any_order_of_the_prompts(models, exact) -> None:
    lm, params = ContrastiveLM(**models, max_num_seqs=4), free()
    sequences = [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(3)]
    expected = dict(zip(sequences, continued(lm, Prompts(PROMPTS), sequences, params), strict=True))
    prompts = list(range(len(PROMPTS)))
    for seed in range(3):
        random.Random(seed).shuffle(prompts)
        shuffled = [(prompt, index) for prompt in prompts for index in range(3)]
        outputs = continued(lm, Prompts(PROMPTS), shuffled, params)
        assert all(expected[pair] == output for pair, output in zip(shuffled, outputs, strict=True))


def test_bad_at_the_candidates_draws_the_same_tokens_as_full_logits(models) -> None:
    """Without log-probabilities BAD's output layer is not computed. Candidates fill or exceed their list."""
    for alpha in (0.3, 1e-2, 1e-12):
        lm, params = ContrastiveLM(**models), free(alpha=alpha, n=6)
        plain = [
            [output.token_ids for output in r.outputs]
            for r in lm.generate(PROMPTS, free(alpha=alpha, n=6, logprobs=False))
        ]
        assert plain == [[output.token_ids for output in r.outputs] for r in lm.generate(PROMPTS, params)]


def test_prefill_is_split_into_chunks(models, exact, monkeypatch) -> None:
    """One prompt is longer than the limit of a chunk."""
    lm, seen, original = ContrastiveLM(**models), [], LlamaRunner.hidden_states
    expected = drawn(lm.generate(PROMPTS, free()))
    monkeypatch.setattr("cdgen.engine.paged_prompts.PREFILL_TOKENS", 20)
    monkeypatch.setattr(
        LlamaRunner, "hidden_states", lambda self, ids, *rest: seen.append(len(ids)) or original(self, ids, *rest)
    )
    assert drawn(lm.generate(PROMPTS, free())) == expected
    assert seen[0:10:2] == [3 + 16, 2, 37, 1 + 3 + 13, 21]


def test_the_noise_of_a_prompt_is_that_of_its_first_sequence(models, monkeypatch) -> None:
    """It does not matter where the first one runs: a shard may begin in the middle of a prompt's continuations."""
    lm, seen, original = ContrastiveLM(models["good"], dropout=0.3), [], LlamaRunner.hidden_states

    def spy(self: LlamaRunner, *given: Any) -> torch.Tensor:
        seen.append(given[6])
        return original(self, *given)

    monkeypatch.setattr(LlamaRunner, "hidden_states", spy)
    continued(lm, Prompts(PROMPTS), [(0, 2), (2, 0), (2, 1), (5, 1)], free(max_tokens=1))
    numbers = [sequence_number(PROMPTS[0])] * 3 + [sequence_number(PROMPTS[2])] * 2
    assert seen[0].tolist() == numbers + [sequence_number(PROMPTS[5], occurrence=1)] * 3


def test_sequence_numbers_are_part_of_the_format_of_a_corpus() -> None:
    """Changing them changes every text, so NOISE_KEY would have to change as well."""
    assert NOISE_KEY == "own id or occurrence" and id_number("s0") == 7261679073387372761
    assert [sequence_number([5, 6]), sequence_number([5, 6], 3), sequence_number([5, 6], occurrence=3)] == [
        6558462343504762573,
        5966115667552889401,
        4274063410989311922,
    ]


def test_the_output_layer_of_bad_is_not_computed(models, monkeypatch) -> None:
    lm, seen = ContrastiveLM(**models), []
    computed: list[LlamaRunner] = []
    monkeypatch.setattr(
        "cdgen.engine.pair_runner.gather_logits",
        lambda hidden, weight, found: seen.append(found.token.shape) or torch.zeros(found.token.shape),
    )
    logits = LlamaRunner.logits
    monkeypatch.setattr(LlamaRunner, "logits", lambda self, hidden: computed.append(self) or logits(self, hidden))
    lm.generate(PROMPTS, free(logprobs=False))
    assert seen == [(21, 256)] * 9
    good = lm.pair.good.module.lm_head.weight
    assert len(computed) == 9 and all(runner.output_weight.data_ptr() == good.data_ptr() for runner in computed)


def test_a_reused_cache_row_keeps_no_trace_and_memory_is_returned(models, exact) -> None:
    """Free pages are filled with NaN."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)))
    expected = outputs_of(lm.pair, backend(lm, params), requests(), params)

    paged = backend(lm, params)
    cache, release = paged.cache, paged.release
    used = set()

    def poison() -> None:
        for tensor in (x for store in cache.stores for x in store.tensors):
            tensor[:, cache._free[: cache.free_pages]] = float("nan")

    def poisoned(rows: Rows) -> None:
        used.update(rows.tolist())
        release(rows)
        poison()

    paged.release = poisoned
    poison()
    pages, cache_rows = cache.free_pages, sorted(cache._free_cache_rows)
    assert outputs_of(lm.pair, paged, requests(), params) == expected
    assert len(used) < 21, "no cache row was used twice"
    assert (cache.free_pages, cache.reserved_pages, sorted(cache._free_cache_rows)) == (pages, 0, cache_rows)
    cache.publish()
    assert not cache.lengths.any() and (cache.page_table == -1).all() and not paged._prompts


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_every_sequence_is_drawn_once_for_any_lengths_counts_and_budgets(data) -> None:
    lm = TINY.setdefault("lm", ContrastiveLM(make_llama(0, width=32, layers=1), make_llama(1, width=32, layers=1)))
    prompts = [[5] * data.draw(st.integers(1, 40)) for _ in range(data.draw(st.integers(1, 8)))]
    counts = [data.draw(st.integers(1, 9)) for _ in prompts]
    new, size = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 7))
    asked = make_requests(Prompts(prompts), [(prompt, index) for prompt, n in enumerate(counts) for index in range(n)])
    params = free(max_tokens=new, logprobs=False)
    longest = max(map(len, prompts)) + new
    need = backend(lm, params, size, longest).cache.page_bytes * -(-longest // 16)
    paged = backend(lm, params, size, longest, kv_cache_memory_bytes=int(need * data.draw(st.floats(1, 4))))
    pages, sizes, launch = paged.cache.free_pages, [], paged.launch
    paged.launch = lambda rows, *rest: sizes.append(len(rows)) or launch(rows, *rest)
    paged.steps_per_round, paged.rounds_in_flight = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    finished = []
    Engine(lm.pair, paged, asked, params, lambda *given: finished.append(given)).run()
    results = [output for _, output in sorted(finished, key=itemgetter(0))]
    assert [output.index for output in results] == [index for n in counts for index in range(n)]
    assert all(len(output.token_ids) == new for output in results)
    assert sorted(place for place, _ in finished) == list(range(sum(counts)))
    assert max(sizes, default=0) <= size and (paged.cache.free_pages, paged.cache.reserved_pages) == (pages, 0)


TINY = {}


def test_a_continuation_may_end_right_after_min_tokens(models) -> None:
    """A stop token may be token number min_tokens + 1. A stop string may end with token number min_tokens."""
    lm = ContrastiveLM(**models)
    (request,) = lm.generate([PROMPTS[0]], free(n=60, min_tokens=3, stop_token_ids=tuple(range(40, 200))))
    assert min(len(output.token_ids) for output in request.outputs) == 4
    letters = tuple("abcdefghijklmnopqrstuvwxyz")
    (request,) = lm.generate([PROMPTS[0]], free(n=60, min_tokens=3, stop=letters, logprobs=False))
    assert min(len(output.token_ids) for output in request.outputs) == 3


def test_a_budget_too_small_for_one_sequence_is_refused(models) -> None:
    lm = ContrastiveLM(**models, kv_cache_memory_bytes=1000)
    with pytest.raises(
        InputError, match="a sequence of 46 tokens needs 30,720 bytes of cache, but the budget is 1,000"
    ):
        lm.generate(PROMPTS, free())


def test_the_default_budget_holds_the_running_sequences_and_a_prompt(models) -> None:
    for size in (1, 4):
        assert backend(ContrastiveLM(**models), free(), size).cache.free_pages == (size + 1) * -(-46 // 16)


def test_pages_of_another_dtype(models) -> None:
    """bfloat16 pages for a float32 model: half the memory, and log-probabilities near those of float32."""
    full = ContrastiveLM(**models)
    half = ContrastiveLM(**models, kv_cache_dtype="bfloat16")
    stores = [backend(lm, free(), **lm.kv_cache).cache for lm in (full, half)]
    assert stores[0].page_bytes == 2 * stores[1].page_bytes and stores[1].stores[0].keys.dtype == torch.bfloat16
    (one,), (other,) = (drawn(lm.generate(PROMPTS[3], free(n=1, max_tokens=1))) for lm in (full, half))
    difference = abs(one[0][1][0].good - other[0][1][0].good)
    assert 0 < difference < 0.1
    with pytest.raises(InputError, match="kv_cache_dtype = 'int8': use float32, bfloat16, float16 or fp8"):
        ContrastiveLM(**models, kv_cache_dtype="int8")


@pytest.mark.parametrize("dropout", [None, 0.3])
def test_fp8_pages(models, exact, dropout, caplog) -> None:
    """About half the memory of 16 bits, log-probabilities near those of float32, and the same tokens in any batch."""
    pair = models if dropout is None else {"good": models["good"], "tokenizer": models["tokenizer"], "dropout": dropout}
    lms = [ContrastiveLM(**pair, kv_cache_dtype="fp8", max_num_seqs=size) for size in (64, 2)]
    assert "slow on the CPU" in caplog.text
    half, narrow = (backend(lms[0], free(), kv_cache_dtype=dtype).cache for dtype in (torch.float16, FP8))
    assert 1.7 < half.page_bytes / narrow.page_bytes < 2
    full, params = ContrastiveLM(**pair), free(n=8, max_tokens=1)
    both = zip(*(chain(*drawn(lm.generate(PROMPTS, params))) for lm in (full, lms[0])), strict=True)
    differences = [abs(one[1][0].good - other[1][0].good) for one, other in both if one[0] == other[0]]
    assert len(differences) > 4 * len(PROMPTS) and 0 < max(differences) < 0.3
    assert drawn(lms[0].generate(PROMPTS, free())) == drawn(lms[1].generate(PROMPTS, free()))


ROUNDS = [(1, 2), (2, 1), (3, 2), (3, 3), (50, 2)]  # (steps per round, rounds in flight)


@pytest.mark.parametrize("capacity", [256, 20, 10, 3])
@pytest.mark.parametrize("rounds", ROUNDS, ids=str)
def test_rounds_in_flight_change_nothing(models, exact, monkeypatch, capacity, rounds) -> None:
    """As on a GPU, what was drawn is read late. With short lists, many tokens are drawn again with longer ones."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), alpha=0.3, logprobs=False)
    expected = outputs_of(lm.pair, backend(lm, params), requests(), params)
    monkeypatch.setattr("cdgen.engine.paged_backend.CAPACITY", capacity)
    paged = backend(lm, params)
    (paged.steps_per_round, paged.rounds_in_flight), pages = rounds, paged.cache.free_pages
    redrawn, redraw = [], paged.redraw
    paged.redraw = lambda *given: redrawn.append(given) or redraw(*given)
    reported: list[int] = []
    assert outputs_of(lm.pair, paged, requests(), params, reported.append) == expected
    assert sum(reported) == sum(len(output.token_ids) for output in expected)
    assert (paged.cache.free_pages, paged.cache.reserved_pages) == (pages, 0)
    assert bool(redrawn) == (capacity < 20) or capacity == 20


def test_a_contrast_over_all_tokens_redraws_nothing(models, exact, monkeypatch) -> None:
    """With alpha = 0, as in classifier-free guidance, every list of candidates would overflow."""

    def refuse(*given: Any) -> Round:
        raise AssertionError("a list has overflowed")

    monkeypatch.setattr(PagedBackend, "redraw", refuse)
    lm = ContrastiveLM(**models)
    guided = [free(alpha=at % 2 * 0.3, contrast_strength=0.5, good_weight=1.5) for at in range(len(PROMPTS))]
    params = [replace(each, logprobs=False) for each in guided]
    alike = [drawn(lm.generate(PROMPTS, each)) for each in params[:2]]
    assert drawn(lm.generate(PROMPTS, params)) == [alike[at % 2][at] for at in range(len(PROMPTS))]


@pytest.mark.parametrize("rounds", ROUNDS, ids=str)
@pytest.mark.parametrize(
    "needs",
    [{"logprobs": True}, {"min_tokens": 3}, {"no_repeat_ngram_size": 1}, {"stop": ("e", "a"), "min_tokens": 2}],
    ids=str,
)
def test_every_option_is_drawn_without_the_host(models, exact, monkeypatch, needs, rounds) -> None:
    """Outputs equal those of sequences that run alone and are read after each step. Some tokens are drawn again."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), **{"logprobs": False} | needs)
    expected = outputs_of(lm.pair, backend(lm, params, size=1), requests(), params)
    monkeypatch.setattr("cdgen.engine.paged_backend.CAPACITY", 10)
    paged = backend(lm, params, size=5)
    paged.steps_per_round, paged.rounds_in_flight = rounds
    assert outputs_of(lm.pair, paged, requests(), params) == expected


class Clockwork(CountingBackend):
    """Records the number of rows of each step, which is read at once."""

    def __init__(self, lengths: list[int], size: int) -> None:
        super().__init__(size, lengths, steps_per_round=1, rounds_in_flight=1)
        self.batch_sizes: list[int] = []

    def launch(self, rows: Rows, *rest: Any) -> Round:
        self.batch_sizes.append(len(rows))
        return super().launch(rows, *rest)


def heavy_tailed(count: int, limit: int, seed: int = 0) -> list[int]:
    """Return lengths of sequences: Pareto with index 1.2, from 10 tokens, cut at the limit."""
    generator = random.Random(seed)
    return [min(limit, int(10 * generator.paretovariate(1.2))) for _ in range(count)]


def occupancy(lengths: list[int], size: int) -> tuple[float, float]:
    """Return the share of rows times steps that produce a token: (in the engine, in static batches)."""
    clockwork = Clockwork(lengths, size)
    run(clockwork, lengths)
    batches = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    computed = sum(size * max(batch) for batch in batches)
    return sum(clockwork.batch_sizes) / (size * len(clockwork.batch_sizes)), sum(lengths) / computed


def test_rows_are_busy_with_a_thousand_sequences_of_heavy_tailed_lengths() -> None:
    """The engine cannot know which sequences are long. Rows are idle only at the end, and are not computed then."""
    lengths = heavy_tailed(1000, 400)
    ours, static = occupancy(lengths, size=8)
    print(f"\nrows in use: {ours:.1%}; in static batches {static:.1%}")
    assert ours > 0.9 and static < 0.5


def test_a_prompt_whose_sequences_do_not_all_fit_starts_with_those_that_do(models) -> None:
    lm, params = ContrastiveLM(**models), free(n=5)
    need = backend(lm, params).cache.page_bytes * 3  # per sequence of 37 + 9 tokens; 2 of the 3 pages are shared
    paged = backend(lm, params, size=5, kv_cache_memory_bytes=int(1.7 * need))
    assert paged.cache.free_pages == 5
    request = list(requests(5))[3]
    assert paged.admit(request, 5) == 2, "2 shared pages, 1 per sequence, and 1 spare that keeps the prompt"
    paged.start([Start(request, [request.waiting.popleft().continuation for _ in range(2)])])
    assert paged.admit(request, 3) == 0, "a reservation must not exceed the free pages"


@pytest.mark.parametrize("overflow", [1e-3, 0.05])
def test_a_list_that_overflows_repeats_one_sequence_and_not_the_batch(overflow) -> None:
    """Tokens are checked by `run`, whichever rounds they come from."""
    generator = random.Random(0)
    lengths = [generator.randint(200, 400) for _ in range(512)]
    usual, repeated = CountingBackend(64, lengths), CountingBackend(64, lengths, overflow)
    run(usual, lengths)
    run(repeated, lengths)
    assert repeated.redraws > 100
    assert repeated.steps < (1.03 if overflow == 1e-3 else 1.4) * usual.steps


def test_refills_are_few_and_run_in_graphs() -> None:
    """Prefills and refills wait until several sequences have ended."""
    lengths = geometric(512, 1 / 300)
    counting = CountingBackend(64, lengths)
    run(counting, lengths)
    assert counting.refills < 0.4 * counting.rounds
    assert counting.eager_prefills <= 4
    assert 1 - counting.rows / counting.padded_rows < 0.12


def test_refills_are_few_if_memory_holds_fewer_sequences_than_may_run() -> None:
    """Here 64 of 256: a refill has to wait for a share of the 64."""
    lengths = geometric(512, 1 / 300)
    counting = CountingBackend(256, lengths)
    admit, held = counting.admit, counting._cache.lengths
    counting.admit = lambda request, most: admit(request, most) if np.count_nonzero(held) < 64 else 0
    run(counting, lengths)
    assert counting.rows <= 64 * counting.steps and counting.refills < 0.4 * counting.rounds


@pytest.mark.parametrize("overflow", [0.0, 0.01])
def test_the_device_always_has_a_round_to_run_while_the_host_reads(overflow) -> None:
    lengths = geometric(300, 1 / 50)
    counting, waits = CountingBackend(32, lengths, overflow), []
    in_flight: list[Round] = []

    class Watched(Round):
        def read(self) -> Any:
            in_flight.remove(self)
            waits.append(len(in_flight))
            return super().read()

    def watched(call: Any) -> Any:
        def launch(*given: Any) -> Round:
            found = call(*given)
            found.__class__ = Watched
            in_flight.append(found)
            return found

        return launch

    counting.launch, counting.start = watched(counting.launch), watched(counting.start)
    run(counting, lengths)
    assert len(waits) > 50 and waits.count(0) <= 3, "only the last rounds are read with none behind them"
