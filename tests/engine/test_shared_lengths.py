"""Attention over shared prefixes: which sequences share what, which steps use it, and that outputs are unchanged."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch

from cdgen import ContrastiveLM
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, Request, make_requests
from cdgen.engine.shared_cache import SharedKVCache
from cdgen.engine.shared_lengths import MIN_SHARED
from cdgen.models.llama import LlamaRunner
from cdgen_kernels import paged_attention
from tests.engine.test_shared_cache import SHAPES
from tests.helpers.engines import PROMPTS, backend, free, outputs_of, requests
from tests.helpers.fake_cuda import FakeCuda

LONG = MIN_SHARED + 7  # tokens; the last page of 16 is partly filled


def new_cache(cache_rows: int = 12, sequences: int = 12) -> SharedKVCache:
    return SharedKVCache(SHAPES, cache_rows=cache_rows, sequences=sequences, max_length=LONG + 40, device="cpu")


def shared(cache: SharedKVCache, rows: list[int]) -> list[int]:
    """Return what the device sees before the next step."""
    cache.publish()
    return cache.shared_lengths.tensor[rows].tolist()


@pytest.mark.parametrize(
    ("length", "n", "expected"),
    [
        (MIN_SHARED, 2, MIN_SHARED),
        (MIN_SHARED - 1, 2, 0),
        (MIN_SHARED + 15, 3, MIN_SHARED),
        (MIN_SHARED + 16, 3, MIN_SHARED + 16),
        (LONG, 1, 0),
    ],
)
def test_full_pages_of_long_prompts_are_shared_by_several_continuations(length, n, expected) -> None:
    cache = new_cache()
    rows = cache.fork(cache.allocate(length, n, 9), n)
    assert shared(cache, rows) == [expected] * n
    assert cache.shared_lengths.any(np.array(rows)) == (expected > 0)
    cache.extend_to(rows, [length + 9] * n)
    cache.publish()
    first = cache.page_table[rows, : expected // cache.page_size]
    assert (first == first[0]).all()


def test_the_last_continuation_of_a_prompt_reads_alone() -> None:
    """Nothing can join it: its prompt gave up its pages when the last continuation started."""
    cache = new_cache()
    rows = cache.fork(cache.allocate(LONG, 3, 9), 3)
    for left in (3, 2):
        assert shared(cache, rows) == [MIN_SHARED] * left + [0] * (3 - left)
        cache.release([rows[left - 1]])
    assert shared(cache, rows) == [0, 0, 0] and cache.lengths[rows[0]] == LONG


def test_continuations_that_start_later_join_the_others() -> None:
    """A prompt that is still in the cache keeps its shared length, even while only one continuation runs, or none."""
    cache = new_cache()
    prompt = cache.allocate(LONG, 3, 9)
    (first,) = cache.fork(prompt, 1)
    assert shared(cache, [first]) == [MIN_SHARED]
    cache.release([first])
    (second,) = cache.fork(prompt, 1)
    assert shared(cache, [second]) == [MIN_SHARED]
    assert cache.reserve(prompt, 1)
    late = cache.fork(prompt, 2)
    assert shared(cache, [second, *late]) == [MIN_SHARED] * 3
    cache.release(late)
    assert shared(cache, [second, *late, prompt]) == [0] * 4


@pytest.mark.parametrize("ends", ["fork", "release"])
def test_the_last_continuation_shares_nothing_once_its_prompt_is_released(ends) -> None:
    cache = new_cache()
    prompt = cache.allocate(LONG, 2, 9)
    (first,) = cache.fork(prompt, 1)
    if ends == "release":
        cache.release([prompt])
        assert shared(cache, [first]) == [0]
    else:
        cache.release([first])
        assert shared(cache, cache.fork(prompt, 1)) == [0]


def test_a_prompt_with_one_continuation_shares_once_a_second_is_reserved() -> None:
    cache = new_cache()
    prompt = cache.allocate(LONG, 1, 9)
    assert cache.reserve(prompt, 1)
    assert shared(cache, cache.fork(prompt, 2)) == [MIN_SHARED] * 2


def test_rows_that_are_used_again_share_nothing() -> None:
    cache = new_cache(cache_rows=3, sequences=3)
    prompt = cache.allocate(LONG, 2, 9)
    rows = cache.fork(prompt, 2)
    cache.release([prompt, *rows])
    for n, length in ((2, 20), (1, LONG)):
        prompt = cache.allocate(length, n, 9)
        again = cache.fork(prompt, n)
        assert shared(cache, [0, 1, 2]) == [0, 0, 0]
        cache.release([prompt, *again])


def test_the_device_is_written_only_if_shared_lengths_change(monkeypatch) -> None:
    cache, copies = new_cache(), []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor,
        "copy_",
        lambda x, *given, **how: copies.append(x is cache.shared_lengths.tensor) or copy(x, *given, **how),
    )
    rows = cache.fork(cache.allocate(20, 3, 30), 3)
    for length in range(21, 50):
        cache.extend_to(rows, [length] * 3)
        cache.publish()
    cache.release(rows)
    cache.publish()
    assert not any(copies)
    cache.fork(cache.allocate(LONG, 2, 9), 2)
    cache.publish()
    cache.publish()
    assert copies.count(True) == 1


def first_member_reads(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    *,
    shared_lengths: torch.Tensor | None = None,
    prefill: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Let each sequence read its shared pages through the page table of the first member of its group, as a GPU does.

    All that a kernel relies on is checked.
    """
    if shared_lengths is not None:
        assert not prefill and shared_lengths.dtype == torch.int32 and len(shared_lengths) == len(page_table)
        given, page_table, size = page_table, page_table.clone(), keys.shape[2]
        leaders: dict[int, int] = {}
        groups = [int(given[row, 0]) for row in cache_row.tolist() if row >= 0 and shared_lengths[row] > 0]
        assert len(list(groupby(groups))) == len(set(groups)), "the members of a group are neighbours"
        for row, at in zip(cache_row.tolist(), position.tolist(), strict=True):
            length = int(shared_lengths[row]) if row >= 0 else 0
            if length:
                leader = leaders.setdefault(int(given[row, 0]), row)
                assert length == shared_lengths[leader] and length % size == 0 and at + 1 > length
                assert torch.equal(given[row, : length // size], given[leader, : length // size])
                page_table[row, : length // size] = given[leader, : length // size]
    return paged_attention(q, keys, values, page_table, cache_row, position, prefill=prefill, **options)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let prompts of one page share it; record for each decode step of a model whether it uses shared lengths."""
    monkeypatch.setattr("cdgen.engine.shared_lengths.MIN_SHARED", 16)
    monkeypatch.setattr("cdgen.models.llama.paged_attention", first_member_reads)
    found, original = [], LlamaRunner.hidden_states

    def spy(self: LlamaRunner, *given: Any) -> torch.Tensor:
        *_, prefill, shared_lengths = given
        if not prefill:
            found.append(shared_lengths is not None)
        assert shared_lengths is None or not prefill
        return original(self, *given)

    monkeypatch.setattr(LlamaRunner, "hidden_states", spy)
    return found


@pytest.fixture(params=["checkpoint", "dropout"])
def lm(request: pytest.FixtureRequest, good: torch.nn.Module, bad: torch.nn.Module) -> ContrastiveLM:
    """Pages are shared with a dropout BAD as well: a prompt is computed once, with the noise of its first sequence."""
    return ContrastiveLM(good, **({"bad": bad} if request.param == "checkpoint" else {"dropout": 0.3}))


@pytest.mark.parametrize(("size", "memory"), [(21, None), (5, None), (4, 5)])
def test_outputs_are_the_same_with_shared_prefixes(lm, exact, kinds, monkeypatch, size, memory) -> None:
    """Sequences end at any time, start in the middle of a prompt's continuations, and wait for memory."""
    params = free(n=3, stop_token_ids=tuple(range(40, 120)), alpha=0.05)
    with monkeypatch.context() as patch:
        patch.setattr("cdgen.engine.shared_lengths.MIN_SHARED", 10**6)
        expected = outputs_of(lm.pair, backend(lm, params, size), requests(), params)
    assert not any(kinds)
    kinds.clear()
    options = {} if memory is None else {"kv_cache_memory_bytes": memory * backend(lm, params).cache.page_bytes}
    paged = backend(lm, params, size, **options)
    paged.steps_per_round, paged.rounds_in_flight = 3, 2
    assert outputs_of(lm.pair, paged, requests(), params) == expected
    assert any(kinds)
    assert not paged.cache.shared_lengths.any(np.arange(paged.cache_rows))


def test_siblings_are_neighbours_in_a_step(good, bad, kinds) -> None:
    """`first_member_reads` checks it. Rows are used again in any order, since sequences end at any time."""
    prompts = [[token] * 16 for token in range(5, 17)]
    lm = ContrastiveLM(good, bad, max_num_seqs=10)
    lm.generate(prompts, free(n=5, max_tokens=20, stop_token_ids=tuple(range(40, 80)), alpha=0.01))
    assert any(kinds)


@pytest.mark.parametrize(("n", "prompts"), [(1, PROMPTS), (3, [PROMPTS[0], PROMPTS[6]])], ids=["n = 1", "short"])
def test_steps_without_shared_prefixes_pass_no_shared_lengths(good, bad, kinds, n, prompts) -> None:
    ContrastiveLM(good, bad).generate(prompts, free(n=n))
    assert kinds and not any(kinds)


def with_graphs(paged: PagedBackend) -> PagedBackend:
    paged._graphs, paged.steps_per_round, paged.rounds_in_flight = paged._new_graphs(), 4, 2
    return paged


def graph_kinds(paged: PagedBackend) -> set[int]:
    """Return the kinds of steps that have graphs."""
    assert paged._graphs is not None
    return {kind for kind, _ in paged._graphs.decode._graphs}


def asked(prompt: list[int]) -> Iterator[Request]:
    return make_requests(Prompts([prompt]), [(0, index) for index in range(3)])


def test_each_kind_of_step_has_graphs_that_are_made_when_used(lm, exact, kinds, fake_cuda: FakeCuda) -> None:
    """The first call shares nothing. After a change of what steps launch, both kinds are captured anew."""
    params, logged = free(logprobs=False, alpha=0.05), free(alpha=0.05)
    paged = with_graphs(backend(lm, params, size=3))
    assert paged._graphs is not None
    for prompt, made in ((PROMPTS[0], {0}), (PROMPTS[3], {0, 1})):
        expected = outputs_of(lm.pair, backend(lm, params), asked(prompt), params)
        assert outputs_of(lm.pair, paged, asked(prompt), params) == expected
        assert graph_kinds(paged) == made
    decode = [graph for graph in fake_cuda.graphs if graph.stream is paged._graphs.decode._stream]
    assert len(decode) == 2 and decode[0].pool == decode[1].pool and all(graph.replays for graph in decode)

    assert paged.begin(logged)
    assert graph_kinds(paged) == set() and [graph.resets for graph in decode] == [1, 1]
    assert not any(sizes.captured for sizes in paged._graphs.decode._sizes)
    for prompt in (PROMPTS[3], PROMPTS[0]):
        expected = outputs_of(lm.pair, backend(lm, logged), asked(prompt), logged)
        assert outputs_of(lm.pair, paged, asked(prompt), logged) == expected
    assert graph_kinds(paged) == {0, 1}
    paged.close()
