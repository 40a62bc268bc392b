"""Which documents a report shows, and that their explanations are those of the models that wrote them."""

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus.seeds import read_seeds
from cdgen.corpus.writer import write_corpus
from cdgen.report import documents, explained
from cdgen.report.document_content import Document, Documents
from cdgen.report.documents import choose
from cdgen.report.explained import explain
from cdgen.report.loading import Loader
from cdgen.report.names import Names
from cdgen.report.parts import Part, find_part, find_text_part
from cdgen.storage.folder import OutputFolder
from cdgen.viewer.explanation import Explanation
from tests.helpers.small_runs import write_parquet
from tests.helpers.tiny_models import SENTENCES

SEEDS, COUNT = 16, 12
PREFIX = 4
CONTRASTIVE = SamplingParams(n=2, max_tokens=12, seed=3)
ANCESTRAL = SamplingParams.for_method("ancestral", max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def few_documents() -> Iterator[None]:
    """Show twelve documents per corpus."""
    assert documents.COUNT == 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "COUNT", COUNT)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Path:
    """Return the folder of a prepared corpus, and of two corpora from its seeds. Do not change it."""
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    write_parquet(root / "corpus" / "train.parquet", [f"Training text {number}." for number in range(80)])
    write_parquet(root / "corpus" / "seeds.parquet", [f"{number} {SENTENCES[number % 3]}" for number in range(SEEDS)])
    lm = ContrastiveLM(folders["good"], folders["bad"])
    generate(lm, root / "corpus-ancestral", ANCESTRAL, shard_size=7)
    generate(lm, root / "corpus-contrastive", CONTRASTIVE, shard_size=50, format="jsonl.gz")
    return root


def generate(lm: ContrastiveLM, out: Path, params: SamplingParams, **options: Any) -> None:
    """Write a corpus from the seeds beside its folder; `first` and `last` choose some of them."""
    path = out.parent / "corpus" / "seeds.parquet"
    chosen = slice(options.pop("first", None), options.pop("last", None))
    reading = {"field": "text", "prefix_tokens": PREFIX, "chunk_words": None}
    seeds, _ = read_seeds(path, lm.prompt_ids, prefix_tokens=PREFIX)
    with OutputFolder(out) as folder:
        about = {"paths": [str(path)], **reading, "parse_special": False}
        write_corpus(lm, seeds[chosen], folder, params, seeds_info=about, **options)


def parts_of(root: Path, *names: str) -> list[Part]:
    """Return parts of a report."""
    found = [find_part(root / name, name) or find_text_part(root / name, name) for name in names]
    return [part for part in found if part]


