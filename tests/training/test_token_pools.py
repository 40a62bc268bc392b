"""Token pools: a corpus is tokenised once; a pass contains no token twice and drops less than one block."""

from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgen.errors import CorpusError, InputError
from cdgen.training import tokens
from cdgen.training.tokens import Pool, TokenFile, tokenize
from tests.helpers.tiny_models import make_tokenizer


class Numbers:
    """A corpus in memory, in place of a TokenFile. All its tokens are different numbers."""

    def __init__(self, lengths: list[int], first: int = 0) -> None:
        self.starts = np.cumsum([0, *lengths])
        self.tokens = np.arange(first, first + self.starts[-1])


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=3), st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 3))
def test_a_pass_has_every_token_once_except_for_less_than_a_block(
    corpora: list[list[int]], size: int, seed: int, at: int
) -> None:
    files = [Numbers(lengths, first=1000 * number) for number, lengths in enumerate(corpora)]
    total = sum(map(sum, corpora))
    if total < size:
        with pytest.raises(InputError, match=f"books: has {total} tokens, fewer than one block of {size}"):
            Pool(files, size, seed, "books")
        return
    pool = Pool(files, size, seed, "books")
    assert pool.blocks == total // size
    blocks = [pool.block(at * pool.blocks + number).tolist() for number in range(pool.blocks)]
    joined = list(chain(*blocks))
    assert len(set(joined)) == len(joined) > total - size, "no token twice, and less than one block dropped"
    assert set(joined) <= {token for file in files for token in file.tokens.tolist()}
    starts = set(np.concatenate([file.tokens[file.starts[:-1]] for file in files]).tolist())
    breaks = set(np.concatenate([file.tokens[file.starts[1:] - 1] for file in files]).tolist())
    ends = {block[-1] for block in blocks}
    for block in blocks:
        gaps = [(a, b) for a, b in pairwise(block) if b != a + 1]
        assert all(a in breaks and b in starts for a, b in gaps), "documents are whole within a block"
        assert block[0] in starts or block[0] - 1 in ends, "or go on in another one"


def test_consecutive_blocks_are_parts_of_different_documents() -> None:
    pool = Pool([Numbers([100] * 40)], 10, 3, "")
    documents = [int(pool.block(number)[0]) // 100 for number in range(pool.blocks)]
    assert sum(a == b for a, b in pairwise(documents)) < 30, "9 of 399 would be chance, in order it would be 360"


def test_the_shuffle_depends_on_the_pass_and_the_seed() -> None:
    def read(seed: int, at: int) -> list[list[int]]:
        pool = Pool([Numbers([7] * 40)], 10, seed, "")
        return [pool.block(at * pool.blocks + number).tolist() for number in range(pool.blocks)]

    assert read(1, 0) == read(1, 0) != read(1, 1) and read(2, 0) != read(1, 0)
    for at in (0, 1):
        assert sorted(chain(*read(1, at))) == list(range(280))


def test_a_corpus_is_tokenised_once_into_documents_between_bos_and_eos(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "_GROUP", 15)  # characters, so that there is more than one group
    tokenizer, texts, calls = make_tokenizer(), ["One fish.", "  ", "Two fish, æøå.", "a </s> b"], []

    def read() -> Iterator[str]:
        calls.append(1)
        return iter(texts)

    for _ in range(2):
        file = tokenize(read, tokenizer, tmp_path / "pool", "books")
    assert len(calls) == 1 and file.tokens.dtype == np.uint16
    documents = [file.tokens[a:b].tolist() for a, b in pairwise(file.starts)]
    assert [(d[0], d[-1]) for d in documents] == [(0, 1)] * 3
    assert not {0, 1} & {token for document in documents for token in document[1:-1]}, "a </s> in the text ends nothing"
    assert [tokenizer.decode(d, skip_special_tokens=True) for d in documents] == [texts[0], *texts[2:]]
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_a_pool_that_cannot_be_made_leaves_no_files(tmp_path) -> None:
    with pytest.raises(InputError, match="books: holds no documents"):
        tokenize(lambda: iter(["", " "]), make_tokenizer(), tmp_path / "pool", "books")
    with pytest.raises(InputError, match="books: the tokenizer has no BOS or no EOS token"):
        tokenize(lambda: iter(["a"]), make_tokenizer(bos=False), tmp_path / "pool", "books")

    def failing() -> Iterator[str]:
        yield "One fish."
        raise OSError(28, "No space left on device")

    with pytest.raises(CorpusError, match="pool: cannot be written: No space left on device"):
        tokenize(failing, make_tokenizer(), tmp_path / "pool", "books")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_stops_waiting_leaves_the_files_of_the_one_that_tokenises(tmp_path, monkeypatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    other = tmp_path / ".tmp-pool"
    other.mkdir()
    monkeypatch.setattr(tokens.fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(lambda: iter(["text"]), make_tokenizer(), tmp_path / "pool", "books")
    assert other.exists()


@pytest.mark.parametrize(("file", "cut"), [("tokens.bin", 4), ("tokens.bin", 3), ("starts.bin", 8), ("pool.json", 2)])
def test_a_pool_that_is_cut_short_is_reported(file, cut, tmp_path) -> None:
    tokenize(lambda: iter(["One fish."]), make_tokenizer(), tmp_path / "pool", "books")
    path = tmp_path / "pool" / file
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorpusError, match=r"pool.*; delete (this folder|the folder .*pool) and rerun"):
        TokenFile(tmp_path / "pool")


def test_a_large_vocabulary_takes_four_bytes_per_token(tmp_path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(2**16)])
    file = tokenize(lambda: iter(["word65535 word0"]), tokenizer, tmp_path / "pool", "books")
    assert file.tokens.dtype == np.uint32 and file.tokens.max() == len(tokenizer) - 1


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CorpusError, match=r"cache: tokenised corpora cannot be kept here: .*; set CDGEN_CACHE"):
        tokenize(lambda: ["The sea."], make_tokenizer(), tmp_path / "cache" / "pool", "books")
