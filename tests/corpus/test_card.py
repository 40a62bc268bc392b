"""A corpus has a dataset card: `datasets` loads it as the card says, and a card that a user edited stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus import card, shards
from cdgen.corpus.records import records
from cdgen.corpus.seeds import Seed
from cdgen.corpus.verify import verify
from cdgen.corpus.writer import write_corpus
from cdgen.prepare.build import prepare_corpus
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from tests.helpers.corpora import numbered_seeds
from tests.helpers.prepared import fish, jsonl, texts

NULLS = 0.05  # Arrow tables that were read may have bitmaps that mark nulls, of up to a bit per value
PARAMS = SamplingParams(n=2, max_tokens=4)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


def generate(lm: ContrastiveLM, out: Path, params: SamplingParams = PARAMS, seeds: int = 3, **options: Any) -> Manifest:
    with OutputFolder(out) as folder:
        return write_corpus(lm, numbered_seeds(seeds), folder, params, shard_size=4, **options)[0]


def rewrite(out: Path, manifest: Manifest) -> None:
    with OutputFolder(out) as folder:
        card.write(folder, manifest)


def metadata(out: Path) -> dict[str, Any]:
    """Return the metadata of a card, as huggingface_hub reads them, after it has read its own rendering of them."""
    hub = pytest.importorskip("huggingface_hub")
    found = hub.DatasetCard.load(out / card.NAME)
    assert hub.DatasetCard(str(found)).data.to_dict() == found.data.to_dict()
    data: dict[str, Any] = found.data.to_dict()
    return data


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("format", ["parquet", "jsonl.gz"])
def test_datasets_loads_a_generated_corpus_as_its_card_says(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, logprobs: bool
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    out, cache = tmp_path / "test-dev", str(tmp_path / "cache")  # a name that datasets could take for a split
    params = SamplingParams(n=2, max_tokens=4, logprobs=logprobs)
    manifest = generate(lm, out, params, split_documents=True, format=format)
    (out / ".cdgen-journal-0.jsonl").write_text("left by a process that was killed")
    info = {each["config_name"]: each for each in metadata(out)["dataset_info"]}
    assert datasets.get_dataset_config_names(str(out)) == ["default", "documents"]
    for name, schema in (
        ("default", shards.ROW_WITH_LOGPROBS if logprobs else shards.ROW),
        ("documents", shards.DOCUMENT),
    ):
        found = datasets.load_dataset(str(out), name, cache_dir=cache)
        assert list(found) == ["train"]
        assert found["train"].features.arrow_schema.remove_metadata() == schema
        (split,) = info[name]["splits"]
        assert split["num_examples"] == found["train"].num_rows
        read = found["train"].info.splits["train"].num_bytes
        assert split["num_bytes"] == info[name]["dataset_size"] == pytest.approx(read, rel=NULLS)
        folder = "data" if name == "default" else "_documents"
        assert info[name]["download_size"] == sum(path.stat().st_size for path in (out / folder).iterdir())
    whole = datasets.load_dataset(str(out), cache_dir=cache)["train"]
    assert whole.num_rows == manifest["counts"]["documents"] == 6
    assert whole["seed_id"][:] == ["s0", "s0", "s1", "s1", "s2", "s2"] and whole["continuation"][:] == [0, 1] * 3
    assert datasets.load_dataset(str(out), data_dir="_documents", cache_dir=cache)["train"].num_rows >= 6
    assert [text for _, text in records(out)] == whole["text"][:]  # as seeds or a source of another corpus


@pytest.mark.parametrize("format", shards.FORMATS)
def test_datasets_loads_a_corpus_with_a_shard_without_documents(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Its texts are empty, or only whitespace. Without any document, the card does not offer them."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    eos = lm.pair.eos_token_ids[0]
    params = SamplingParams(max_tokens=2, ignore_eos=True, logit_bias={eos: 100}, contrast_strength=0)
    empty, other = Seed("empty", [eos]), Seed("other", [0, 20])
    for name, seeds in (("some", [empty, other]), ("none", [empty])):
        out = tmp_path / name
        with OutputFolder(out) as folder:
            write_corpus(lm, seeds, folder, params, shard_size=1, format=format, split_documents=True)
        names = datasets.get_dataset_config_names(str(out))
        assert names == (["default", "documents"] if name == "some" else ["default"])
        found = [datasets.load_dataset(str(out), each, cache_dir=str(tmp_path / "cache"))["train"] for each in names]
        assert [each.num_rows for each in found] == ([2, 1] if name == "some" else [1])
        assert ('"documents"' in (out / card.NAME).read_text()) == (name == "some") and verify(out).faults == []


def test_datasets_loads_a_prepared_corpus_as_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    prepare_corpus(jsonl(tmp_path / "fish.jsonl", fish(200)), out, test=0.1, seeds=0.1)
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: split["text"][:] for name, split in found.items()} == {
        name: texts(out, name) for name in ("train", "test", "seeds")
    }
    stated = {split["name"]: split for split in metadata(out)["dataset_info"]["splits"]}
    for name, split in found.items():
        assert stated[name]["num_examples"] == split.num_rows
        assert stated[name]["num_bytes"] == pytest.approx(split.info.splits[name].num_bytes, rel=NULLS)
    assert "licen" not in str(metadata(out))  # the user names one


def test_metadata_are_those_that_datasets_declares(lm: ContrastiveLM, tmp_path: Path) -> None:
    """The classes with which `datasets` reads the fields `configs` and `dataset_info` accept them."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    generate(lm, tmp_path, split_documents=True)
    data = DatasetCard.load(tmp_path / card.NAME).data
    configs = MetadataConfigs.from_dataset_card_data(data)
    assert configs.get_default_config_name() == "default"
    info = datasets.info.DatasetInfosDict.from_dataset_card_data(data)
    assert set(info) == set(configs) == {"default", "documents"}
    assert info["default"].features.arrow_schema.remove_metadata() == shards.ROW


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**9 - 1, "100M<n<1B"), (10**9, "1B<n<10B"),
        (10**12 - 1, "100B<n<1T"), (10**12, "n>1T"),
    ],
)  # fmt: skip
def test_size_categories_are_those_of_the_hub(lm: ContrastiveLM, tmp_path: Path, rows: int, category: str) -> None:
    manifest = json.loads(json.dumps(generate(lm, tmp_path)))
    manifest["shards"][0]["rows"] = rows - sum(shard["rows"] for shard in manifest["shards"][1:])
    with OutputFolder(tmp_path) as folder:
        assert f"\n- {category}\n" in card.content(folder, manifest).decode()