def read(parts: list[Part]) -> Documents:
    """Return the documents of a report, explained."""
    names = Names(parts, None)
    found = explain(choose(parts, names), names, Loader(names, None, None))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def shown(run: Path) -> Documents:
    """Return the documents of all three corpora."""
    return read(parts_of(run, "corpus", "corpus-ancestral", "corpus-contrastive"))


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a generated corpus, read independently of the code under test."""
    found = []
    for path in sorted((out / "data").iterdir()):
        if path.suffix == ".parquet":
            found += pq.read_table(path).to_pylist()
        else:
            found += [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return found


def texts_of(chosen: documents.Chosen) -> list[tuple[str, list[str]]]:
    """Return the names of the entries and the texts of their documents."""
    return [(entry.id, [one.text for one in entry.documents]) for entry in chosen.entries]


def test_seeds_line_up(run: Path, shown: Documents) -> None:
    assert [column.name for column in shown.columns] == ["real", "corpus-ancestral", "corpus-contrastive"]
    assert [column.method for column in shown.columns] == ["", "ancestral", "contrastive"]
    assert shown.notes == ()
    assert len(shown.entries) == COUNT
    assert len({entry.id for entry in shown.entries}) == COUNT
    first = [
        {row["seed_id"]: row for row in rows_of(run / name) if row["continuation"] == 0}
        for name in ("corpus-ancestral", "corpus-contrastive")
    ]
    for entry in shown.entries:
        assert [one.column for one in entry.documents] == [0, 1, 2]
        for one, rows in zip(entry.documents[1:], first, strict=True):
            row = rows[entry.id]
            assert one.text == row["text"]
            assert [token.token_id for token in one.explanation.tokens] == row["token_ids"]
            assert one.explanation.prompt_length == row["prompt_length"]
            assert (one.tokens, one.finish_reason) == (len(row["token_ids"]), row["finish_reason"])
            assert one.words == len(row["text"].split())


def test_real_text_is_that_of_the_seed(shown: Documents) -> None:
    for entry in shown.entries:
        number = int(entry.id)
        real, ancestral, _ = entry.documents
        assert real.text == f"{number} {SENTENCES[number % 3]}"
        assert (real.tokens, real.finish_reason) == (None, "")
        assert real.explanation.prompt_length == ancestral.explanation.prompt_length
        prompts = [one.explanation.tokens[: one.explanation.prompt_length] for one in (real, ancestral)]
        assert [token.token_id for token in prompts[0]] == [token.token_id for token in prompts[1]]


def test_entries_are_in_the_order_of_the_corpus_and_spread_over_it(shown: Documents) -> None:
    numbers = [int(entry.id) for entry in shown.entries]
    assert numbers == sorted(numbers)
    assert numbers != list(range(COUNT))
    assert shown.entries[0].start == f"{numbers[0]} {SENTENCES[numbers[0] % 3]}"[:80]


def test_choice_depends_on_the_names_of_seeds_alone(run: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    parts = parts_of(run, "corpus-ancestral")
    expected = texts_of(choose(parts, Names(parts, None)))
    assert texts_of(choose(parts, Names(parts, None))) == expected
    shutil.copytree(run / "corpus", tmp_path / "corpus")
    generate(ContrastiveLM(folders["good"]), tmp_path / "again", replace(ANCESTRAL, n=3), format="jsonl.gz")
    again = parts_of(tmp_path, "again")
    assert [one for one, _ in texts_of(choose(again, Names(again, None)))] == [one for one, _ in expected]


def explanation_of(lm: ContrastiveLM, ids: list[int], params: SamplingParams, prompt_length: int) -> Explanation:
    """Return what `lm.explain` says, shortened."""
    found = lm.explain(ids, params, prompt_length=prompt_length)
    return replace(found, tokens=tuple(shortened(token) for token in found.tokens))


def shortened(token: Any) -> Any:
    """Return a token with the first six of its candidates, and those that the viewer names."""
    if token.prediction is None:
        return token
    one = token.prediction
    named = (token.token_id, one.best_id, one.good_best_id)
    kept = tuple(each for at, each in enumerate(one.listed) if at < 6 or each.token_id in named)
    return replace(token, prediction=replace(one, listed=kept))


def test_explanations_are_those_of_explain(run: Path, shown: Documents, folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    read_by_good = SamplingParams(alpha=CONTRASTIVE.alpha, contrast_strength=0)
    for entry in shown.entries[::3]:
        for one, params in zip(entry.documents, (read_by_good, ANCESTRAL, CONTRASTIVE), strict=True):
            ids = [token.token_id for token in one.explanation.tokens]
            assert one.explanation == explanation_of(lm, ids, params, one.explanation.prompt_length)
    good, bad = str(folders["good"]), str(folders["bad"])
    assert [column.scored_with for column in shown.columns] == [f"{good} and {bad}", f"{good} and {bad}", ""]
    assert [(column.good, column.bad) for column in shown.columns] == [("", ""), (good, ""), (good, bad)]


def test_an_ancestral_corpus_alone_is_explained_by_good(run: Path, folders: dict[str, Path]) -> None:
    found = read(parts_of(run, "corpus-ancestral"))
    assert {one.explanation.bad for entry in found.entries for one in entry.documents} == {None}
    assert [column.scored_with for column in found.columns] == [str(folders["good"]), ""]


def test_a_bad_made_from_good_is_made_again(run: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    shutil.copytree(run / "corpus", tmp_path / "corpus")
    lm = ContrastiveLM(folders["good"], dropout=0.3)
    params = replace(CONTRASTIVE, n=1, seed=11)
    generate(lm, tmp_path / "dropout", params, last=5)
    found = read(parts_of(tmp_path, "dropout"))
    assert found.columns[1].bad == f"{folders['good']} with attention dropout 0.3"
    for entry in found.entries:
        one = entry.documents[1].explanation
        expected = explanation_of(lm, [token.token_id for token in one.tokens], params, one.prompt_length)
        assert one.tokens == expected.tokens


def test_long_documents_are_explained_in_part(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "MOST_TOKENS", 10)
    found = read(parts_of(run, "corpus-ancestral"))
    for entry in found.entries:
        for one in entry.documents:
            assert len(one.explanation.tokens) == 10
            said = "".join(token.text for token in one.explanation.tokens if token.token_id > 1)  # no special tokens
            assert one.text.endswith(one.rest)
            # The tokens of a random model are often parts of characters, and the tenth may be one.
            assert said.rstrip("\ufffd") + one.rest.lstrip("\ufffd") == one.text or "\ufffd" in one.text
        assert entry.documents[0].rest, "the sentences have more tokens"
        assert "\ufffd" not in entry.documents[0].text


def test_many_documents_are_explained_in_fewer_tokens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "_ALL_TOKENS", 16 * COUNT)
    monkeypatch.setattr(explained, "_FEWEST_TOKENS", 5)
    found = read(parts_of(run, "corpus-ancestral"))
    assert {len(one.explanation.tokens) for entry in found.entries for one in entry.documents} == {8}


def test_corpora_with_other_seeds_have_lists_of_their_own(run: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    for name in ("corpus", "corpus-contrastive"):
        shutil.copytree(run / name, tmp_path / name)
    lm = ContrastiveLM(folders["good"])
    generate(lm, tmp_path / "some", ANCESTRAL, last=6)
    generate(lm, tmp_path / "others", ANCESTRAL, first=6, last=10)
    parts = parts_of(tmp_path, "some", "others", "corpus-contrastive")
    found = choose(parts, Names(parts, None))
    groups = {entry.group: [] for entry in found.entries}
    for entry in found.entries:
        groups[entry.group].append(int(entry.id))
    assert groups == {"Seeds of some, corpus-contrastive": list(range(6)), "Seeds of others": list(range(6, 10))}
    assert [column.name for column in found.columns] == ["real", "some", "corpus-contrastive", "real", "others"]
    assert [one.column for one in found.entries[0].documents] == [0, 1, 2]
    assert [one.column for one in found.entries[-1].documents] == [3, 4]


def test_a_corpus_without_seeds_has_a_list_of_its_own(run: Path) -> None:
    parts = parts_of(run, "corpus")
    found = explain(choose(parts, Names(parts, None)), Names(parts, None), no_models)
    assert len(found.entries) == COUNT
    assert {entry.group for entry in found.entries} == {"Documents of corpus"}
    numbers = [int(entry.id.removeprefix("corpus ")) for entry in found.entries]
    assert numbers == sorted(numbers)
    assert [entry.documents[0].text for entry in found.entries] == [f"Training text {one - 1}." for one in numbers]
    assert {one.explanation for entry in found.entries for one in entry.documents} == {None}


def test_texts_are_explained_by_the_models_of_the_other_corpora(
    run: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in (SENTENCES[0], "", SENTENCES[1])))
    found = read([*parts_of(run, "corpus-contrastive"), *parts_of(tmp_path, "texts.jsonl")])
    of_file = [entry for entry in found.entries if entry.group == "Documents of texts.jsonl"]
    assert [entry.documents[0].text for entry in of_file] == SENTENCES[:2]
    lm = ContrastiveLM(folders["good"], folders["bad"])
    params = SamplingParams(alpha=0.1, contrast_strength=0)
    for entry in of_file:
        one = entry.documents[0]
        assert one.explanation == explanation_of(lm, lm.prompt_ids(one.text, ""), params, 1)


def no_models(good: Any, bad: Any) -> Any:
    """Fail if models are loaded."""
    raise AssertionError("no model is named")


def plain_and_notes(found: Documents, column: int) -> tuple[set[bool], str]:
    """Return whether documents of a column are plain text, and all notes."""
    ones: list[Document] = [one for entry in found.entries for one in entry.documents if one.column == column]
    return {one.explanation is None for one in ones}, "\n".join(found.notes)


def test_without_the_models_documents_are_plain_text(run: Path) -> None:
    parts = parts_of(run, "corpus-ancestral", "corpus-contrastive")
    contrastive = parts[1].manifest["models"]
    for name, expected in (("/gone/good", [True, True, True]), ("bad", [True, True, True])):
        contrastive["bad"] = contrastive["bad"] | {"name": name}
        found = read(parts)
        assert [plain_and_notes(found, column)[0] for column in range(3)] == [{one} for one in expected]
        assert "real, corpus-ancestral and corpus-contrastive: documents are shown without colours: " in found.notes[0]
        assert [column.scored_with for column in found.columns] == ["", "", ""]
        assert len(found.entries) == COUNT


def test_changed_models_are_not_used(run: Path) -> None:
    parts = parts_of(run, "corpus-ancestral")
    parts[0].manifest["models"]["good"]["fingerprint"] = "sha256:" + "0" * 64
    plain, notes = plain_and_notes(read(parts), 1)
    assert plain == {True}
    assert "has changed" in notes


def test_seeds_that_have_changed_or_are_gone(run: Path, tmp_path: Path) -> None:
    for name in ("corpus", "corpus-ancestral"):
        shutil.copytree(run / name, tmp_path / name)
    parts = parts_of(tmp_path, "corpus-ancestral")
    about = parts[0].manifest["seeds"]
    about["paths"] = [str(tmp_path / "corpus" / "seeds.parquet")]
    write_parquet(tmp_path / "corpus" / "seeds.parquet", [f"other {one}" for one in range(SEEDS)])
    found = read(parts)
    assert plain_and_notes(found, 0)[0] == {True}
    assert plain_and_notes(found, 1)[0] == {False}
    assert found.notes == (
        "real: documents are shown without colours: the files of the seeds have changed since, so these may be other "
        "texts",
    )
    about["paths"] = ["/gone/elsewhere.parquet"]
    found = read(parts)
    assert [column.name for column in found.columns] == ["corpus-ancestral"]
    assert found.notes == ("The real text of the seeds is left out: /gone/elsewhere.parquet: is gone",)
    about["paths"] = ["hub:somebody/seeds"]
    assert "is not on this machine" in read(parts).notes[0]


def test_moved_seeds_are_found(run: Path, tmp_path: Path) -> None:
    for name in ("corpus", "corpus-ancestral"):
        shutil.copytree(run / name, tmp_path / name)
    parts = parts_of(tmp_path, "corpus", "corpus-ancestral")
    parts[1].manifest["seeds"]["paths"] = ["/elsewhere/corpus/seeds.parquet"]
    found = choose(parts, Names(parts, None))
    assert [column.name for column in found.columns] == ["real", "corpus-ancestral"]
    assert found.notes == []


def test_damaged_and_unfinished_corpora_are_left_out(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "corpus-ancestral", tmp_path / "corpus-ancestral")
    parts = [*parts_of(tmp_path, "corpus-ancestral"), *parts_of(run, "corpus-contrastive")]
    parts[1].manifest["complete"] = False
    assert [column.name for column in choose(parts, Names(parts, None)).columns] == ["real", "corpus-ancestral"]
    shard = tmp_path / "corpus-ancestral" / "data" / "train-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    found = choose(parts, Names(parts, None))
    assert found.entries == []
    assert found.notes == [
        f"The documents of corpus-ancestral are left out: {shard}: is missing, truncated or altered; rerun the command "
        "that wrote it"
    ]
    parts = parts_of(run, "corpus-contrastive")
    parts[0].manifest["complete"] = False
    assert explain(choose(parts, Names(parts, None)), Names(parts, None), no_models) is None


@pytest.mark.parametrize("damage", ["folder", "rows"])
def test_an_odd_shard_is_a_note(run: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(run / "corpus-ancestral", tmp_path / "corpus-ancestral")
    parts = parts_of(tmp_path, "corpus-ancestral")
    shard = parts[0].manifest["shards"][1]
    if damage == "rows":
        shard["rows"] += 1
    else:
        path = tmp_path / "corpus-ancestral" / shard["name"]
        path.unlink()
        path.mkdir()
    found = choose(parts, Names(parts, None))
    assert found.entries == [] and len(found.notes) == 1
    assert shard["name"] in found.notes[0] and "[Errno" not in found.notes[0]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("word " * 5000 + "x" * 100_000)
    parts = parts_of(tmp_path, "long.txt")
    found = choose(parts, Names(parts, None))
    (entry,) = found.entries
    (one,) = entry.documents
    assert (len(one.text), one.left_out, one.words) == (4000, 121_000, 5001)
    assert entry.start == "word " * 11 + "word…"


def test_progress_counts_every_document(run: Path) -> None:
    class Counter:
        total = done = 0

        def begin(self, total: int, **_: Any) -> None:
            self.total = total

        def advance(self, units: int) -> None:
            self.done += units

        def tokens(self, count: int) -> None:
            pass

    parts, progress = parts_of(run, "corpus-ancestral", "corpus-contrastive"), Counter()
    names = Names(parts, None)
    explain(choose(parts, names), names, Loader(names, None, None), progress)
    assert (progress.total, progress.done) == (3 * COUNT, 3 * COUNT)
