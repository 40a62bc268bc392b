"""Choose seeds that generated corpora share, and read their rows out of the shards, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdgen.corpus.find import check_file
from cdgen.corpus.records import all_fields
from cdgen.errors import CorpusError, first_line
from cdgen.storage.folder import check_regular
from cdgen.storage.manifest import Manifest

_BUFFER = 1 << 20  # bytes of a Parquet column that are read at once
_BATCH = 1024  # rows of Parquet that are in memory at once


@dataclass(frozen=True)
class Seeds:
    """The seeds of a generated corpus.

    Attributes:
        hashes: uint64 [S], hashes of their names, ascending.
        rows: int64 [S], the row in the corpus that continues each seed for the first time, counted over all shards.
    """

    hashes: np.ndarray
    rows: np.ndarray


def read_seeds(folder: Path, manifest: Manifest) -> Seeds:
    """Read the seeds of a corpus. They take 16 bytes each.

    Raises:
        CorpusError: a shard is missing or altered, or has another number of rows than the manifest states.
    """
    hashes, rows, number, stated = [], [], 0, 0
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        check_file(path, shard["sha256"])
        of_shard: list[bytes] = []
        for row in _all_rows(path, ["seed_id", "continuation"]):
            if row["continuation"] == 0:
                of_shard.append(hashlib.blake2b(row["seed_id"].encode(), digest_size=8).digest())
                rows.append(number)
            number += 1
        stated += shard["rows"]
        if number != stated:  # rows are found by these numbers
            raise CorpusError(f"{folder}: the manifest states another number of rows for {shard['name']}; restore it")
        hashes.append(np.frombuffer(b"".join(of_shard), "<u8"))
    found = np.concatenate([np.empty(0, "<u8"), *hashes])
    order = np.argsort(found)
    return Seeds(found[order], np.array(rows, np.int64)[order])


def groups(corpora: Sequence[Seeds], count: int) -> list[list[int]]:
    """Return the indices of corpora that share enough seeds to show `count`, or all that one of them has."""
    found: list[list[int]] = []
    for index, seeds in enumerate(corpora):
        for group in found:
            least = min(count, len(seeds.hashes), *(len(corpora[other].hashes) for other in group))
            if len(_common([seeds, *(corpora[other] for other in group)])) >= max(least, 1):
                group.append(index)
                break
        else:
            found.append([index])
    return found


def choose(corpora: Sequence[Seeds], count: int) -> list[list[int]]:
    """Choose seeds that all of these corpora have: those with the smallest hashes.

    Returns:
        for each corpus, the rows of the chosen seeds. All lists have the seeds in the order of the first corpus.
    """
    chosen = _common(corpora)[:count]
    rows = [seeds.rows[np.searchsorted(seeds.hashes, chosen)] for seeds in corpora]
    order = np.argsort(rows[0])
    return [each[order].tolist() for each in rows]


def read(folder: Path, manifest: Manifest, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read rows of a generated corpus.

    Args:
        folder: the folder of the corpus.
        manifest: its manifest.
        rows: numbers of the rows, counted over all shards.
        columns: names of the columns.
    """
    wanted, start = sorted(set(rows)), 0
    found: dict[int, dict[str, Any]] = {}
    for shard in manifest["shards"]:
        of_shard = [row - start for row in wanted if start <= row < start + shard["rows"]]
        if of_shard:
            values = _some_rows(folder / shard["name"], of_shard, list(columns))
            found |= {start + row: value for row, value in zip(of_shard, values, strict=True)}
        start += shard["rows"]
    return [found[row] for row in rows]


def _common(corpora: Sequence[Seeds]) -> np.ndarray:
    """Return the hashes, ascending, of the seeds that all of these corpora have."""
    common = corpora[0].hashes
    for seeds in corpora[1:]:
        common = np.intersect1d(common, seeds.hashes, assume_unique=True)
    return common


def _all_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    if path.suffix != ".parquet":
        yield from (record.fields for record in all_fields(path))
        return
    for batch in _batches(path, columns):
        yield from batch.to_pylist()


def _some_rows(path: Path, rows: list[int], columns: list[str]) -> Iterator[dict[str, Any]]:
    """Iterate over rows of a shard, whose numbers ascend. Other rows are not turned into Python objects."""
    if path.suffix != ".parquet":
        wanted = set(rows)
        yield from (record.fields for at, record in enumerate(all_fields(path)) if at in wanted)
        return
    start = 0
    for batch in _batches(path, columns):
        inside = [row - start for row in rows if start <= row < start + batch.num_rows]
        if inside:
            yield from batch.take(pa.array(inside)).to_pylist()
        start += batch.num_rows


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    # Columns are read piece by piece, so that the size of a row group does not matter.
    check_regular(path)
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=_BATCH, columns=columns)
    except (pa.ArrowException, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise CorpusError(f"{path}: cannot be read: {first_line(error)}") from error