@pytest.mark.parametrize("edit", [
    lambda text: text.replace("# license: name one, such as cc-by-4.0", "license: cc-by-4.0\n#"),
    lambda text: text + "\nMore.\n",
    lambda text: text.removesuffix("\n"),
    lambda text: text.replace("# Synthetic corpus", "# Mine"),
    lambda text: "mine",
])  # fmt: skip
def test_a_card_that_was_edited_stays(
    lm: ContrastiveLM, tmp_path: Path, caplog: pytest.LogCaptureFixture, edit: Any
) -> None:
    manifest = generate(lm, tmp_path)
    written = (tmp_path / card.NAME).read_text()
    edited = edit(written)
    assert edited != written
    (tmp_path / card.NAME).write_text(edited)
    rewrite(tmp_path, manifest)
    generate(lm, tmp_path)
    assert (tmp_path / card.NAME).read_text() == edited and not caplog.records
    rewrite(tmp_path, manifest | {"complete": False})
    assert (tmp_path / card.NAME).read_text() == edited


def test_the_own_card_is_kept_up_to_date(lm: ContrastiveLM, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is deleted with the corpus that it describes, and written again with the next one."""
    manifest = generate(lm, tmp_path)
    path = tmp_path / card.NAME
    first = path.read_bytes()
    before = path.stat()
    rewrite(tmp_path, manifest)
    assert path.stat() == before  # nothing was written
    rewrite(tmp_path, manifest | {"complete": False})
    assert not path.exists()
    rewrite(tmp_path, manifest)
    assert path.read_bytes() == first
    path.unlink()
    generate(lm, tmp_path)  # a rerun of the complete corpus
    assert path.read_bytes() == first
    generate(lm, tmp_path, SamplingParams(max_tokens=4), resume=False)
    assert path.read_bytes() != first and metadata(tmp_path)["dataset_info"]["splits"][0]["num_examples"] == 3
    assert not caplog.records


def test_an_edited_card_of_another_corpus_is_reported(
    lm: ContrastiveLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate(lm, tmp_path)
    path = tmp_path / card.NAME
    path.write_text(path.read_text() + "\nMore.\n")
    generate(lm, tmp_path, SamplingParams(max_tokens=4), resume=False)
    (warning,) = {record.getMessage() for record in caplog.records}
    assert f"{path}: it states 6 rows in the split train of default, but there are 3" in warning
    assert path.read_text().endswith("More.\n")
    path.write_text("---\na: [\n---\n")
    caplog.clear()
    generate(lm, tmp_path, SamplingParams(max_tokens=4))
    (warning,) = {record.getMessage() for record in caplog.records}
    assert "its metadata cannot be read" in warning and "\n" not in warning


def test_names_from_users_are_code_spans_in_one_line(lm: ContrastiveLM, tmp_path: Path) -> None:
    manifest = generate(lm, tmp_path)
    manifest["models"]["good"]["name"] = "a`b``c -->\n# heading \udce9"
    rewrite(tmp_path, manifest)
    text = (tmp_path / card.NAME).read_text()
    assert "- GOOD: ``` a`b``c -->\\n# heading \\udce9 ```, `" in text
    rewrite(tmp_path, manifest | {"complete": False})  # it still counts as cdgen's own
    assert not (tmp_path / card.NAME).exists()


def test_a_card_of_an_older_corpus_leaves_out_what_its_manifest_lacks(lm: ContrastiveLM, tmp_path: Path) -> None:
    manifest = generate(lm, tmp_path)
    for shard in manifest["shards"]:
        del shard["arrow_bytes"]
    rewrite(tmp_path, manifest)
    info = metadata(tmp_path)["dataset_info"]
    assert {*info} == {"features", "download_size"}
