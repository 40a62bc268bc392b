"""The shared cache, compared with lists of tokens.

Every sequence is right in both models, no page is lost, and `extend_to` always finds a page.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgen.engine.page_store import CacheShape
from cdgen.engine.shared_cache import SharedKVCache
from cdgen.errors import InputError

MIN_SHARED = 6  # the prompts of these tests are short
SHAPES = (CacheShape(2, 1, 2, torch.float64), CacheShape(1, 2, 3, torch.float32))  # they differ in every respect


def new_cache(
    pages: int, page_size: int = 4, cache_rows: int = 12, max_length: int = 24, shapes: Sequence[CacheShape] = SHAPES
) -> SharedKVCache:
    page_bytes = page_size * sum(shape.bytes_per_token for shape in shapes)
    return SharedKVCache(
        shapes,
        cache_rows=cache_rows,
        max_length=max_length,
        device="cpu",
        memory_bytes=pages * page_bytes,
        page_size=page_size,
    )


def entries(tokens: list[int], shape: CacheShape) -> torch.Tensor:
    """Return [T, num_layers, num_kv_heads, head_dim]: a different number for every token and entry of the store."""
    size = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
    return torch.tensor(tokens).view(-1, 1, 1, 1) * 8 + torch.arange(np.prod(size)).view(size)


def places(cache: SharedKVCache, cache_rows: list[int], positions: list[int]) -> torch.Tensor:
    """Return the flat cache positions of tokens, through the page table on the device."""
    row, position = torch.tensor([cache_rows, positions], dtype=torch.long).unbind()
    page = device_table(cache)[row, position // cache.page_size].long()
    assert (page >= 0).all(), "every token has a page"
    return page * cache.page_size + position % cache.page_size


def write(cache: SharedKVCache, places: torch.Tensor, tokens: list[int]) -> None:
    page, offset = places // cache.page_size, places % cache.page_size
    for shape, store in zip(SHAPES, cache.stores, strict=True):
        store.keys[:, page, :, offset] = entries(tokens, shape).to(shape.dtype)
        store.values[:, page, :, offset] = -entries(tokens, shape).to(shape.dtype)


def device_table(cache: SharedKVCache) -> torch.Tensor:
    """Return the page table that the device sees before the next step."""
    cache.publish()
    return cache.page_table


def assert_reads(cache: SharedKVCache, cache_row: int, tokens: list[int]) -> None:
    """Read as an attention kernel does, through the page table on the device."""
    pages = device_table(cache)[cache_row, : -(-len(tokens) // cache.page_size)].long()
    for shape, store in zip(SHAPES, cache.stores, strict=True):
        for tensor, sign in ((store.keys, 1), (store.values, -1)):
            read = tensor[:, pages].permute(1, 3, 0, 2, 4).flatten(0, 1)[: len(tokens)]
            assert torch.equal(read, sign * entries(tokens, shape).to(shape.dtype)), f"cache row {cache_row}"


def state(cache: SharedKVCache) -> tuple:
    """Return everything that a refused call must not change."""
    tensors = (*(x for store in cache.stores for x in store.tensors), device_table(cache), cache.shared_lengths.tensor)
    arrays = (cache.lengths, cache._table, cache._limit, cache._owners, cache._free)
    return (
        [x.numpy().tobytes() for x in tensors] + [x.tobytes() for x in arrays],
        cache.free_pages, cache.reserved_pages, list(cache._free_cache_rows), str(cache._prompts),
    )  # fmt: skip


def add_token(cache: SharedKVCache, cache_rows: list[int]) -> None:
    """Make room for one more token in each of these continuations."""
    cache.extend_to(cache_rows, cache.lengths[cache_rows] + 1)


def assert_refused(cache: SharedKVCache, error: type[Exception], call: Callable[..., object], *args: Any) -> None:
    before = state(cache)
    with pytest.raises(error) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert state(cache) == before


class Model:
    """What the cache should hold: lists of tokens, and a name for each page that will be needed in the end.

    A page that is full within the prompt is needed once, any other page once per continuation, forked or not.
    """

    def __init__(self, rng: np.random.Generator, cache: SharedKVCache) -> None:
        self.rng, self.cache = rng, cache
        self.prompts = {}  # by cache row: dict(name, tokens, limit, unforked)
        self.continuations = {}  # by cache row: dict(prompt: its name, shared: its length, tokens, limit, name)
        self.names = 0  # number of names used so far, for tokens, prompts and continuations

    def name(self) -> int:
        self.names += 1
        return self.names

    def pages_in_the_end(self) -> int:
        size, pages = self.cache.page_size, set()

        def continuation(name: Any, prompt: Any, shared: int, limit: int) -> None:
            pages.update((prompt if (j + 1) * size <= shared else name, j) for j in range(-(-limit // size)))

        for one in self.continuations.values():
            continuation(one["name"], one["prompt"], one["shared"], one["limit"])
        for prompt in self.prompts.values():
            for i in range(prompt["unforked"]):
                continuation((prompt["name"], i), prompt["name"], len(prompt["tokens"]), prompt["limit"])
        return len(pages)

    def rows_in_the_end(self) -> int:
        return len(self.continuations) + sum(1 + prompt["unforked"] for prompt in self.prompts.values())

    def pick(self, among: Iterable[int]) -> int | None:
        among = sorted(among)
        return among[self.rng.integers(len(among))] if among else None

    def allocate(self) -> None:
        length, n, new = (int(self.rng.integers(1, high)) for high in (14, 6, 14))
        size, cache = cache_size(self.cache), self.cache
        full = length // cache.page_size
        pages = full + n * (-(-(length + new) // cache.page_size) - full)
        fits = length + new <= cache.max_length and self.rows_in_the_end() + 1 + n <= len(cache.lengths)
        fits = fits and self.pages_in_the_end() + pages <= size
        assert cache.can_hold(length, n, new) == fits
        if not fits:
            return assert_refused(cache, InputError, cache.allocate, length, n, new)
        cache_row = cache.allocate(length, n, new)
        tokens = [self.name() for _ in range(length)]
        write(cache, places(cache, [cache_row] * length, list(range(length))), tokens)
        self.prompts[cache_row] = dict(name=self.name(), tokens=tokens, limit=length + new, unforked=n, several=n > 1)

    def reserve(self) -> None:
        cache_row = self.pick(cache_row for cache_row, prompt in self.prompts.items() if prompt["unforked"])
        if cache_row is None:
            return
        prompt, n = self.prompts[cache_row], int(self.rng.integers(1, 3))
        prompt["unforked"] += n
        fits = self.pages_in_the_end() <= cache_size(self.cache) and self.rows_in_the_end() <= len(self.cache.lengths)
        before = state(self.cache)
        assert self.cache.reserve(cache_row, n) == fits
        if fits:
            prompt["several"] = True
        else:
            prompt["unforked"] -= n
            assert state(self.cache) == before

    def fork(self) -> None:
        cache_row = self.pick(self.prompts)
        if cache_row is None:
            return
        prompt = self.prompts[cache_row]
        if not prompt["unforked"]:
            assert_refused(self.cache, ValueError, self.cache.reserve, cache_row, 1)
            return assert_refused(self.cache, ValueError, self.cache.fork, cache_row, 1)
        n = int(self.rng.integers(1, prompt["unforked"] + 1))
        for started in self.cache.fork(cache_row, n):
            assert started not in self.continuations and started not in self.prompts
            self.continuations[started] = dict(
                name=self.name(), prompt=prompt["name"], shared=len(prompt["tokens"]),
                tokens=list(prompt["tokens"]), limit=prompt["limit"], several=prompt["several"],
            )  # fmt: skip
        prompt["unforked"] -= n

    def extend(self, most: int | None = 99) -> None:
        grow = [cache_row for cache_row, one in self.continuations.items() if len(one["tokens"]) < one["limit"]]
        grow = self.rng.permutation(grow)[: self.rng.integers(1, most)].astype(int).tolist()
        tokens = [self.name() for _ in grow]
        add_token(self.cache, grow)
        newest = [len(self.continuations[cache_row]["tokens"]) for cache_row in grow]
        write(self.cache, places(self.cache, grow, newest), tokens)
        for cache_row, token in zip(grow, tokens, strict=True):
            self.continuations[cache_row]["tokens"].append(token)

    def extend_illegally(self) -> None:
        full = [cache_row for cache_row, one in self.continuations.items() if len(one["tokens"]) == one["limit"]]
        may = [cache_row for cache_row in self.continuations if cache_row not in full]
        bad = self.pick(set(range(len(self.cache.lengths))) - set(may))
        if bad is not None:
            assert_refused(self.cache, ValueError, add_token, self.cache, [*may, bad])

    def release(self) -> None:
        held = [*self.prompts, *self.continuations]
        if not held:
            return
        rows = self.rng.permutation(held)[: 1 + int(self.rng.integers(3))].tolist()
        self.cache.release(rows)
        for row in rows:
            (self.prompts if row in self.prompts else self.continuations).pop(row)
        assert_refused(self.cache, ValueError, self.cache.release, rows[:1])

    def check_books(self) -> dict[int, list[int]]:
        """Check that held, owned, free and reserved pages add up."""
        cache, table = self.cache, device_table(self.cache).numpy()
        held = {cache_row: one["tokens"] for cache_row, one in self.continuations.items()}
        held |= {cache_row: prompt["tokens"] for cache_row, prompt in self.prompts.items() if prompt["unforked"]}
        lengths = np.zeros(len(cache.lengths), dtype=int)
        lengths[list(held)] = [len(tokens) for tokens in held.values()]
        assert (cache.lengths == lengths).all()
        assert ((table >= 0) == (np.arange(table.shape[1]) * cache.page_size < lengths[:, None])).all()
        owners = np.bincount(table[table >= 0], minlength=cache_size(cache))
        assert (cache._owners[:-1] == owners).all() and cache._owners[-1] == 0
        assert sorted(cache._free[: cache.free_pages]) == np.flatnonzero(owners == 0).tolist()
        for cache_row, one in self.continuations.items():
            if len(one["tokens"]) > one["shared"]:  # it has written to its newest page
                assert owners[table[cache_row, (len(one["tokens"]) - 1) // cache.page_size]] == 1
        assert cache.free_pages - cache.reserved_pages == cache_size(cache) - self.pages_in_the_end()
        assert cache.reserved_pages >= 0
        return held

    def check_shared_lengths(self) -> None:
        """Check that pages up to a shared length have other owners, and that a group agrees on them."""
        size, table = self.cache.page_size, device_table(self.cache)
        shared = self.cache.shared_lengths.tensor.tolist()
        held = {row: one["prompt"] for row, one in self.continuations.items()}
        held |= {row: prompt["name"] for row, prompt in self.prompts.items() if prompt["unforked"]}
        for row, length in enumerate(shared):
            one = self.continuations.get(row) or self.prompts.get(row) or {"several": False}
            others = [other for other, name in held.items() if other != row and name == held.get(row)]
            usable = one["several"] and row in held and (others or row in self.prompts)
            full = (one.get("shared") or len(one["tokens"])) // size * size if usable else 0
            assert length == (full if full >= MIN_SHARED else 0)
            if length:
                assert all(shared[other] == length for other in others)
                assert (table[others, : length // size] == table[row, : length // size]).all()

    def check(self) -> None:
        self.check_shared_lengths()
        for cache_row, tokens in self.check_books().items():
            assert_reads(self.cache, cache_row, tokens)


def cache_size(cache: SharedKVCache) -> int:
    return cache.stores[0].keys.shape[1]


@pytest.mark.parametrize("seed", range(50))
def test_random_operations_against_lists_of_tokens(seed, monkeypatch) -> None:
    monkeypatch.setattr("cdgen.engine.shared_lengths.MIN_SHARED", MIN_SHARED)
    rng = np.random.default_rng(seed)
    page_size = int(rng.choice([1, 2, 3, 4, 8]))
    least = -(-24 // page_size)
    cache = new_cache(least + int(rng.integers(3 * least)), page_size, cache_rows=int(rng.integers(4, 16)))
    assert cache_size(cache) >= least
    model = Model(rng, cache)
    rare = ["reserve", "extend_illegally"]
    operations = ["allocate"] * 3 + ["fork"] * 3 + ["extend"] * 8 + ["release"] * 2 + rare
    for _ in range(240):  # x 50 seeds: 12,000
        getattr(model, str(rng.choice(operations)))()
        model.check()
    # All reservations are used: this takes all reserved pages and no others.
    unreserved = cache.free_pages - cache.reserved_pages
    while any(prompt["unforked"] for prompt in model.prompts.values()):
        model.fork()
        model.extend(3)
    while any(len(one["tokens"]) < one["limit"] for one in model.continuations.values()):
        model.extend()
    model.check()
    assert cache.reserved_pages == 0 and cache.free_pages == unreserved
    while model.continuations or model.prompts:
        model.release()
    assert cache.free_pages == cache_size(cache) and (device_table(cache) == -1).all()
    assert sorted(cache._free_cache_rows) == list(range(len(cache.lengths)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 12), st.integers(1, 5))
def test_an_exact_budget_is_enough_and_one_page_less_is_not(length, n, new, page_size) -> None:
    full = length // page_size
    pages = full + n * (-(-(length + new) // page_size) - full)
    sized = dict(page_size=page_size, cache_rows=n + 1, max_length=length + new)
    cache = new_cache(pages, **sized)
    assert cache_size(cache) == pages and cache.can_hold(length, n, new) and not cache.can_hold(length, n + 1, new)
    prompt = cache.allocate(length, n, new)
    rows = cache.fork(prompt, n)
    for _ in range(new):
        add_token(cache, rows)
    assert cache.free_pages == cache.reserved_pages == 0
    for cache_row in (prompt, *rows):
        cache.release([cache_row])
    assert cache.free_pages == pages
    if n > 1:  # otherwise a sequence of max_length does not fit, and the constructor raises
        assert not new_cache(pages - 1, **sized).can_hold(length, n, new)


def test_continuations_share_the_prompt_and_the_last_one_writes_in_place() -> None:
    cache = new_cache(20, page_size=4)
    prompt = cache.allocate(6, 3, 10)
    first, partial = device_table(cache)[prompt, :2].tolist()
    rows = cache.fork(prompt, 3)
    assert device_table(cache)[rows, :2].tolist() == [[first, partial]] * 3
    seconds = []
    for cache_row in rows:
        add_token(cache, [cache_row])
        assert device_table(cache)[cache_row, 0] == first
        seconds.append(int(device_table(cache)[cache_row, 1]))
    assert partial not in seconds[:2] and seconds[2] == partial and len(set(seconds)) == 3


def test_pages_of_released_sequences_are_reused() -> None:
    cache = new_cache(6, max_length=24)
    for _ in range(5):
        prompt = cache.allocate(20, 1, 4)
        (cache_row,) = cache.fork(prompt, 1)
        cache.release([prompt])
        assert not cache.can_hold(1, 1, 1)
        add_token(cache, [cache_row])
        cache.release([cache_row])
    assert cache.free_pages == 6


def test_stores_have_each_models_shape_and_keep_the_budget() -> None:
    budget = 12_345
    sized = dict(cache_rows=99, max_length=20, device="cpu", page_size=4)
    cache = SharedKVCache(SHAPES, memory_bytes=budget, **sized)
    pages = cache_size(cache)
    first, second = cache.stores
    assert first.keys.shape == first.values.shape == (2, pages, 1, 4, 2) and first.keys.dtype == torch.float64
    assert second.keys.shape == second.values.shape == (1, pages, 2, 4, 3) and second.keys.dtype == torch.float32
    stored = first.nbytes + second.nbytes
    assert budget - cache.page_bytes < stored == pages * 4 * (64 + 48) <= budget
    assert cache.page_table.dtype == torch.int32 and cache.page_table.shape == (99, 5)
    assert cache_size(SharedKVCache(SHAPES[:1], **sized)) == 99 * 5, (
        "by default every cache row can hold max_length tokens"
    )
    assert cache_size(SharedKVCache(SHAPES[:1], memory_bytes=10**9, **sized)) == 99 * 5, (
        "more memory could never be used"
    )


def test_errors_have_one_line() -> None:
    need = 3 * 16 * (64 + 48)
    with pytest.raises(
        InputError, match=rf"^a sequence of 40 tokens needs {need:,} bytes of cache, but the budget is {need - 1:,}; l"
    ):
        SharedKVCache(SHAPES, cache_rows=4, max_length=40, device="cpu", memory_bytes=need - 1)
    cache = new_cache(6, cache_rows=3)
    assert_refused(cache, InputError, cache.allocate, 20, 1, 5)  # longer than max_length
    assert_refused(cache, InputError, cache.allocate, 1, 3, 1)  # more sequences than cache rows
    assert_refused(cache, InputError, cache.allocate, 20, 2, 4)  # holds: 5 + 2 pages, of 6
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        assert_refused(cache, ValueError, cache.can_hold, *sizes)
    assert_refused(cache, ValueError, cache.fork, 0, 1)
    assert_refused(cache, ValueError, cache.release, [0])
