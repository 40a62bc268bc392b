"""generate_corpus: seeds of every kind, what it returns, resuming, and the same corpus as on the command line."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdgen import ContrastiveLM, GeneratedCorpus, InputError, SamplingParams, Seed, generate_corpus
from cdgen.cli import main
from tests.helpers.corpora import bytes_of
from tests.helpers.tiny_models import SENTENCES

PARAMS = SamplingParams(n=2, max_tokens=4, seed=5, ignore_eos=True)
TEXTS = ["The fox", "Once upon a time", "A cat lived"]


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=6)


def rows(corpus: GeneratedCorpus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(corpus.data).to_pylist()
    return found


def test_what_is_returned(lm: ContrastiveLM, tmp_path: Path) -> None:
    corpus = generate_corpus(lm, TEXTS, tmp_path / "out", PARAMS, shard_size=4)
    table = rows(corpus)
    tokens = sum(len(row["token_ids"]) for row in table)
    assert corpus == GeneratedCorpus(
        folder=tmp_path / "out",
        data=tmp_path / "out" / "data",
        seeds=3,
        documents=6,
        tokens=tokens,
        new_tokens=24,
        errors=0,
        shards=2,
        written=2,
    )
    assert "documents=6, tokens=" in repr(corpus)
    with pytest.raises(FrozenInstanceError):
        corpus.seeds = 5  # type: ignore[misc]
    assert [(row["seed_id"], row["continuation"]) for row in table] == [
        (str(seed), index) for seed in range(3) for index in range(2)
    ]
    assert table[2]["text"].startswith(TEXTS[1])
    before = bytes_of(tmp_path / "out")
    assert generate_corpus(lm, TEXTS, tmp_path / "out", PARAMS, shard_size=4) == replace(corpus, written=0)
    assert bytes_of(tmp_path / "out") == before
    with pytest.raises(InputError, match="max_tokens"):
        generate_corpus(lm, TEXTS, tmp_path / "out", replace(PARAMS, max_tokens=5), shard_size=4)


def test_seeds_of_every_kind_give_the_same_corpus(lm: ContrastiveLM, tmp_path: Path) -> None:
    """The same ids and tokens, so the same noise. Strings have no ids of their own, and get the texts of `generate`."""
    pairs = [(str(index), text) for index, text in enumerate(TEXTS)]
    tokens = [lm.prompt_ids(text, "") for text in TEXTS]
    kinds: dict[str, Any] = {
        "texts": TEXTS,
        "generator": (text for text in TEXTS),
        "unnamed": [Seed(str(index), ids, named=False) for index, ids in enumerate(tokens)],
        "pairs": pairs,
        "seeds": [Seed(str(index), ids) for index, ids in enumerate(tokens)],
        "mixed": [Seed("0", tokens[0]), *pairs[1:]],
    }
    found = {name: rows(generate_corpus(lm, seeds, tmp_path / name, PARAMS)) for name, seeds in kinds.items()}
    assert found["generator"] == found["unnamed"] == found["texts"]
    assert found["seeds"] == found["mixed"] == found["pairs"]
    drawn = [output.token_ids for request in lm.generate(TEXTS, PARAMS) for output in request.outputs]
    assert [row["token_ids"][row["prompt_length"] :] for row in found["texts"]] == drawn
    assert [row["token_ids"] for row in found["pairs"]] != [row["token_ids"] for row in found["texts"]]
    with pytest.raises(InputError, match="other seeds: named = 3, but now named = 0"):
        generate_corpus(lm, TEXTS, tmp_path / "pairs", PARAMS)
    cut = generate_corpus(lm, kinds["mixed"], tmp_path / "cut", PARAMS, prefix_tokens=2)
    assert {row["prompt_length"] for row in rows(cut)} == {2}


def test_files_give_the_corpus_of_the_command(
    lm: ContrastiveLM, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, the manifest included."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    models = ["--good", str(folders["good"]), "--bad", str(folders["bad"]), "--batch-size", "6"]
    sampling = ["--n", "2", "--max-tokens", "4", "--seed", "5", "--ignore-eos", "--quiet"]
    seeds = ["--seeds", "book.txt", "--chunk-words", "40", "--split-documents"]
    assert main(["generate", *models, *seeds, *sampling, "--out", "command"]) == 0
    for name, given in (("one", "book.txt"), ("several", [Path("book.txt")])):
        corpus = generate_corpus(lm, given, name, PARAMS, chunk_words=40, split_documents=True)
        assert corpus.seeds == 4 and {row["prompt_length"] for row in rows(corpus)} == {20}
        assert bytes_of(Path(name)) == bytes_of(Path("command"))


def test_the_place_of_a_seed_changes_no_text(lm: ContrastiveLM, tmp_path: Path) -> None:
    """Other lines, another order, another file, and a file cut in two: names change, texts do not."""
    lines = [*TEXTS, TEXTS[0], *SENTENCES]

    def drawn(*files: list[str]) -> list[tuple[str, ...]]:
        paths = [tmp_path / f"{number}-{len(files)}-{len(part)}.txt" for number, part in enumerate(files)]
        for path, part in zip(paths, files, strict=True):
            path.write_text("\n".join(part), encoding="utf-8")
        found = rows(generate_corpus(lm, paths, tmp_path / paths[0].stem, PARAMS, resume=False))
        texts = [row["text"] for row in found]
        return sorted(tuple(texts[at : at + PARAMS.n]) for at in range(0, len(texts), PARAMS.n))

    expected = drawn(lines)
    assert len(set(expected)) == len(lines)
    assert drawn(lines[::-1]) == drawn(lines[:3], lines[3:]) == expected
    assert set(drawn(lines[2:])) < set(expected)


@pytest.mark.parametrize(
    ("seeds", "reason"),
    [
        ([], "seeds: there are none"),
        (5, "seeds = 5: give a path, or a list"),
        ({"tale": "The fox"}, "seeds = {.*: give a path, or a list"),
        ({"The fox"}, "seeds = {.*: give a path, or a list"),
        ([5], "seeds: item 0 is 5; give a string"),
        ([("a", 5)], r"seeds: item 0 is \('a', 5\)"),
        (["The fox", "prompts.txt"], r"'prompts.txt' is a file; to read it, give seeds=Path\('prompts.txt'\)"),
        (["hub:own/name:train"], "is a file"),
        ("nowhere.txt", "nowhere.txt: no such seeds file"),
        ([("a", "The"), ("a", "fox")], "seed a: another seed has the same id"),
    ],
)
def test_mistakes_leave_nothing(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("The fox\n")
    with pytest.raises(InputError, match=reason):
        generate_corpus(lm, seeds, "out", PARAMS)
    assert not Path("out").exists()


def test_options_are_checked(lm: ContrastiveLM, tmp_path: Path) -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"chunk_words": 5}, {"prefix_tokens": 0}, {"shard_size": 0}, {"format": "csv"}, {"parse_special": 1},
        {"resume": "no"}, {"params": {"n": 2}}, {"progress": 5},
    )  # fmt: skip
    for options in wrong:
        with pytest.raises(InputError, match=next(iter(options))):
            generate_corpus(lm, TEXTS, tmp_path / "out", **{"params": PARAMS} | options)
    with pytest.raises(InputError, match=r"^lm = 'good': must be a ContrastiveLM"):
        generate_corpus("good", TEXTS, tmp_path / "out", PARAMS)  # type: ignore[arg-type]


def test_progress_is_shown(lm: ContrastiveLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_corpus(lm, TEXTS, tmp_path / "quiet", PARAMS)
    assert capsys.readouterr().err == ""
    generate_corpus(lm, TEXTS, tmp_path / "shown", PARAMS, progress=True)
    assert "6 documents" in capsys.readouterr().err
