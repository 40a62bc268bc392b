"""Splits by file: all documents of a file are in the same split."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdgen.cli import main
from cdgen.errors import InputError
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.by_file import File, held_out
from cdgen.prepare.sources import Source
from tests.helpers.prepared import contents, fish, jsonl, manifest_of, split_of, texts


def books(folder: Path, count: int, start: int = 0) -> str:
    """Write files of 5 to 34 short chapters, 585 in all if there are 30 files; return the pattern of their paths."""
    folder.mkdir()
    for number in range(count):
        jsonl(folder / f"{number:02}.jsonl", fish(5 + 7 * number % 30, start + 100 * number))
    return str(folder / "*.jsonl")


def files_of(out: Path) -> dict[str, set[str]]:
    """Return the files whose documents are in each split; assert that no file is in two."""
    found = {
        path.stem: {id.rpartition(":")[0] for id in pq.read_table(path)["id"].to_pylist()}
        for path in out.glob("*.parquet")
    }
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    return found


def by_file(sources: Any, out: Path, **changes: Any) -> dict[str, set[str]]:
    """Prepare a corpus that is split by file; return the files of each split."""
    options: dict[str, Any] = {"test": 0.1, "seeds": 0.15, "split_by": "file"} | changes
    prepare_corpus(sources, out, **options)
    return files_of(out)


def words(out: Path, split: str) -> list[int]:
    """Return the number of words of each file in a split."""
    table = pq.read_table(out / f"{split}.parquet").to_pylist()
    names = {row["id"].rpartition(":")[0] for row in table}
    return [sum(len(row["text"].split()) for row in table if row["id"].startswith(f"{name}:")) for name in names]


def test_splits_hold_whole_files_and_no_more_of_them_than_needed(tmp_path: Path) -> None:
    pattern = books(tmp_path / "books", 30)
    found = by_file(Source("a", pattern), tmp_path / "out")
    sizes = {split: words(tmp_path / "out", split) for split in found}
    total = sum(map(sum, sizes.values()))
    assert sum(map(len, sizes.values())) == 30 and len(split_of(tmp_path / "out")) == 585
    for split, share in (("test", 0.1), ("seeds", 0.15)):
        assert sum(sizes[split]) >= share * total > sum(sizes[split]) - max(sizes[split])
    again = [by_file(Source("a", pattern), tmp_path / f"seed{seed}", seed=seed) for seed in range(8)]
    tested = set().union(*(other["test"] for other in again))
    assert len(tested) > 12, "the seed decides which files are held out"


def test_the_files_of_each_split_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = books(tmp_path / "books", 12)
    found = by_file(Source("a", pattern), tmp_path / "out")
    inputs = manifest_of(tmp_path / "out")["sources"][0]["inputs"]
    named = {split: {f"a/{one['label']}" for one in inputs if one["split"] == split} for split in found}
    assert named == found
    argv = ["prepare", f"a={pattern}", "--split-by", "file", "--test", "0.1", "--seeds", "0.15"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert (
        f"test: {len(texts(tmp_path / 'out', 'test'))} documents from {len(found['test'])} file"
        in capsys.readouterr().out
    )
    plain = prepare_corpus(Source("a", pattern), tmp_path / "plain")
    assert plain.train.files is None and "split" not in manifest_of(tmp_path / "plain")["sources"][0]["inputs"][0]


def test_a_larger_share_moves_no_file_of_the_other_split(tmp_path: Path) -> None:
    source = Source("a", books(tmp_path / "books", 30))
    small = by_file(source, tmp_path / "small", test=0.1)
    more = by_file(source, tmp_path / "more", test=0.4)
    none = by_file(source, tmp_path / "none", test=0.4, seeds=0)
    assert small["test"] < more["test"] == none["test"] and small["seeds"] == more["seeds"]
    assert set(none) == {"train", "test"}


def test_other_sources_budgets_and_names_of_files_move_no_file(tmp_path: Path) -> None:
    pattern = books(tmp_path / "books", 20)
    alone = by_file(Source("m", pattern), tmp_path / "alone")
    budget = by_file(Source("m", pattern, words=900), tmp_path / "budget")
    shared = Source("a", [jsonl(tmp_path / f"{start}.jsonl", fish(3, start)) for start in (100, 200, 300)])
    others = Source("z", books(tmp_path / "more", 9, 5000))
    among = by_file([shared, others, Source("m", pattern)], tmp_path / "among")
    for split, files in alone.items():
        assert budget[split] <= files
        assert {file for file in among[split] if file.startswith("m/")} == files
        assert {file[0] for file in among[split]} == {"a", "m", "z"}, "every source is split on its own"
    assert len(split_of(tmp_path / "budget")) < len(split_of(tmp_path / "alone"))
    for number, path in enumerate(sorted((tmp_path / "books").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed{number}.jsonl"))
    by_file(Source("m", pattern), tmp_path / "renamed")
    assert split_of(tmp_path / "renamed") == split_of(tmp_path / "alone")


def test_equal_texts_of_two_files_are_kept_once(tmp_path: Path) -> None:
    """The first is kept, whatever its split; a file of repeated texts counts for nothing."""
    pattern = books(tmp_path / "books", 12)
    for number in range(12):
        with open(tmp_path / "books" / f"{number:02}.jsonl", "a") as file:
            file.write('{"text": "The end of the book."}\n')
    jsonl(tmp_path / "books" / "copy.jsonl", copied := fish(5))
    found = by_file(Source("a", pattern), tmp_path / "out")
    assert sum(map(len, found.values())) == 12 and "a/copy.jsonl" not in set().union(*found.values())
    kept = [row for split in found for row in pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()]
    assert [row["id"] for row in kept if row["text"].startswith("The end")] == ["a/00.jsonl:6"]
    assert manifest_of(tmp_path / "out")["counts"]["duplicates"] == 11 + len(copied)
    assert set(copied) <= set(split_of(tmp_path / "out"))
    few = [tmp_path / "books" / name for name in ("00.jsonl", "01.jsonl", "copy.jsonl")]
    with pytest.raises(InputError, match="source a: has 2 files, of which "):
        by_file(Source("a", few), tmp_path / "few")


@pytest.mark.parametrize(
    "sizes, test, seeds, reason",
    [
        ([9], 0.05, 0, "has 1 file, of which test = 0.05 takes 1 and seeds = 0 takes 0, so that none is left"),
        ([9, 9], 0.05, 0.05, "has 2 files, of which test = 0.05 takes 1 and seeds = 0.05 takes 1, so that none"),
        ([9, 9, 9, 9], 0.3, 0.4, "has 4 files, of which test = 0.3 takes 2 and seeds = 0.4 takes 2, so that none"),
        ([1, 1, 1, 97], 0.01, 0.985, "has 4 files, .* takes 3, so that none is left to train on; give more or smaller"),
    ],
)
def test_too_few_files(sizes: list[int], test: float, seeds: float, reason: str) -> None:
    files = [File(number, bytes([number]), size) for number, size in enumerate(sizes)]
    with pytest.raises(InputError, match=f"source a: {reason}"):
        held_out("a", files, test, seeds)


def test_files_are_held_out_from_both_ends_of_their_order() -> None:
    files = [File(7, b"d", 10), File(8, b"a", 10), File(9, b"c", 10), File(5, b"b", 10)]
    assert held_out("a", files, 0.25, 0.26) == ([8], [7, 9])
    assert held_out("a", files, 0.26, 0) == ([8, 5], [])
    assert held_out("a", [], 0.5, 0.1) == ([], []), "a source without text is reported later"


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern, out = books(tmp_path / "books", 2), tmp_path / "out"
    argv = ["prepare", f"a={pattern}", "--out", str(out)]
    assert main([*argv, "--split-by", "file"]) == 2
    assert capsys.readouterr().err.endswith("smaller shares or another seed, or use --split-by document\n")
    assert main([*argv, "--split-by", "book"]) == 2 and "invalid choice: 'book'" in capsys.readouterr().err
    assert not out.exists()
    books(tmp_path / "more", 20)
    (tmp_path / "more").rename(tmp_path / "books" / "more")
    argv[1] = f"a={tmp_path}/books/more/*.jsonl"
    assert main([*argv, "--quiet"]) == 0
    assert main([*argv, "--split-by", "file"]) == 2
    assert "(split_by = document, but now split_by = file); choose" in capsys.readouterr().err
    assert main([*argv, "--split-by", "file", "--overwrite", "--quiet"]) == 0
    files_of(out)
    assert main(argv) == 2 and "(split_by = file, but now split_by = document)" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"split_by = 'line': use document or file"):
        prepare_corpus(Source("a", pattern), out, split_by="line")


def test_card_and_manifest(tmp_path: Path) -> None:
    """They state the unit, except for the default, which leaves corpora of earlier versions as they are."""
    pattern = books(tmp_path / "books", 20)
    by_file(Source("a", pattern), tmp_path / "file")
    prepare_corpus(Source("a", pattern), tmp_path / "document")
    file, document = manifest_of(tmp_path / "file"), manifest_of(tmp_path / "document")
    assert file["settings"] == {"test": 0.1, "seeds": 0.15, "seed": 42, "split_by": "file"}
    assert document["settings"] == {"test": 0.05, "seeds": 0.05, "seed": 42}
    assert document["fingerprint"] == "sha256:58e81536ab689539018bd409c6b2edec00e39f8d58d719df1a70cc19073836d3"
    card = (tmp_path / "file" / "README.md").read_text()
    assert re.search(r"\n- all documents of a file are in the same split, which .*: test = 0\.1, seeds = 0\.15", card)
    assert "\n- the hash of a text decides its split" in (tmp_path / "document" / "README.md").read_text()
    before = contents(tmp_path / "file")
    assert (
        not prepare_corpus(Source("a", pattern), tmp_path / "file", test=0.1, seeds=0.15, split_by="file").written
        and contents(tmp_path / "file") == before
    )
    assert len(texts(tmp_path / "file", "test")) == file["counts"]["test"]["documents"]
