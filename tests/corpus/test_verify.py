"""Verifying a corpus finds every kind of damage, names the file and the remedy, and finds none in a whole corpus."""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.cli.app import main
from cdgen.corpus import shards
from cdgen.corpus.manifest import NAME as MANIFEST
from cdgen.corpus.verify import verify
from cdgen.corpus.writer import write_corpus
from cdgen.errors import InputError
from cdgen.prepare.build import prepare_corpus
from cdgen.storage.folder import OutputFolder
from tests.helpers.corpora import bytes_of, numbered_seeds
from tests.helpers.prepared import fish, jsonl

Row = dict[str, Any]
RERUN = "rerun the command that wrote the corpus"


def write(lm: ContrastiveLM, out: Path, **options: Any) -> None:
    params = SamplingParams(n=2, max_tokens=4, ignore_eos=True, logprobs=options.pop("logprobs", False))
    with OutputFolder(out) as folder:
        write_corpus(lm, numbered_seeds(5), folder, params, shard_size=4, split_documents=True, **options)


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of whole corpora: five seeds, two continuations of each, shards of 4, 4 and 2 texts, and documents."""
    lm = ContrastiveLM(folders["good"], folders["bad"])
    path = tmp_path_factory.mktemp("whole")
    for format in shards.FORMATS:
        write(lm, path / format, format=format)
        write(lm, path / f"{format}-logprobs", format=format, logprobs=True)
    prepare_corpus(jsonl(path / "fish.jsonl", fish(200)), path / "prepared", test=0.1, seeds=0.1)
    return {each.name: each for each in path.iterdir() if each.is_dir()}


@pytest.fixture
def out(whole: dict[str, Path], tmp_path: Path) -> Path:
    """A corpus to damage."""
    return Path(shutil.copytree(whole["parquet"], tmp_path / "out"))


def change_manifest(out: Path, change: Callable[[Any], object]) -> None:
    path = next(path for path in (out / MANIFEST, out / "manifest.json") if path.exists())
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def change_rows(out: Path, number: int, change: Callable[[list[Row]], object], documents: bool = False) -> None:
    """Change the rows of a shard or of its documents, with a manifest that has the new checksum."""

    def entry(manifest: Any) -> Any:
        shard = manifest["shards"][number]
        return shard["documents"] if documents else shard

    path = out / entry(json.loads((out / MANIFEST).read_text()))["name"]
    schema = shards.DOCUMENT if documents else shards.ROW
    rows = pq.read_table(path).to_pylist()
    change(rows)
    path.write_bytes(shards.encode(rows, schema, "parquet").content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(out, lambda manifest: entry(manifest).update(sha256=digest))


@pytest.mark.parametrize("name", ["parquet", "parquet-logprobs", "jsonl.gz", "jsonl.gz-logprobs", "prepared"])
def test_a_whole_corpus_has_no_faults(whole: dict[str, Path], name: str) -> None:
    before = bytes_of(whole[name])
    found = verify(whole[name])
    assert found.faults == [] and bytes_of(whole[name]) == before
    if name != "prepared":
        assert found.content == "10 texts of 5 seeds in 3 shards, 40 new tokens"


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda out: (out / "data/train-00001.parquet").write_bytes(b"PAR1"),
        "data/train-00001.parquet: is truncated or altered: its checksum differs; delete it, and rerun",
    ),
    "missing": (lambda out: (out / "data/train-00001.parquet").unlink(), f"train-00001.parquet: is missing; {RERUN}"),
    "a pipe": (
        lambda out: [(out / "data/train-00001.parquet").unlink(), os.mkfifo(out / "data/train-00001.parquet")],
        "data/train-00001.parquet: cannot be read: is not a regular file; delete it, and rerun",
    ),
    "a device": (
        lambda out: [(out / MANIFEST).unlink(), (out / MANIFEST).symlink_to("/dev/zero")],
        "_manifest.json: cannot be read: is not a regular file; restore it",
    ),
    "documents": (
        lambda out: (out / "_documents/00002.parquet").write_bytes(b"PAR1"),
        "_documents/00002.parquet: is truncated or altered",
    ),
    "a shard": (
        lambda out: change_manifest(out, lambda it: it["shards"].pop(1)),
        f"out: is not finished: 1 of 3 shards are missing; {RERUN}",
    ),
    "twice": (
        lambda out: change_manifest(out, lambda it: it["shards"].append(it["shards"][0])),
        "_manifest.json: lists shards that are not part of the corpus, or lists them twice",
    ),
    "incomplete": (lambda out: change_manifest(out, lambda it: it.update(complete=False)), "out: is not finished"),
    "another seed": (
        lambda out: change_manifest(out, lambda it: it["seeds"].update(fingerprint="sha256:0")),
        "out: its seeds are not those of the manifest: their fingerprint differs",
    ),
    "counts": (
        lambda out: change_manifest(out, lambda it: it["counts"].update(new_tokens=41)),
        "_manifest.json: field 'counts.new_tokens' is 41, but the shards have 40",
    ),
    "settings": (
        lambda out: change_manifest(out, lambda it: it["settings"].pop("n")),
        "_manifest.json: has no field 'settings.n', so its rows cannot be checked",
    ),
    "no rows": (
        lambda out: change_manifest(out, lambda it: it["settings"].update(shard_size=0)),
        "_manifest.json: has no number of rows, so its rows cannot be checked",
    ),
    "endless": (
        lambda out: change_manifest(out, lambda it: it["seeds"].update(count=10**15)),
        "out: is not finished: 499,999,999,999,997 of 500,000,000,000,000 shards are missing",
    ),
    "no documents": (
        lambda out: change_manifest(out, lambda it: it["shards"][1].pop("documents")),
        "_manifest.json: is damaged: field 'shards[1].documents' contradicts 'settings.split_documents'",
    ),
    "environment": (
        lambda out: change_manifest(out, lambda it: it["shards"][1].update(environment=1)),
        "_manifest.json: is damaged: field 'shards[1].environment' is not the number of an environment",
    ),
    "manifest": (lambda out: (out / MANIFEST).write_text("{"), "_manifest.json: cannot be read"),
    "unlisted": (
        lambda out: (out / "data/train-00003.parquet").write_bytes(b""),
        "data/train-00003.parquet: the manifest does not list this file, but readers of the corpus may read it",
    ),
    "half-written": (
        lambda out: (out / ".cdgen-0123456789abcdef-data-train-00000.parquet").write_bytes(b""),
        "train-00000.parquet: was left by a process that was killed",
    ),
    "a part": (lambda out: (out / "_tasks/00001").mkdir(parents=True), "_tasks/00001: was left by a process"),
    "card": (
        lambda out: replace(out / "README.md", "examples: 10", "examples: 9"),
        "README.md: it states 9 rows in the split train of default, but there are 10; correct it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_files_is_found(out: Path, damage: str) -> None:
    change, expected = DAMAGE[damage]
    change(out)
    faults = verify(out).faults
    if damage == "a shard":  # its files are not listed, and counts and card state its rows
        assert len(faults) == 1 + 2 + 4 + 1, faults
    if damage in ("a shard", "twice", "endless"):
        faults = faults[:1]
    assert len(faults) == 1 and expected in faults[0] and "\n" not in faults[0], faults


def swap(rows: list[Row]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def change(at: int, **values: Any) -> Callable[[list[Row]], object]:
    return lambda rows: rows[at].update(values)


ROWS: dict[str, tuple[int, Callable[[list[Row]], object], str]] = {
    "swapped": (1, swap, "row 4 of the corpus is continuation 1 of its seed, not 0"),
    "twice": (1, lambda rows: rows.__setitem__(slice(0, 2), rows[2:]), "repeats the seed 's3'"),
    "left out": (1, lambda rows: rows.pop(), "has rows = 3, but the manifest states 4"),
    "seed": (1, change(1, seed_id="s9"), "row 5 of the corpus has another seed or prompt"),
    "prompt": (0, lambda rows: rows[3]["token_ids"].__setitem__(1, 7), "row 3 of the corpus has another seed"),
    "vocabulary": (0, lambda rows: rows[3]["token_ids"].__setitem__(4, 300), "token id that is not in the vocabulary"),
    "negative": (0, lambda rows: rows[3]["token_ids"].__setitem__(4, -1), "token id that is not in the vocabulary"),
    "too long": (2, lambda rows: rows[0]["token_ids"].append(5), "continuation of 5 tokens, more than max_tokens = 4"),
    "shorter": (2, lambda rows: rows[0]["token_ids"].pop(), "has tokens = 11, but the manifest states 12"),
    "prompt_length": (2, change(0, prompt_length=-1), "has a prompt_length that is not between 0 and"),
    "beyond": (2, change(0, prompt_length=7), "has a prompt_length that is not between 0 and"),
    "reason": (2, change(0, finish_reason="tired"), "has a finish_reason 'tired', which is none of stop"),
    "errors": (2, change(0, finish_reason="error"), "has errors = 1, but the manifest states 0"),
    "null": (2, change(0, text=None), "has a null in the column text"),
}  # fmt: skip


@pytest.mark.parametrize("damage", ROWS)
def test_wrong_rows_are_found(out: Path, damage: str) -> None:
    number, edit, expected = ROWS[damage]
    change_rows(out, number, edit)
    (fault,) = verify(out).faults
    assert f"train-0000{number}.parquet: " in fault and expected in fault and fault.endswith(RERUN)


def test_other_seeds_in_all_rows_are_found_by_their_fingerprint(out: Path) -> None:
    """Every row of a seed has another id, so only the fingerprint of all seeds can tell."""
    change_rows(out, 2, lambda rows: [row.update(seed_id="other") for row in rows])
    change_rows(out, 2, lambda rows: [row.update(seed_id="other") for row in rows], documents=True)
    (fault,) = verify(out).faults
    assert "their fingerprint differs" in fault


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda rows: rows.pop(), "documents, but the manifest states"),
        (change(0, document=1), "document 0 of the file is empty, or its number is not 0"),
        (change(0, text=" "), "document 0 of the file is empty, or its number is not 0"),
        (change(-1, seed_id="s9"), "is of no text of its shard, or not in their order"),
        (lambda rows: rows.reverse(), "is of no text of its shard, or not in their order"),
    ],
)
def test_wrong_documents_are_found(out: Path, edit: Callable[[list[Row]], object], expected: str) -> None:
    change_rows(out, 1, edit, documents=True)
    (fault,) = verify(out).faults
    assert "_documents/00001.parquet: " in fault and expected in fault


def test_rows_after_a_damaged_shard_are_still_checked(out: Path) -> None:
    (out / "data/train-00000.parquet").write_bytes(b"")
    change_rows(out, 2, swap)
    first, second = verify(out).faults
    assert "train-00000.parquet: is truncated" in first and "row 8 of the corpus is continuation 1" in second


def test_a_seed_may_continue_in_the_shard_after_a_damaged_one(folders: dict[str, Path], tmp_path: Path) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    with OutputFolder(tmp_path) as folder:
        write_corpus(lm, numbered_seeds(3), folder, SamplingParams(n=3, max_tokens=2), shard_size=4)
    assert verify(tmp_path).faults == []
    (tmp_path / "data/train-00000.parquet").write_bytes(b"")
    (fault,) = verify(tmp_path).faults
    assert "train-00000.parquet" in fault


def test_other_columns_are_found(whole: dict[str, Path], tmp_path: Path) -> None:
    """Files of both formats that have the right checksum, and other columns or values."""
    for format in shards.FORMATS:
        out = Path(shutil.copytree(whole[f"{format}-logprobs"], tmp_path / format))
        path = out / f"data/train-00000{shards.FORMATS[format]}"
        if format == "parquet":
            pq.write_table(pq.read_table(path).drop_columns(["logprob"]), path)
        else:
            rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
            rows[1]["extra"] = rows[1].pop("text")
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        change_manifest(out, lambda manifest, digest=digest: manifest["shards"][0].update(sha256=digest))
        (fault,) = verify(out).faults
        assert path.name in fault and ("has the columns" in fault or "has a line without the fields" in fault)


def test_log_probabilities_have_the_length_of_the_continuation(whole: dict[str, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole["parquet-logprobs"], tmp_path / "out"))
    path = out / "data/train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2]["good_logprob"].pop()
    pq.write_table(pa.Table.from_pylist(rows, schema=shards.ROW_WITH_LOGPROBS), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(out, lambda manifest: manifest["shards"][0].update(sha256=digest))
    (fault,) = verify(out).faults
    assert "has a list in the column good_logprob whose length is not that of the continuation" in fault


def test_damage_to_a_prepared_corpus_is_found(whole: dict[str, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole["prepared"], tmp_path / "out"))
    (out / "test.parquet").write_bytes(b"")
    (fault,) = verify(out).faults
    assert "test.parquet: is truncated or altered" in fault
    shutil.copy(whole["prepared"] / "test.parquet", out / "test.parquet")

    table = pq.read_table(out / "train.parquet")
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(1, 1)]), out / "train.parquet")
    digest = hashlib.sha256((out / "train.parquet").read_bytes()).hexdigest()
    change_manifest(out, lambda manifest: manifest["files"]["train.parquet"].update(sha256=digest))
    first, second = verify(out).faults
    assert "train.parquet: has 161 documents and" in first and "has 1 document with the text of another one" in second
    shutil.copytree(whole["prepared"], out, dirs_exist_ok=True)

    change_manifest(out, lambda manifest: manifest["counts"]["train"].update(documents=7))
    assert any("but the manifest states 7" in fault for fault in verify(out).faults)
    shutil.copytree(whole["prepared"], out, dirs_exist_ok=True)
    change_manifest(out, lambda manifest: manifest["files"].pop("seeds.parquet"))
    (fault,) = verify(out).faults
    assert "seeds.parquet: the manifest does not list this file" in fault


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has neither a _manifest\.json nor a manifest\.json"):
        verify(tmp_path)


def test_the_command_prints_faults_and_exits_with_1(
    whole: dict[str, Path], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = whole["parquet"]
    assert main(["corpus", "verify", str(first), str(whole["prepared"])]) == 0
    line, _ = capsys.readouterr().out.splitlines()
    assert line == f"{first}: 10 texts of 5 seeds in 3 shards, 40 new tokens; no faults"
    (out / "data/train-00001.parquet").unlink()
    assert main(["corpus", "verify", str(first), str(out), "--quiet"]) == 1
    assert capsys.readouterr().out == f"{out / 'data/train-00001.parquet'}: is missing; {RERUN}\n"
    assert main(["corpus", "verify", str(first), str(tmp_path / "nowhere")]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"cdgen: error: {tmp_path / 'nowhere'}: no such folder\n" and printed.out == ""
