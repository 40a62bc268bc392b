"""The engine on pages: the same texts in any batch, order and memory; no trace of earlier texts; slots kept busy.

Products of another batch size round otherwise. Here every product is made row by row, so that texts must be equal to
the bit, log-probabilities and all.
"""

import random
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.engine import Engine, Pair, Request
from cdgen.errors import InputError
from cdgen.models.llama import LlamaRunner
from cdgen_kernels.ops import Samples
from tests.helpers.engines import PROMPTS, backend, free, requests
from tests.helpers.tiny_models import VOCABULARY, make_llama


def drawn(requests):
    return [[(output.token_ids, output.logprobs, output.finish_reason) for output in r.outputs] for r in requests]


@pytest.fixture(scope="module")
def models(good, bad, tokenizer):
    return {"good": good, "bad": bad, "tokenizer": tokenizer}


@pytest.mark.parametrize("kind", [{}, {"dropout": 0.3}, {"layers": 1}], ids=["checkpoint", "dropout", "layers"])
def test_texts_are_equal_to_the_bit_in_any_batch(models, exact, kind):
    if kind:
        models = {name: value for name, value in models.items() if name != "bad"}
    params = free(stop_token_ids=tuple(range(40, 120)), alpha=0.01)  # so that texts end at any time
    expected = drawn(ContrastiveLM(**models, **kind, max_num_seqs=1).generate(PROMPTS, params))
    lengths = {len(tokens) for request in expected for tokens, *_ in request}
    assert len(lengths) > 3, "texts end at many lengths, or slots are not refilled out of step"
    for size in (2, 3, 5, 64):
        lm = ContrastiveLM(**models, **kind, max_num_seqs=size)
        assert drawn(lm.generate(PROMPTS, params)) == expected
    for budget in (3, 4, 7):  # so many times what the longest text needs
        need = backend(lm, params).cache.page_bytes * -(-(37 + 9) // 16)
        lm = ContrastiveLM(**models, **kind, kv_cache_memory_bytes=need * budget)
        assert drawn(lm.generate(PROMPTS, params)) == expected


def test_texts_are_equal_in_any_order_of_the_prompts(models, exact):
    lm, params = ContrastiveLM(**models, max_num_seqs=4), free()
    rows = [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(3)]
    expected = dict(zip(rows, lm.continue_rows(PROMPTS, rows, params), strict=True))
    prompts = list(range(len(PROMPTS)))
    for seed in range(3):
        random.Random(seed).shuffle(prompts)
        shuffled = [(prompt, index) for prompt in prompts for index in range(3)]
        again = lm.continue_rows(PROMPTS, shuffled, params)
        assert all(expected[row] == text for row, text in zip(shuffled, again, strict=True))


def test_bad_scored_at_the_candidates_draws_what_whole_logits_draw(models):
    """Without log-probabilities BAD's output layer is not computed; heads of all lengths, longer than the list too."""
    for alpha in (0.3, 1e-2, 1e-12):
        lm, params = ContrastiveLM(**models), free(alpha=alpha, n=6)
        plain = [
            [output.token_ids for output in r.outputs]
            for r in lm.generate(PROMPTS, free(alpha=alpha, n=6, logprobs=False))
        ]
        assert plain == [[output.token_ids for output in r.outputs] for r in lm.generate(PROMPTS, params)]


def test_prompts_are_computed_a_few_at_a_time(models, exact, monkeypatch):
    """Also one that is longer than what is computed at once."""
    lm, seen, original = ContrastiveLM(**models), [], LlamaRunner.hidden_states
    expected = drawn(lm.generate(PROMPTS, free()))
    monkeypatch.setattr("cdgen.engine.paged_backend.PREFILL_TOKENS", 20)
    monkeypatch.setattr(
        LlamaRunner, "hidden_states", lambda self, ids, *rest: seen.append(len(ids)) or original(self, ids, *rest)
    )
    assert drawn(lm.generate(PROMPTS, free())) == expected
    assert seen[0:10:2] == [3 + 16, 2, 37, 1 + 3 + 13, 21]


def test_a_prompts_noise_is_that_of_its_first_text(models, monkeypatch):
    """Also of a prompt whose first text runs elsewhere, so that a shard may begin in the middle of a prompt's texts."""
    lm, seen, original = ContrastiveLM(models["good"], dropout=0.3), [], LlamaRunner.hidden_states

    def spy(self, *given):
        seen.append(given[8])
        return original(self, *given)

    monkeypatch.setattr(LlamaRunner, "hidden_states", spy)
    lm.continue_rows(PROMPTS, [(0, 2), (2, 0), (2, 1)], free(max_tokens=1))
    assert seen[0].tolist() == [0] * 3 + [2 << 32] * 2


def test_bads_output_layer_is_not_computed(models, monkeypatch):
    lm, seen = ContrastiveLM(**models), []
    monkeypatch.setattr(
        "cdgen.engine.paged_backend.gather_logits",
        lambda hidden, weight, found: seen.append(found.token.shape) or torch.zeros(found.token.shape),
    )
    monkeypatch.setattr("cdgen.engine.paged_backend.linear", lambda *_: pytest.fail("an output layer was computed"))
    lm.generate(PROMPTS, free(logprobs=False))
    assert seen == [(21, 256)] * 9


def test_a_refilled_slot_shows_no_trace_and_memory_returns(models, exact):
    """Pages are filled with NaN whenever they are free."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)))
    expected = Engine(lm.pair, backend(lm, params), requests(), params).run()

    texts = backend(lm, params)
    cache, release = texts.cache, texts.release
    used = set()

    def poison():
        for store in (*cache.keys, *cache.values):
            store[:, cache._free[: cache.free_pages]] = float("nan")

    def poisoned(cache_rows):
        used.update(cache_rows)
        release(cache_rows)
        poison()

    texts.release = poisoned
    poison()
    pages, cache_rows = cache.free_pages, sorted(cache._free_cache_rows)
    assert Engine(lm.pair, texts, requests(), params).run() == expected
    assert len(used) < 21, "no slot was used twice"
    assert (cache.free_pages, cache.reserved_pages, sorted(cache._free_cache_rows)) == (pages, 0, cache_rows)
    assert not cache.lengths.any() and (cache.page_table == -1).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mix_of_lengths_counts_and_budgets_ends_with_every_text_drawn_once(data):
    lm = TINY.setdefault("lm", ContrastiveLM(make_llama(0, width=32, layers=1), make_llama(1, width=32, layers=1)))
    prompts = [[5] * data.draw(st.integers(1, 40)) for _ in range(data.draw(st.integers(1, 8)))]
    counts = [data.draw(st.integers(1, 9)) for _ in prompts]
    new, size = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 7))
    places = iter(range(sum(counts)))
    asked = [
        Request(p, deque((next(places), (at << 32) + c) for c in range(n)), at << 32)
        for at, (p, n) in enumerate(zip(prompts, counts, strict=True))
    ]
    params = free(max_tokens=new, logprobs=False)
    longest = max(map(len, prompts)) + new
    need = backend(lm, params, size, longest).cache.page_bytes * -(-longest // 16)
    texts = backend(lm, params, size, longest, kv_cache_memory_bytes=int(need * data.draw(st.floats(1, 4))))
    pages, rows = texts.cache.free_pages, []
    step = texts.step
    texts.step = lambda state, cache_rows, lengths: rows.append(len(cache_rows)) or step(state, cache_rows, lengths)
    finished = []
    results = Engine(lm.pair, texts, asked, params, None, finished.append).run()
    assert [len(text.token_ids) for text in results] == [new] * sum(counts) and sum(finished) == sum(counts)
    assert max(rows, default=0) <= size and (texts.cache.free_pages, texts.cache.reserved_pages) == (pages, 0)


TINY = {}


def test_texts_may_end_right_after_min_tokens(models):
    """A stop token as number min_tokens + 1, a stop string as soon as there are min_tokens."""
    lm = ContrastiveLM(**models)
    (request,) = lm.generate([PROMPTS[0]], free(n=60, min_tokens=3, stop_token_ids=tuple(range(40, 200))))
    assert min(len(output.token_ids) for output in request.outputs) == 4
    letters = tuple("abcdefghijklmnopqrstuvwxyz")
    (request,) = lm.generate([PROMPTS[0]], free(n=60, min_tokens=3, stop=letters, logprobs=False))
    assert min(len(output.token_ids) for output in request.outputs) == 3


def test_a_budget_too_small_for_one_text_is_refused(models):
    lm = ContrastiveLM(**models, kv_cache_memory_bytes=1000)
    with pytest.raises(InputError, match="a text of 46 tokens needs 30,720 bytes of cache, but the budget is 1,000"):
        lm.generate(PROMPTS, free())


def test_without_a_budget_there_is_room_for_the_texts_that_run_and_a_prompt(models):
    for size in (1, 4):
        assert backend(ContrastiveLM(**models), free(), size).cache.free_pages == (size + 1) * -(-46 // 16)


def test_pages_of_another_dtype(models):
    """bfloat16 pages under a float32 model: half the memory, and log-probabilities near those of float32."""
    full = ContrastiveLM(**models)
    half = ContrastiveLM(**models, kv_cache_dtype="bfloat16")
    stores = [backend(lm, free(), **lm.kv_cache).cache for lm in (full, half)]
    assert stores[0].page_bytes == 2 * stores[1].page_bytes and stores[1].keys[0].dtype == torch.bfloat16
    (one,), (other,) = (drawn(lm.generate(PROMPTS[3], free(n=1, max_tokens=1))) for lm in (full, half))
    difference = abs(one[0][1][0].good - other[0][1][0].good)
    assert 0 < difference < 0.1
    with pytest.raises(InputError, match="kv_cache_dtype = 'int8': use float32, bfloat16 or float16"):
        ContrastiveLM(**models, kv_cache_dtype="int8")


@pytest.mark.parametrize("capacity", [256, 20, 10, 3])
def test_looking_every_few_steps_changes_nothing(models, exact, monkeypatch, capacity):
    """As on a GPU: faults are told by tokens. With short lists many steps are drawn again from whole heads."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), alpha=0.3, logprobs=False)
    expected = Engine(lm.pair, backend(lm, params), requests(), params).run()
    monkeypatch.setattr("cdgen_kernels.ops._raise_on_fault", lambda codes: None)
    monkeypatch.setattr("cdgen.engine.paged_backend._CAPACITY", capacity)
    looked = []
    for every in (2, 3, 50):
        texts = backend(lm, params)
        texts.sync_every, pages = every, texts.cache.free_pages
        steps, step = texts.steps, texts.step
        texts.steps = lambda *given, steps=steps: looked.append("steps") or steps(*given)
        texts.step = lambda *given, step=step: looked.append("step") or step(*given)
        told = []
        assert Engine(lm.pair, texts, requests(), params, told.append).run() == expected
        assert sum(told) == sum(len(text.token_ids) for text in expected)
        assert (texts.cache.free_pages, texts.cache.reserved_pages) == (pages, 0)
    assert "steps" in looked and ("step" in looked or capacity > 3)


@pytest.mark.parametrize("needs", [{"logprobs": True}, {"min_tokens": 3}, {"no_repeat_ngram_size": 1}], ids=str)
def test_what_needs_the_host_is_looked_at_each_step(models, exact, needs):
    """Where the backend would rather not, and texts around it end at any time; as texts are alone."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), **{"logprobs": False} | needs)
    expected = Engine(lm.pair, backend(lm, params, size=1), requests(), params).run()
    texts = backend(lm, params, size=5)
    texts.sync_every = 3
    assert Engine(lm.pair, texts, requests(), params).run() == expected


class Clockwork:
    """A backend without models: the text in place p ends after lengths[p] tokens."""

    sync_every = 1

    def __init__(self, lengths, size):
        self.max_num_seqs, self.lengths = size, lengths
        self.drawn, self.rows = {}, []
        self.free = list(range(size))

    def admit(self, request, most):
        return most

    def start(self, starts):
        cache_rows = []
        for request, count in starts:
            cache_rows.append([self.free.pop() for _ in range(count)])
            for cache_row, (place, _) in zip(cache_rows[-1], request.texts, strict=False):
                self.drawn[cache_row] = self.lengths[place]
        self.now = [cache_row for own in cache_rows for cache_row in own]
        return cache_rows, [torch.zeros(len(self.now), 1)]

    def step(self, texts, cache_rows, lengths):
        self.rows.append(len(cache_rows))
        self.now = cache_rows
        return [torch.zeros(len(cache_rows), 1)]

    def sample(self, outputs, rows, *, banned, logprobs):
        for cache_row in self.now:
            self.drawn[cache_row] -= 1
        return Samples(torch.tensor([1 if self.drawn[cache_row] == 0 else 2 for cache_row in self.now]))

    def release(self, cache_rows):
        self.free += cache_rows

    def close(self):
        self.closed = True


def heavy_tailed(count, limit, seed=0):
    """Lengths of texts: Pareto with index 1.2, from 10 tokens, cut at the limit."""
    generator = random.Random(seed)
    return [min(limit, int(10 * generator.paretovariate(1.2))) for _ in range(count)]


def occupancy(lengths, good, size):
    """(of the whole run, of static batches): tokens that count among those of rows times steps."""
    clockwork = Clockwork(lengths, size)
    pair = Pair(good, None, None, VOCABULARY, (1,))
    asked = [Request([5], deque([(at, at << 32)]), at << 32) for at in range(len(lengths))]
    results = Engine(pair, clockwork, asked, SamplingParams(max_tokens=400, contrast_strength=0.0)).run()
    assert [len(text.token_ids) for text in results] == lengths
    batches = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    computed = sum(size * max(batch) for batch in batches)
    return sum(clockwork.rows) / (size * len(clockwork.rows)), sum(lengths) / computed


def test_slots_are_busy_with_a_thousand_texts_of_heavy_tailed_lengths(good):
    """The engine cannot know which texts are long: what is left idle is the end of the run, and is not computed."""
    lengths = heavy_tailed(1000, 400)
    ours, static = occupancy(lengths, good, size=8)
    print(f"\nslots in use: {ours:.1%}; in static batches {static:.1%}")
    assert ours > 0.9 and static < 0.5


def test_a_prompt_whose_texts_do_not_all_fit_starts_with_those_that_do(models):
    lm, params = ContrastiveLM(**models), free(n=5)
    need = backend(lm, params).cache.page_bytes * 3  # of a text: 37 tokens and 9 new ones, 2 pages full and shared
    texts = backend(lm, params, size=5, kv_cache_memory_bytes=int(1.7 * need))
    assert texts.cache.free_pages == 5
    request = requests(5)[3]
    assert texts.admit(request, 5) == 2, "2 shared pages, 1 for each text, 1 for the spare that keeps the prompt"
    texts.start([(request, 2)])
    request.texts.popleft(), request.texts.popleft()
    assert texts.admit(request, 3) == 0, "no promise that could not be kept"
