"""Generated corpora: shards, manifest, checksums, resuming, and refusing to resume with other settings."""

import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus.manifest import NAME
from cdgen.corpus.seeds import Seed
from cdgen.corpus.shards import split_at
from cdgen.corpus.writer import write_corpus
from cdgen.engine.requests import Prompts
from cdgen.errors import CorpusError, InputError
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.sources import Source
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import Bar, Lines
from tests.helpers.corpora import bytes_of
from tests.helpers.engines import continued
from tests.helpers.prepared import fish, jsonl
from tests.helpers.tiny_models import make_llama

PARAMS = SamplingParams(n=3, max_tokens=8, seed=5)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=6)


@pytest.fixture(scope="module")
def seeds(lm: ContrastiveLM) -> list[Seed]:
    texts = ["The fox", "Once upon a", "How", "A cat lived", "Bread and", "Time"]
    return [Seed(f"s{i}", lm.prompt_ids(text, "")) for i, text in enumerate(texts)]


def write(
    lm: ContrastiveLM, seeds: list[Seed], out: Path, params: SamplingParams = PARAMS, **options: Any
) -> tuple[Manifest, int]:
    with OutputFolder(out) as folder:
        return write_corpus(lm, seeds, folder, params, **{"shard_size": 7} | options)


def rows_of(out: Path, manifest: Manifest) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for shard in manifest["shards"]:
        path = out / shard["name"]
        if path.suffix == ".gz":
            rows += [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        else:
            rows += pq.read_table(path).to_pylist()
    return rows


def test_rows_are_what_the_engine_decodes(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    manifest, written = write(lm, seeds, tmp_path / "c")
    assert written == 3 and manifest["complete"]
    rows = rows_of(tmp_path / "c", manifest)
    prompts = Prompts([seed.token_ids for seed in seeds], (seed.id for seed in seeds))
    pairs = [(seed, index) for seed in range(len(seeds)) for index in range(PARAMS.n)]
    outputs = continued(lm, prompts, pairs, PARAMS)
    expected = [
        {
            "text": lm.tokenizer.decode(seed.token_ids, skip_special_tokens=True) + output.text,
            "token_ids": seed.token_ids + output.token_ids,
            "prompt_length": len(seed.token_ids),
            "seed_id": seed.id,
            "continuation": output.index,
            "finish_reason": output.finish_reason,
        }
        for output, seed in ((output, seeds[at]) for output, (at, _) in zip(outputs, pairs, strict=True))
    ]
    assert rows == expected and [shard["rows"] for shard in manifest["shards"]] == [7, 7, 4]


def test_manifest_records_settings_models_and_counts(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    manifest, _ = write(lm, seeds, tmp_path / "c", seeds_info={"paths": ["seeds.txt"]})
    assert json.loads((tmp_path / "c" / NAME).read_text()) == json.loads(json.dumps(manifest))
    settings = manifest["settings"]
    assert (
        settings["n"] == 3 and settings["alpha"] == 0.1 and settings["batch_size"] == 6 and settings["shard_size"] == 7
    )
    assert settings["dtype"] == "float32" and settings["device"] == "cpu" and settings["format"] == "parquet"
    assert manifest["models"]["good"]["fingerprint"] == lm.pair.good.fingerprint
    assert manifest["models"]["bad"]["fingerprint"] == lm.pair.bad.fingerprint
    assert manifest["seeds"]["count"] == 6 and manifest["seeds"]["paths"] == ["seeds.txt"]
    (environment,) = manifest["environments"]
    assert {"cdgen", "torch", "transformers", "python", "implementation", "threads"} == set(environment)
    rows = rows_of(tmp_path / "c", manifest)
    new = sum(len(row["token_ids"]) - row["prompt_length"] for row in rows)
    assert manifest["counts"] == {
        "shards": 3, "documents": 18, "tokens": sum(len(row["token_ids"]) for row in rows), "new_tokens": new,
        "errors": 0,
    }  # fmt: skip
    for shard in manifest["shards"]:
        assert hashlib.sha256((tmp_path / "c" / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    assert sorted(bytes_of(tmp_path / "c")) == ["README.md", NAME, *(f"data/train-0000{i}.parquet" for i in range(3))]


def test_the_same_settings_write_the_same_bytes(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    for format in ("parquet", "jsonl.gz"):
        for name in ("a", "b"):
            write(lm, seeds, tmp_path / f"{name}-{format}", format=format, split_documents=True)
        assert bytes_of(tmp_path / f"a-{format}") == bytes_of(tmp_path / f"b-{format}")
    header = (tmp_path / "a-jsonl.gz" / "data/train-00000.jsonl.gz").read_bytes()[:10]
    assert header[4:8] == bytes(4), "the gzip header has a timestamp"


def test_both_formats_hold_the_same_rows(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    params = SamplingParams(n=2, max_tokens=6, logprobs=True)
    found = [
        rows_of(tmp_path / format, write(lm, seeds, tmp_path / format, params, format=format)[0])
        for format in ("parquet", "jsonl.gz")
    ]
    for a, b in zip(*found, strict=True):
        for name in ("logprob", "good_logprob", "bad_logprob"):
            assert a.pop(name) == pytest.approx(b.pop(name), abs=1e-6) and name not in a
        assert a == b
    assert len(found[0]) == 12


def test_shards_do_not_depend_on_the_shard_size(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    found = [
        rows_of(tmp_path / str(size), write(lm, seeds, tmp_path / str(size), shard_size=size)[0])
        for size in (1, 4, 100)
    ]
    assert found[0] == found[1] == found[2]


def test_a_finished_corpus_is_left_alone(
    lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lm, seeds, tmp_path / "c")
    before = bytes_of(tmp_path / "c")
    monkeypatch.setattr(lm, "continue_sequences", lambda *_, **__: pytest.fail("generated twice"))
    manifest, written = write(lm, seeds, tmp_path / "c")
    assert written == 0 and manifest["complete"] and bytes_of(tmp_path / "c") == before


@pytest.mark.parametrize("gone", ["data/train-00001.parquet", "_documents/00001.parquet", "data/train-00002.parquet"])
def test_a_deleted_shard_is_rewritten_with_the_same_bytes(
    lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path, gone: str
) -> None:
    write(lm, seeds, tmp_path / "c", split_documents=True)
    before = bytes_of(tmp_path / "c")
    (tmp_path / "c" / gone).unlink()
    (tmp_path / "c" / ".cdgen-0123456789abcdef-data-train-00001.parquet").write_bytes(b"left by a killed process")
    assert write(lm, seeds, tmp_path / "c", split_documents=True)[1] == 1
    assert bytes_of(tmp_path / "c") == before


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1], lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], lambda data: b""]
)
@pytest.mark.parametrize("name", ["data/train-00001.parquet", "_documents/00000.parquet"])
def test_an_altered_shard_is_found_and_named(
    lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path, name: str, harm: Callable[[bytes], bytes]
) -> None:
    write(lm, seeds, tmp_path / "c", split_documents=True)
    path = tmp_path / "c" / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(CorpusError, match=f"{name}: is truncated or altered .*delete it and rerun"):
        write(lm, seeds, tmp_path / "c", split_documents=True)


def test_other_settings_are_refused_by_name(
    lm: ContrastiveLM, seeds: list[Seed], folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "c"
    write(lm, seeds, out)
    before = bytes_of(out)
    for changes, name in (
        ({"params": SamplingParams(n=3, max_tokens=9, seed=5)}, "started with max_tokens = 8, but now max_tokens = 9"),
        ({"params": SamplingParams(n=3, max_tokens=8, seed=5, stop=("x",))}, "stop"),
        ({"params": SamplingParams(n=3, max_tokens=8, seed=6)}, "seed = 5"),
        ({"shard_size": 8}, "shard_size"),
        ({"format": "jsonl.gz"}, "format"),
        ({"split_documents": True}, "split_documents"),
        ({"seeds": seeds[:-1]}, "seeds"),
        ({"lm": ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=5)}, "batch_size"),
        (
            {"lm": ContrastiveLM(folders["good"], layers=1, max_num_seqs=6)},
            r"bad = sha256:\w+, but now bad = sha256:\w+\+layers:1",
        ),
        ({"lm": ContrastiveLM(make_llama(9), folders["bad"], tokenizer=lm.tokenizer, max_num_seqs=6)}, "good"),
    ):
        with pytest.raises(InputError, match=name) as caught:
            write(**{"lm": lm, "seeds": seeds, "out": out} | changes)
        assert "\n" not in str(caught.value)
    assert bytes_of(out) == before
    manifest, written = write(lm, seeds, out, SamplingParams(n=3, max_tokens=9, seed=5), resume=False)
    assert written == 3 and manifest["settings"]["max_tokens"] == 9
    assert sorted(bytes_of(out)) == sorted(before)


def test_models_are_identified_by_content_not_by_path(
    lm: ContrastiveLM, seeds: list[Seed], folders: dict[str, Path], tmp_path: Path
) -> None:
    write(lm, seeds, tmp_path / "c")
    for name in ("good", "bad"):
        (tmp_path / name).symlink_to(folders[name])
    elsewhere = ContrastiveLM(tmp_path / "good", tmp_path / "bad", max_num_seqs=6)
    assert write(elsewhere, seeds, tmp_path / "c")[1] == 0


def test_shards_without_manifest_and_a_damaged_manifest(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    out = tmp_path / "c"
    write(lm, seeds, out)
    for data in (b"{", b"[]", b"null", b'{"format_version": 99}', b"{}", b"[" * 10**5):
        (out / NAME).write_bytes(data)
        before = bytes_of(out)
        for resume in (True, False):
            with pytest.raises(CorpusError, match=r"_manifest\.json: .*; restore it, or choose another folder$"):
                write(lm, seeds, out, resume=resume)
        assert bytes_of(out) == before
    (out / NAME).unlink()
    for resume in (True, False):
        with pytest.raises(
            CorpusError, match=r"train-00000\.parquet: is in the way, and no manifest lists it; move it"
        ):
            write(lm, seeds, out, resume=resume)


def test_a_corpus_of_an_earlier_version_is_refused(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    out = tmp_path / "c"
    manifest, _ = write(lm, seeds, out)
    (out / NAME).unlink()
    shutil.rmtree(out / "data")
    (out / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    before = bytes_of(out)
    for resume in (True, False):
        with pytest.raises(CorpusError, match=r"manifest\.json: describes a generated corpus of an earlier version"):
            write(lm, seeds, out, resume=resume)
    assert bytes_of(out) == before


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("kind", ["prepared", "run"])
def test_a_folder_of_another_kind_is_refused(
    lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path, kind: str, resume: bool
) -> None:
    out = tmp_path / "c"
    if kind == "prepared":
        prepare_corpus([Source("a", jsonl(tmp_path / "a.jsonl", fish(200)))], out)
    else:
        out.mkdir()
        (out / "run.json").write_text(json.dumps({"kind": "run"}))
    before = bytes_of(out)
    with pytest.raises(
        CorpusError, match=r"describes a (prepared corpus|training run), not a generated corpus; choose"
    ):
        write(lm, seeds, out, resume=resume)
    assert bytes_of(out) == before


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        OutputFolder(tmp_path / "c"),
        pytest.raises(CorpusError, match="another process is writing"),
        OutputFolder(tmp_path / "c"),
    ):
        pass
    with OutputFolder(tmp_path / "c"):
        pass


def test_other_versions_are_warned_of_and_recorded(
    lm: ContrastiveLM,
    seeds: list[Seed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest, _ = write(lm, seeds, tmp_path / "c")
    (tmp_path / "c" / "data/train-00001.parquet").unlink()
    monkeypatch.setattr("cdgen.corpus.writer.versions", lambda: manifest["environments"][0] | {"torch": "9.9"})
    manifest, _ = write(lm, seeds, tmp_path / "c")
    assert "torch changed since this corpus was started" in caplog.text
    assert [one["torch"] == "9.9" for one in manifest["environments"]] == [False, True]
    assert [shard["environment"] for shard in manifest["shards"]] == [0, 1, 0]


def test_split_documents(seeds: list[Seed], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = make_llama(0)
    model.lm_head.weight.data[:2] *= 2  # start and end of text come often
    lm = ContrastiveLM(model, tokenizer=tokenizer, max_num_seqs=6)
    params = SamplingParams.for_method("ancestral", n=4, max_tokens=40, ignore_eos=True)
    manifest, _ = write(lm, seeds, tmp_path / "c", params, split_documents=True, format="jsonl.gz")
    rows = rows_of(tmp_path / "c", manifest)
    entries = [shard["documents"] for shard in manifest["shards"]]
    assert all(hashlib.sha256((tmp_path / "c" / e["name"]).read_bytes()).hexdigest() == e["sha256"] for e in entries)
    found = rows_of(tmp_path / "c", {"shards": entries})
    expected = []
    for row in rows:
        texts = [tokenizer.decode(ids) for ids in split_at(row["token_ids"], {0, 1})]
        kept = [text for text in texts if text.strip()]
        same = {"seed_id": row["seed_id"], "continuation": row["continuation"]}
        expected += [same | {"document": i, "text": text} for i, text in enumerate(kept)]
    assert found == expected and len(found) > len(rows), "nothing was split"


def test_split_at() -> None:
    assert split_at([0, 5, 6, 1, 0, 7, 1, 1], {0, 1}) == [[5, 6], [7]]
    assert split_at([5], {0, 1}) == [[5]] and split_at([0, 1], {0, 1}) == [] and split_at([], {0}) == []


def test_a_seed_that_is_too_long_is_named_before_anything_is_written(
    lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path
) -> None:
    long = Seed("the long one", [5] * 250)
    with pytest.raises(InputError, match="seed the long one: 250 tokens and max_tokens = 8 more"):
        write(lm, [*seeds, long], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    for options, name in (({"shard_size": 0}, "shard_size = 0"), ({"format": "csv"}, "format = 'csv'")):
        with pytest.raises(InputError, match=name):
            write(lm, seeds, tmp_path / "c", **options)


def test_progress_on_a_terminal_and_in_a_log(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    terminal, log = io.StringIO(), io.StringIO()
    bar = Bar(Console(file=terminal, force_terminal=True, width=100))
    for name, progress in (("a", bar), ("b", Lines(log, every=0.0))):
        write(lm, seeds, tmp_path / name, progress=progress)
        progress.close()
    for text in (terminal.getvalue(), log.getvalue()):
        assert "tokens/s" in text and "18" in text
    assert "18 of 18 documents" in log.getvalue() and "left" in log.getvalue()
    (tmp_path / "b" / "data/train-00002.parquet").unlink()
    again = Lines(log)
    write(lm, seeds, tmp_path / "b", progress=again)
    assert "18 documents to write, 14 already done" in log.getvalue()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["data", "_documents", "data/train-00000.parquet"])
def test_what_is_in_the_way_is_found_before_anything_is_decoded(
    lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, resume: bool
) -> None:
    """A file in place of a folder, a link to nothing, or a folder in place of a shard that the manifest lists."""
    out = tmp_path / "c"
    write(lm, seeds, out)
    if name.endswith("parquet"):
        (out / name).unlink()
        (out / name).mkdir()
    else:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).symlink_to("nothing")
    monkeypatch.setattr(lm, "continue_sequences", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(CorpusError, match=f"{name}: is in the way"):
        write(lm, seeds, out, resume=resume)


def test_counts_are_part_of_a_sound_manifest(lm: ContrastiveLM, seeds: list[Seed], tmp_path: Path) -> None:
    write(lm, seeds, tmp_path)
    path = tmp_path / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"counts": {}}))
    with pytest.raises(CorpusError, match=r"is damaged: has no field 'counts\.shards'"):
        write(lm, seeds, tmp_path)
