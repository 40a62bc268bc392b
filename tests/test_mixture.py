"""Pools and the exact mixture: nothing twice in a pass, nothing lost, every batch exact, however it is shared out."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgen.errors import CorpusError, InputError
from cdgen.training.mixture import Mixture
from cdgen.training.tokens import Pool, TokenFile, tokenize


class Numbers:
    """A corpus in memory whose every token is another number."""

    def __init__(self, lengths, first=0):
        self.starts = np.cumsum([0, *lengths])
        self.tokens = np.arange(first, first + self.starts[-1])


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=3), st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 3))
def test_a_pass_has_every_token_once_but_for_less_than_a_block(corpora, size, seed, at):
    files = [Numbers(lengths, first=1000 * number) for number, lengths in enumerate(corpora)]
    total = sum(map(sum, corpora))
    if total < size:
        with pytest.raises(InputError, match=f"books: has {total} tokens, not one block of {size}"):
            Pool(files, size, seed, "books")
        return
    pool = Pool(files, size, seed, "books")
    assert pool.blocks == total // size
    joined = np.concatenate([pool.block(at * pool.blocks + number) for number in range(pool.blocks)])
    assert len(set(joined.tolist())) == len(joined) > total - size, "no token twice, and less than a block left over"
    everything = {token for file in files for token in file.tokens.tolist()}
    assert set(joined.tolist()) <= everything
    breaks = set(np.concatenate([file.tokens[file.starts[1:] - 1] for file in files]).tolist())
    gaps = [a for a, b in pairwise(joined) if b != a + 1]
    assert set(gaps) <= breaks, "documents are whole: the text goes on but at their ends"


def test_passes_are_shuffled_anew_and_by_the_seed():
    def read(seed, at):
        pool = Pool([Numbers([7] * 40)], 10, seed, "")
        return [pool.block(at * pool.blocks + number).tolist() for number in range(pool.blocks)]

    assert read(1, 0) == read(1, 0) != read(1, 1) and read(2, 0) != read(1, 0)
    for at in (0, 1):
        assert sorted(chain(*read(1, at))) == list(range(280))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_batch_is_exact_and_no_row_comes_twice_in_a_pass(data):
    draw = data.draw
    batch, ratio = (
        draw(st.integers(1, 40)),
        draw(st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]))),
    )
    pools = [Pool([Numbers(draw(LENGTHS), first)], 1, 3, "") for first in (0, 10_000)]
    mixture = Mixture(*pools, batch, ratio, draw(st.integers(0, 2**31)))
    seen = Counter()
    for step in range(draw(st.integers(1, 60))):
        rows = mixture.rows(step)
        assert len(rows) == batch and sum(pool is pools[1] for pool, _ in rows) == int(batch * ratio)
        seen.update((pool is pools[1], number) for pool, number in rows)
    for kind, pool in enumerate(pools):
        numbers = sorted(number for which, number in seen if which == kind)
        assert numbers == list(range(len(numbers))), "one after another, so that passes end only where they end"
        texts = [int(pool.block(number)[0]) for number in numbers]
        for at in range(0, len(texts), pool.blocks):
            assert len(set(texts[at : at + pool.blocks])) == len(texts[at : at + pool.blocks])
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_out_the_same_batches(world):
    pools = [Pool([Numbers([9] * 50, first)], 4, 3, "") for first in (0, 10_000)]
    alone, shared = (Mixture(*pools, 12, 0.3, seed=5) for _ in range(2))
    for step in (0, 1, 97, 40):  # in any order: nothing is remembered
        parts = [shared.blocks(step, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {12 // world}
        both = sorted(np.concatenate(parts).tolist())
        assert both == sorted(alone.blocks(step).tolist())
        assert sum(row[0] >= 10_000 for row in both) == 3
    orders = [[pool is pools[1] for pool, _ in alone.rows(step)] for step in range(5)]
    assert len(set(map(tuple, orders))) > 1, "synthetic rows stand anywhere"


def test_mixtures_that_cannot_be():
    pool = Pool([Numbers([9] * 5)], 4, 3, "")
    with pytest.raises(InputError, match=r"ratio = 1\.5: must be 0 to 1"):
        Mixture(pool, pool, 10, 1.5, 0)
    with pytest.raises(
        InputError, match=r"ratio = 0\.3: 3 rows of every batch are synthetic, but there is no synthetic"
    ):
        Mixture(pool, None, 10, 0.3, 0)
    with pytest.raises(InputError, match="but there is no real corpus"):
        Mixture(None, pool, 10, 0.3, 0)
    assert Mixture(pool, None, 10, 0.05, 0).real_rows == 10  # int(0.5) = 0
    with pytest.raises(InputError, match="4 processes cannot share it out"):
        Mixture(pool, None, 10, 0, 0).blocks(0, 0, 4)


def test_tokenised_once_into_documents_between_bos_and_eos(tmp_path):
    tokenizer, texts, calls = make_tokenizer(), ["One fish.", "  ", "Two fish, æøå."], []

    def read():
        calls.append(1)
        return iter(texts)

    for _ in range(2):
        file = tokenize(read, tokenizer, tmp_path / "pool", "books")
    assert len(calls) == 1 and file.tokens.dtype == np.uint16 and file.vocab_size == len(tokenizer)
    documents = [file.tokens[a:b].tolist() for a, b in pairwise(file.starts)]
    assert [(d[0], d[-1]) for d in documents] == [(0, 1)] * 2
    assert [tokenizer.decode(d, skip_special_tokens=True) for d in documents] == ["One fish.", "Two fish, æøå."]
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_a_pool_that_cannot_be_made_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="books: holds no documents"):
        tokenize(lambda: iter(["", " "]), make_tokenizer(), tmp_path / "pool", "books")
    with pytest.raises(InputError, match="books: the tokenizer has no start or end of text"):
        tokenize(lambda: iter(["a"]), make_tokenizer(bos=False), tmp_path / "pool", "books")

    def failing():
        yield "One fish."
        raise OSError(28, "No space left on device")

    with pytest.raises(CorpusError, match="pool: cannot be written: No space left on device"):
        tokenize(failing, make_tokenizer(), tmp_path / "pool", "books")
    assert list(tmp_path.iterdir()) == []


def test_a_pool_cut_short_is_told(tmp_path):
    tokenize(lambda: iter(["One fish."]), make_tokenizer(), tmp_path / "pool", "books")
    data = (tmp_path / "pool" / "tokens.bin").read_bytes()
    (tmp_path / "pool" / "tokens.bin").write_bytes(data[:-4])
    with pytest.raises(CorpusError, match=r"tokens\.bin has \d+ tokens, not \d+; delete the folder"):
        TokenFile(tmp_path / "pool")
