"""The shared cache against lists of tokens: every text right in both models, no page lost, every promise kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgen.engine.shared_cache import CacheShape, SharedKVCache
from cdgen.errors import InputError
from cdgen.models.llama import slot_mapping

SHAPES = (CacheShape(2, 1, 2, torch.float64), CacheShape(1, 2, 3, torch.float32))  # unlike in all they can be


def new_cache(pages, page_size=4, cache_rows=12, max_length=24, shapes=SHAPES):
    page_bytes = page_size * sum(shape.bytes_per_token for shape in shapes)
    return SharedKVCache(
        shapes,
        cache_rows=cache_rows,
        max_length=max_length,
        device="cpu",
        memory_bytes=pages * page_bytes,
        page_size=page_size,
    )


def entries(tokens, shape):
    """[T, num_layers, num_kv_heads, head_dim]: a number of its own for each token and each entry of the store."""
    size = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
    return torch.tensor(tokens).view(-1, 1, 1, 1) * 8 + torch.arange(np.prod(size)).view(size)


def places(cache, texts, positions):
    """Where tokens at these positions of texts lie, through the page table on the device."""
    found = slot_mapping(
        cache.page_table, *torch.tensor([texts, positions], dtype=torch.long).unbind(), cache.page_size
    )
    assert (found >= 0).all(), "every token has a page"
    return found


def write(cache, places, tokens):
    page, offset = places // cache.page_size, places % cache.page_size
    for shape, keys, values in zip(SHAPES, cache.keys, cache.values, strict=True):
        keys[:, page, :, offset] = entries(tokens, shape).to(shape.dtype)
        values[:, page, :, offset] = -entries(tokens, shape).to(shape.dtype)


def assert_reads(cache, cache_row, tokens):
    """As an attention kernel reads: through the page table on the device."""
    pages = cache.page_table[cache_row, : -(-len(tokens) // cache.page_size)].long()
    for shape, keys, values in zip(SHAPES, cache.keys, cache.values, strict=True):
        for store, sign in ((keys, 1), (values, -1)):
            read = store[:, pages].permute(1, 3, 0, 2, 4).flatten(0, 1)[: len(tokens)]
            assert torch.equal(read, sign * entries(tokens, shape).to(shape.dtype)), f"cache row {cache_row}"


def state(cache):
    """Everything that a refused call must leave as it was."""
    tensors = (*cache.keys, *cache.values, cache.page_table)
    arrays = (cache.lengths, cache._table, cache._limit, cache._owners, cache._free)
    return (
        [x.numpy().tobytes() for x in tensors] + [x.tobytes() for x in arrays],
        cache.free_pages, cache.reserved_pages, list(cache._free_cache_rows), str(cache._prompts),
    )  # fmt: skip


def assert_refused(cache, error, call, *args):
    before = state(cache)
    with pytest.raises(error) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert state(cache) == before


class Model:
    """What the cache should hold: lists of tokens, and a name for each page that must be paid for in the end.

    A page wholly in the prompt is paid for once, any other by each continuation, forked or not.
    """

    def __init__(self, rng, cache):
        self.rng, self.cache = rng, cache
        self.prompts = {}  # slot: dict(name, tokens, limit, unforked)
        self.texts = {}  # slot: dict(prompt: its name, shared: prompt's tokens, tokens, limit, name)
        self.names = 0  # given out so far: tokens, prompts and texts

    def name(self):
        self.names += 1
        return self.names

    def pages_in_the_end(self):
        size, pages = self.cache.page_size, set()

        def continuation(name, prompt, shared, limit):
            pages.update((prompt if (j + 1) * size <= shared else name, j) for j in range(-(-limit // size)))

        for text in self.texts.values():
            continuation(text["name"], text["prompt"], text["shared"], text["limit"])
        for prompt in self.prompts.values():
            for i in range(prompt["unforked"]):
                continuation((prompt["name"], i), prompt["name"], len(prompt["tokens"]), prompt["limit"])
        return len(pages)

    def slots_in_the_end(self):
        return len(self.texts) + sum(1 + prompt["unforked"] for prompt in self.prompts.values())

    def pick(self, among):
        among = sorted(among)
        return among[self.rng.integers(len(among))] if among else None

    def allocate(self):
        length, n, new = (int(self.rng.integers(1, high)) for high in (14, 6, 14))
        size, cache = cache_size(self.cache), self.cache
        full = length // cache.page_size
        pages = full + n * (-(-(length + new) // cache.page_size) - full)
        fits = length + new <= cache.max_length and self.slots_in_the_end() + 1 + n <= len(cache.lengths)
        fits = fits and self.pages_in_the_end() + pages <= size
        assert cache.can_hold(length, n, new) == fits
        if not fits:
            return assert_refused(cache, InputError, cache.allocate, length, n, new)
        cache_row = cache.allocate(length, n, new)
        tokens = [self.name() for _ in range(length)]
        write(cache, places(cache, [cache_row] * length, list(range(length))), tokens)
        self.prompts[cache_row] = dict(name=self.name(), tokens=tokens, limit=length + new, unforked=n)

    def reserve(self):
        cache_row = self.pick(cache_row for cache_row, prompt in self.prompts.items() if prompt["unforked"])
        if cache_row is None:
            return
        prompt, n = self.prompts[cache_row], int(self.rng.integers(1, 3))
        prompt["unforked"] += n
        fits = self.pages_in_the_end() <= cache_size(self.cache) and self.slots_in_the_end() <= len(self.cache.lengths)
        before = state(self.cache)
        assert self.cache.reserve(cache_row, n) == fits
        if not fits:
            prompt["unforked"] -= n
            assert state(self.cache) == before

    def fork(self):
        cache_row = self.pick(self.prompts)
        if cache_row is None:
            return
        prompt = self.prompts[cache_row]
        if not prompt["unforked"]:
            assert_refused(self.cache, ValueError, self.cache.reserve, cache_row, 1)
            return assert_refused(self.cache, ValueError, self.cache.fork, cache_row, 1)
        n = int(self.rng.integers(1, prompt["unforked"] + 1))
        for started in self.cache.fork(cache_row, n):
            assert started not in self.texts and started not in self.prompts
            self.texts[started] = dict(
                name=self.name(), prompt=prompt["name"], shared=len(prompt["tokens"]),
                tokens=list(prompt["tokens"]), limit=prompt["limit"],
            )  # fmt: skip
        prompt["unforked"] -= n

    def extend(self, most=99):
        grow = [cache_row for cache_row, text in self.texts.items() if len(text["tokens"]) < text["limit"]]
        grow = self.rng.permutation(grow)[: self.rng.integers(1, most)].astype(int).tolist()
        tokens = [self.name() for _ in grow]
        self.cache.extend(grow)
        newest = [len(self.texts[cache_row]["tokens"]) for cache_row in grow]
        write(self.cache, places(self.cache, grow, newest), tokens)
        for cache_row, token in zip(grow, tokens, strict=True):
            self.texts[cache_row]["tokens"].append(token)

    def extend_illegally(self):
        full = [cache_row for cache_row, text in self.texts.items() if len(text["tokens"]) == text["limit"]]
        may = [cache_row for cache_row in self.texts if cache_row not in full]
        bad = self.pick(set(range(len(self.cache.lengths))) - set(may))
        if bad is not None:
            assert_refused(self.cache, ValueError, self.cache.extend, [*may, bad])

    def release(self):
        cache_row = self.pick([*self.prompts, *self.texts])
        if cache_row is not None:
            self.cache.release(cache_row)
            (self.prompts if cache_row in self.prompts else self.texts).pop(cache_row)
            assert_refused(self.cache, ValueError, self.cache.release, cache_row)

    def check_books(self):
        """What is held, owned, free and promised adds up."""
        cache, table = self.cache, self.cache.page_table.numpy()
        held = {cache_row: text["tokens"] for cache_row, text in self.texts.items()}
        held |= {cache_row: prompt["tokens"] for cache_row, prompt in self.prompts.items() if prompt["unforked"]}
        lengths = np.zeros(len(cache.lengths), dtype=int)
        lengths[list(held)] = [len(tokens) for tokens in held.values()]
        assert (cache.lengths == lengths).all()
        assert ((table >= 0) == (np.arange(table.shape[1]) * cache.page_size < lengths[:, None])).all()
        owners = np.bincount(table[table >= 0], minlength=cache_size(cache))
        assert (cache._owners[:-1] == owners).all() and cache._owners[-1] == 0
        assert sorted(cache._free[: cache.free_pages]) == np.flatnonzero(owners == 0).tolist()
        for cache_row, text in self.texts.items():
            if len(text["tokens"]) > text["shared"]:  # it has written to its newest page
                assert owners[table[cache_row, (len(text["tokens"]) - 1) // cache.page_size]] == 1
        assert cache.free_pages - cache.reserved_pages == cache_size(cache) - self.pages_in_the_end()
        assert cache.reserved_pages >= 0
        return held

    def check(self):
        for cache_row, tokens in self.check_books().items():
            assert_reads(self.cache, cache_row, tokens)


def cache_size(cache):
    return cache.keys[0].shape[1]


@pytest.mark.parametrize("seed", range(50))
def test_random_operations_against_lists_of_tokens(seed):
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
    # everything promised is asked for: this takes all promised pages and no other
    unpromised = cache.free_pages - cache.reserved_pages
    while any(prompt["unforked"] for prompt in model.prompts.values()):
        model.fork()
        model.extend(3)
    while any(len(text["tokens"]) < text["limit"] for text in model.texts.values()):
        model.extend()
    model.check()
    assert cache.reserved_pages == 0 and cache.free_pages == unpromised
    while model.texts or model.prompts:
        model.release()
    assert cache.free_pages == cache_size(cache) and (cache.page_table == -1).all()
    assert sorted(cache._free_cache_rows) == list(range(len(cache.lengths)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 12), st.integers(1, 5))
def test_a_budget_that_is_exactly_full_is_enough_and_a_page_less_is_not(length, n, new, page_size):
    full = length // page_size
    pages = full + n * (-(-(length + new) // page_size) - full)
    sized = dict(page_size=page_size, cache_rows=n + 1, max_length=length + new)
    cache = new_cache(pages, **sized)
    assert cache_size(cache) == pages and cache.can_hold(length, n, new) and not cache.can_hold(length, n + 1, new)
    prompt = cache.allocate(length, n, new)
    texts = cache.fork(prompt, n)
    for _ in range(new):
        cache.extend(texts)
    assert cache.free_pages == cache.reserved_pages == 0
    for cache_row in (prompt, *texts):
        cache.release(cache_row)
    assert cache.free_pages == pages
    if n > 1:  # else a text of max_length does not fit, and there is no such cache
        assert not new_cache(pages - 1, **sized).can_hold(length, n, new)


def test_continuations_share_the_prompt_and_the_last_writes_in_place():
    cache = new_cache(20, page_size=4)
    prompt = cache.allocate(6, 3, 10)
    first, partial = cache.page_table[prompt, :2].tolist()
    texts = cache.fork(prompt, 3)
    assert cache.page_table[texts, :2].tolist() == [[first, partial]] * 3
    seconds = []
    for cache_row in texts:
        cache.extend([cache_row])
        assert cache.page_table[cache_row, 0] == first
        seconds.append(int(cache.page_table[cache_row, 1]))
    assert partial not in seconds[:2] and seconds[2] == partial and len(set(seconds)) == 3


def test_pages_of_released_texts_are_used_again():
    cache = new_cache(6, max_length=24)
    for _ in range(5):
        prompt = cache.allocate(20, 1, 4)
        (text,) = cache.fork(prompt, 1)
        cache.release(prompt)
        assert not cache.can_hold(1, 1, 1)
        cache.extend([text])
        cache.release(text)
    assert cache.free_pages == 6


def test_stores_have_each_models_shape_and_keep_the_budget():
    budget = 12_345
    sized = dict(cache_rows=99, max_length=20, device="cpu", page_size=4)
    cache = SharedKVCache(SHAPES, memory_bytes=budget, **sized)
    pages = cache_size(cache)
    assert cache.keys[0].shape == cache.values[0].shape == (2, pages, 1, 4, 2) and cache.keys[0].dtype == torch.float64
    assert cache.keys[1].shape == cache.values[1].shape == (1, pages, 2, 4, 3) and cache.keys[1].dtype == torch.float32
    stored = sum(store.nbytes for store in (*cache.keys, *cache.values))
    assert budget - cache.page_bytes < stored == pages * 4 * (64 + 48) <= budget
    assert cache.page_table.dtype == torch.int32 and cache.page_table.shape == (99, 5)
    assert cache_size(SharedKVCache(SHAPES[:1], **sized)) == 99 * 5, "by default every slot holds max_length"
    assert cache_size(SharedKVCache(SHAPES[:1], memory_bytes=10**9, **sized)) == 99 * 5, "more could never be used"


def test_what_cannot_be_is_said_in_one_line():
    need = 3 * 16 * (64 + 48)
    with pytest.raises(
        InputError, match=rf"^a text of 40 tokens needs {need:,} bytes of cache, but the budget is {need - 1:,}; l"
    ):
        SharedKVCache(SHAPES, cache_rows=4, max_length=40, device="cpu", memory_bytes=need - 1)
    cache = new_cache(6, cache_rows=3)
    assert_refused(cache, InputError, cache.allocate, 20, 1, 5)  # longer than max_length
    assert_refused(cache, InputError, cache.allocate, 1, 3, 1)  # more texts than slots
    assert_refused(cache, InputError, cache.allocate, 20, 2, 4)  # holds: 5 + 2 pages, of 6
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        assert_refused(cache, ValueError, cache.can_hold, *sizes)
    assert_refused(cache, ValueError, cache.fork, 0, 1)
    assert_refused(cache, ValueError, cache.release, 0)
