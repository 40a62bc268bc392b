"""A corpus is a data set for pandas and pyarrow; log-probabilities are JSON; errors are counted."""

import gzip
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus import shards
from cdgen.corpus.seeds import Seed
from cdgen.corpus.writer import write_corpus
from cdgen.errors import InputError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from tests.helpers.corpora import numbered_seeds

SEEDS = numbered_seeds(3)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


def write(lm: ContrastiveLM, out: Path, params: SamplingParams, seeds: list[Seed] = SEEDS, **options: Any) -> Manifest:
    with OutputFolder(out) as folder:
        return write_corpus(lm, seeds, folder, params, shard_size=4, **options)[0]


@pytest.mark.parametrize("split_documents", [False, True])
def test_pandas_and_pyarrow_read_a_folder(lm: ContrastiveLM, tmp_path: Path, split_documents: bool) -> None:
    write(lm, tmp_path, SamplingParams(n=2, max_tokens=4), split_documents=split_documents)
    (tmp_path / ".cdgen-journal-0.jsonl").write_text("left by a process that was killed")
    table = pq.read_table(tmp_path / "data")
    assert table.schema.names == shards.ROW.names and table.num_rows == 6
    assert table["seed_id"].to_pylist() == ["s0", "s0", "s1", "s1", "s2", "s2"]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert pandas.read_parquet(tmp_path / "data").shape == (6, len(shards.ROW))


def test_log_probabilities_that_json_lacks_are_null() -> None:
    schema = pa.schema([shards.ROW_WITH_LOGPROBS.field(name) for name in ("seed_id", *shards.LOGPROBS)])
    values = [-1.5, -math.inf, math.nan, math.inf]
    row = {"seed_id": "s", "logprob": values, "good_logprob": [-2.0] * 4, "bad_logprob": [None] * 4}

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    found = json.loads(gzip.decompress(shards.encode([row], schema, "jsonl.gz").content), parse_constant=refuse)
    assert found == row | {"logprob": [-1.5, None, None, None]}
    table = pq.read_table(pa.BufferReader(shards.encode([row], schema, "parquet").content))
    assert table["logprob"].to_pylist()[0][1] == -math.inf


@pytest.mark.parametrize("logprobs", [False, True])
def test_documents_that_end_by_an_error_are_counted_and_named(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, logprobs: bool
) -> None:
    """The prompt of one seed has a NaN embedding, so nothing can be drawn for it; the others are not affected."""
    lm = ContrastiveLM(folders["good"], folders["bad"])
    with torch.no_grad():
        lm.pair.good.module.get_input_embeddings().weight[299] = math.nan
    seeds = [*SEEDS, Seed("broken", [0, 299])]
    params = SamplingParams(n=2, max_tokens=4, logprobs=logprobs, alpha=0.5)
    manifest = write(lm, tmp_path, params, seeds)
    rows = pq.read_table(tmp_path / "data").to_pylist()
    assert [row["seed_id"] for row in rows if row["finish_reason"] == "error"] == ["broken"] * 2
    assert manifest["counts"]["errors"] == 2 and [shard["errors"] for shard in manifest["shards"]] == [0, 2]
    assert manifest["complete"] and len(rows) == 8
    (warning,) = [record.getMessage() for record in caplog.records if "finish_reason" in record.getMessage()]
    assert warning.startswith("2 documents end early, with the finish_reason error: ") and "seeds are broken" in warning


@pytest.mark.parametrize("id", ["\ud800", "a\udce9.txt:1"])
def test_an_id_that_cannot_be_written_is_found_before_anything_is_decoded(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str
) -> None:
    monkeypatch.setattr(lm, "continue_sequences", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputError, match="its id has half of a surrogate pair"):
        write(lm, tmp_path / "out", SamplingParams(), [*SEEDS, Seed(id, [0, 5])])
    assert not (tmp_path / "out").exists()


def test_many_continuations_are_listed_lazily(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding starts at once with a million continuations of each of a thousand seeds."""
    found: list[object] = []

    def stop(prompts: object, sequences: Sequence[tuple[int, int]], *_: object, **__: object) -> None:
        found.extend([len(sequences), *itertools.islice(sequences, 3), sequences[-1]])
        raise KeyboardInterrupt

    monkeypatch.setattr(lm, "continue_sequences", stop)
    with pytest.raises(KeyboardInterrupt):
        write(
            lm, tmp_path / "out", SamplingParams(n=10**6, max_tokens=4), [Seed(f"s{at}", [0, 20]) for at in range(1000)]
        )
    assert found == [10**9, (0, 0), (0, 1), (0, 2), (999, 10**6 - 1)]
    with (
        OutputFolder(tmp_path / "out") as folder,
        pytest.raises(InputError, match="shard_size = 1000000000: must be 1"),
    ):
        write_corpus(lm, SEEDS, folder, SamplingParams(), shard_size=10**9)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([SEEDS[0], SEEDS[0]], "seed s0: another seed has the same id"),
        ([Seed(5, [1])], "is not a Seed with a text as its id"),  # type: ignore[arg-type]
        (["s0"], "'s0' is not a Seed with a text as its id"),
        ([Seed("s0", [1.5])], r"seed s0: token 0 is 1\.5"),  # type: ignore[list-item]
        ([Seed("s0", [400])], "seed s0: token id 400 is out of range"),
    ],
)
def test_seeds_made_by_hand_are_checked(lm: ContrastiveLM, tmp_path: Path, seeds: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(lm, tmp_path / "out", SamplingParams(max_tokens=4), seeds)
    assert not (tmp_path / "out").exists()


def test_options_of_other_types_are_refused(lm: ContrastiveLM, tmp_path: Path) -> None:
    for options, message in (
        ({"format": []}, "format = "),
        ({"resume": 1}, "resume = 1: must be True or False"),
        ({"split_documents": "yes"}, "split_documents = 'yes': must be True or False"),
    ):
        with pytest.raises(InputError, match=message):
            write(lm, tmp_path / "out", SamplingParams(max_tokens=4), **options)
    with pytest.raises(InputError, match=r"sampling_params: is of type dict; use SamplingParams\(\.\.\.\)"):
        write(lm, tmp_path / "out", {"max_tokens": 4})  # type: ignore[arg-type]


def test_arrays_and_empty_lists_are_token_ids(lm: ContrastiveLM, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=4)
    arrays = (Seed(f"s{at}", ids) for at, ids in enumerate((torch.tensor([0, 5]), [])))  # type: ignore[arg-type]
    write(lm, tmp_path / "arrays", params, arrays)  # type: ignore[arg-type]
    write(lm, tmp_path / "lists", params, [Seed("s0", [0, 5]), Seed("s1", [0])])
    assert pq.read_table(tmp_path / "arrays/data") == pq.read_table(tmp_path / "lists/data")
