"""Statistics of corpora: every figure equals a naive computation, whatever the sizes of blocks and parts."""

import json
import math
import random
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdgen.corpus.find import find
from cdgen.errors import CorpusError, InputError
from cdgen.evaluation.corpus_stats import diversity, words
from cdgen.evaluation.corpus_stats import sorted_parts as sorted_parts
from cdgen.evaluation.corpus_stats.corpus_stats import QUANTILES, corpus_stats
from cdgen.evaluation.corpus_stats.overlap import longest_chain
from cdgen.evaluation.corpus_stats.sorted_parts import SortedParts
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.sources import Source
from tests.helpers.prepared import jsonl
from tests.helpers.prepared import texts as split_texts

SPACES = [" ", " ", "\n", "  ", "\t", "\u3000", "\u00a0", "\x1c"]


def random_texts(count: int, seed: int, vocabulary: int = 12, longest: int = 400) -> list[str]:
    """Return texts of few words, so that n-grams repeat, with odd whitespace and letters of several scripts."""
    draw = random.Random(seed)
    known = [f"{letter}{number}" for number in range(vocabulary // 2) for letter in ("þú", "語")]
    found = []
    for _ in range(count):
        length = draw.choice([0, 1, 3, 5, 30, longest])
        text = "".join(draw.choice(known) + draw.choice(SPACES) for _ in range(length))
        found.append(draw.choice(["", " ", "\n"]) + text)
    return found


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    found = text.split()
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]


def all_grams(texts: Iterable[str], size: int) -> list[tuple[str, ...]]:
    return [gram for text in texts for gram in grams(text, size)]


def shares(texts: list[str]) -> dict[int, float]:
    return {size: len({*all_grams(texts, size)}) / len(all_grams(texts, size)) for size in (1, 2, 3, 4)}


def mean_repetition(texts: Iterable[str]) -> float:
    found = [1 - len({*grams(text, 4)}) / len(grams(text, 4)) for text in texts if grams(text, 4)]
    return sum(found) / len(found)


def windows(texts: Iterable[str]) -> list[str]:
    found = []
    for text in texts:
        split = text.split()
        found += [" ".join(split[at : at + 128]) for at in range(0, len(split) - 127, 128)]
    return found


def longest_span(texts: Iterable[str], known: set[tuple[str, ...]], size: int) -> int:
    longest = 0
    for text in texts:
        chain = 0
        for gram in grams(text, size):
            chain = chain + 1 if gram in known else 0
            longest = max(longest, chain and chain + size - 1)
    return longest


@pytest.fixture(params=["one block", "many blocks"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also use blocks of few words, and partitions of few keys."""
    if request.param == "many blocks":
        monkeypatch.setattr(words, "_BLOCK", 3000)
        monkeypatch.setattr(sorted_parts, "_AT_ONCE", 500)


@pytest.mark.usefixtures("_sizes")
def test_every_figure_equals_a_naive_computation(tmp_path: Path) -> None:
    texts = random_texts(60, 0)
    training = [
        *random_texts(5, 1),
        " ".join(texts[next(at for at in range(60) if len(texts[at]) > 500)].split()[7:60]),
    ]
    found, smaller = corpus_stats(
        [jsonl(tmp_path / "a.jsonl", texts), jsonl(tmp_path / "b.jsonl", texts[:9])],
        against=jsonl(tmp_path / "t.jsonl", training),
    )
    blank = [text for text in texts if not text.strip()]
    texts = [text for text in texts if text not in blank]  # training skips them, too
    lengths = [len(text.split()) for text in texts]
    assert (found.documents, found.words) == (60 - len(blank), sum(lengths)) and blank
    assert (found.characters, found.bytes) == (sum(map(len, texts)), sum(len(text.encode()) for text in texts))
    assert found.mean_length == pytest.approx(np.mean(lengths))
    quantiles = np.quantile(lengths, QUANTILES, method="inverted_cdf")
    assert list(found.length_quantiles.values()) == quantiles.tolist()
    assert found.whole.distinct == pytest.approx(shares(texts))
    assert found.whole.diversity == pytest.approx(math.prod(list(shares(texts).values())[1:]))
    assert found.repetition == pytest.approx(mean_repetition(texts))
    assert found.window_repetition == pytest.approx(mean_repetition(windows(texts)))
    assert found.overlap is not None
    for size in (8, 13):
        known = {*all_grams(training, size)}
        copied = [gram in known for gram in all_grams(texts, size)]
        assert 0 < sum(copied) < len(copied)
        assert found.overlap.copied[size] == pytest.approx(sum(copied) / len(copied))
    assert found.overlap.longest_span == longest_span(texts, {*all_grams(training, 13)}, 13) >= 53
    assert smaller.equal_size == smaller.whole
    assert found.equal_size.words == smaller.words
    assert found.contrast is found.end_of_text is None


def test_words_are_those_of_python() -> None:
    """Whitespace that ends a text is found whatever is in memory behind it."""
    for seed in range(300):
        texts = random_texts(4, seed, longest=60)
        [block] = words.blocks(words.Part(number, text) for number, text in enumerate(texts))
        assert block.counts.tolist() == [len(text.split()) for text in texts]
        expected = [blake2b(word.encode(), digest_size=8).digest() for text in texts for word in text.split()]
        assert block.words.astype("<u8").tobytes() == b"".join(expected)


@pytest.mark.usefixtures("_sizes")
def test_a_sample_of_equal_size_has_the_stretches_of_the_first_buckets(tmp_path: Path) -> None:
    texts = [*random_texts(60, 2, vocabulary=60), " ".join(random_texts(60, 7, vocabulary=60))]  # one is long
    path = jsonl(tmp_path / "a.jsonl", texts)
    texts = [text for text in texts if text.strip()]  # blank ones are not counted
    [found] = corpus_stats([path], seed=5)
    tokens = [(document, at) for document, text in enumerate(texts) for at in range(len(text.split()))]
    buckets = diversity.mixed(np.array([(document << 32) + at // 100 for document, at in tokens]), 5) >> np.uint64(48)
    limit = sorted({*buckets.tolist()})[20]
    drawn = {token for token, bucket in zip(tokens, buckets.tolist(), strict=True) if bucket <= limit}
    assert 0 < len(drawn) < found.words
    (tmp_path / "b.txt").write_text("b " * len(drawn))  # the smallest corpus, so its size is that of the samples
    found, _ = corpus_stats([path, tmp_path / "b.txt"], seed=5)
    assert found.equal_size.words == len(drawn)
    for size in (1, 2, 3, 4):
        sampled = [
            gram
            for document, text in enumerate(texts)
            for at, gram in enumerate(grams(text, size), size - 1)
            if (document, at) in drawn
        ]
        assert found.equal_size.distinct[size] == pytest.approx(len({*sampled}) / len(sampled))


@pytest.mark.usefixtures("_sizes")
def test_a_text_file_is_one_document_that_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\r\n".join(random_texts(30, 3)), newline="", encoding="utf-8")
    text = path.read_text(encoding="utf-8")  # with the ends of lines of a text
    copied = text.split()[5:-5]
    [found] = corpus_stats([path], against=jsonl(tmp_path / "t.jsonl", [" ".join(copied)]))
    assert found.overlap is not None and found.overlap.longest_span == len(copied)
    assert found.repetition == pytest.approx(mean_repetition(part.text for part in words.parts(find(path))))
    assert (found.documents, found.words, found.characters) == (1, len(text.split()), len(text))
    assert found.whole.distinct == pytest.approx(shares([text]))
    assert found.length_quantiles[0.5] == found.mean_length == found.words


def test_a_word_longer_than_a_block_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_BLOCK", 100)
    (tmp_path / "a.txt").write_text("a" * 250)
    assert corpus_stats([tmp_path / "a.txt"])[0].words == 3


def test_documents_are_apart(tmp_path: Path) -> None:
    """N-grams and copied spans do not extend over two documents."""
    half = " ".join(f"w{at}" for at in range(10))
    path = jsonl(tmp_path / "a.jsonl", [half, half, half])
    [found] = corpus_stats([path], against=jsonl(tmp_path / "t.jsonl", [f"{half} {half}"]))
    assert found.overlap is not None
    assert (found.overlap.copied, found.overlap.longest_span) == ({8: 1.0, 13: None}, 10)
    assert found.repetition == 0.0
    assert found.whole.distinct[2] == 9 / 27


def test_a_corpus_is_not_compared_with_itself(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", random_texts(20, 4))
    assert corpus_stats([path], against=path)[0].overlap is None


def test_the_train_split_of_a_prepared_corpus_is_measured(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"text {at} of many words" for at in range(200)])
    prepare_corpus([Source("a", source)], tmp_path / "corpus", test=0.2, seeds=0.2)
    [found] = corpus_stats([tmp_path / "corpus"])
    assert found.documents == len(split_texts(tmp_path / "corpus", "train")) < 200


def test_texts_without_n_grams(tmp_path: Path) -> None:
    [found] = corpus_stats(
        [jsonl(tmp_path / "a.jsonl", ["one", "", "two words"])], against=jsonl(tmp_path / "t.jsonl", ["x"])
    )
    assert found.whole.distinct == {1: 1.0, 2: 1.0, 3: None, 4: None}
    assert (found.whole.diversity, found.repetition, found.window_repetition) == (None, None, None)
    assert found.overlap is not None and found.overlap.copied == {8: None, 13: None}


@pytest.mark.parametrize("bits", ["", "0", "1", "111", "0110111", "1" * 40, "0" * 9 + "1" * 20 + "0" * 30 + "1" * 19])
def test_the_longest_chain(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdgen.evaluation.corpus_stats.overlap._CHUNK", 2)
    bitmap = np.packbits(np.array([int(bit) for bit in f"{bits}0"], np.uint8))
    assert longest_chain(bitmap) == max(map(len, bits.split("0")))


def test_bad_input(tmp_path: Path) -> None:
    empty = jsonl(tmp_path / "empty.jsonl", ["", " \n"])
    (tmp_path / "other.jsonl").write_text(json.dumps({"words": "a"}) + "\n")
    texts = jsonl(tmp_path / "a.jsonl", ["a"])
    for arguments, reason in (
        (dict(corpora=[]), "corpora: there are none"),
        (dict(corpora=[texts, empty]), "empty.jsonl: has no text"),
        (dict(corpora=[texts], against=empty), "empty.jsonl: has no text"),
        (dict(corpora=[tmp_path / "absent"]), "absent: no such file or folder"),
        (dict(corpora=[tmp_path / "other.jsonl"]), "line 1 has no field 'text'"),
        (dict(corpora=[texts], sample=0), "sample = 0: must be 1 to"),
        (dict(corpora=[texts], seed=-1), "seed = -1: must be 0 to"),
    ):
        with pytest.raises(InputError, match=reason):
            corpus_stats(**arguments)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_parts, "_RESERVE", 10**30)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = jsonl(tmp_path / "a.jsonl", ["a b c d"])
    with pytest.raises(CorpusError, match=r"no space is left for temporary files; free some, or set TMPDIR"):
        corpus_stats([path])


def test_temporary_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    table = pa.table({"text": random_texts(20, 6)})
    pq.write_table(table, tmp_path / "a.parquet")
    corpus_stats([tmp_path / "a.parquet"], against=jsonl(tmp_path / "t.jsonl", ["a b"]))
    assert not list((tmp_path / "temporary").iterdir())


def test_sorted_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_parts, "_AT_ONCE", 100)
    draw = np.random.default_rng(0)
    parts = [np.sort(draw.integers(0, 2**64, size, np.uint64)) for size in (300, 0, 200)]
    runs = SortedParts(tmp_path / "runs")
    for part in parts:
        runs.add(part)
    for _ in range(2):  # it can be read again
        found = [runs.keys_below(limit) for limit in runs.limits()]
        assert len(found) == 5 and max(map(len, found)) < 150
        assert np.array_equal(np.concatenate(found), np.sort(np.concatenate(parts)))
    runs.close()
    assert not (tmp_path / "runs").exists()
