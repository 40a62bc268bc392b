"""Check the rows of a generated corpus against its manifest, in bounded memory."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdgen.corpus import shards
from cdgen.corpus.seeds import Fingerprint, Seed
from cdgen.corpus.text_files import lines
from cdgen.errors import InputError, first_line
from cdgen.storage.progress import Progress

_BATCH = 1024  # rows in memory at once
_REASONS = ("stop", "length", "error")

Key = tuple[str, int]  # a row's seed and the number of its continuation


class Faulty(Exception):
    """What is wrong with a file, without its name."""


class Rows:
    """The rows of a corpus, shard by shard, in order. It keeps the prompt of one seed.

    Args:
        settings: the settings in the corpus's manifest.
        total: number of rows of the complete corpus.
    """

    def __init__(self, settings: dict[str, Any], total: int) -> None:
        self._settings, self._total = settings, total
        self._schema = shards.ROW_WITH_LOGPROBS if settings.get("logprobs") else shards.ROW
        self._next = 0  # the row that would follow the last one
        self._seed: Seed | None = None  # the seed of the last row
        self._fingerprint = Fingerprint()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all seeds so far, which holds if no shard was left out."""
        return str(self._fingerprint)

    def check(self, path: Path, shard: dict[str, Any], progress: Progress) -> list[Key]:
        """Check a shard that follows those checked before; some may be left out.

        Args:
            path: its file.
            shard: its entry in the manifest.
            progress: receives the bytes that are read.
        Returns:
            The seed and continuation of every row.
        Raises:
            Faulty: the rows are not those that the manifest states.
        """
        size, number = self._settings["shard_size"], shard["number"]
        start = number * size
        if start != self._next:
            self._seed = None  # a shard was left out, which may end with a part of this shard's first seed
        self._next = start
        keys: list[Key] = []
        tokens = new_tokens = errors = 0
        for batch in batches(path, self._settings["format"], self._schema):
            lengths, prompts = _lengths(batch["token_ids"]), batch["prompt_length"].to_numpy(zero_copy_only=False)
            keys += self._rows(batch, lengths, prompts)
            tokens, new_tokens = tokens + int(lengths.sum()), new_tokens + int((lengths - prompts).sum())
            errors += sum(reason == "error" for reason in batch["finish_reason"].to_pylist())
        found = {"rows": len(keys), "tokens": tokens, "new_tokens": new_tokens, "errors": errors}
        for name, count in found.items():
            if count != shard[name]:
                raise Faulty(f"has {name} = {count}, but the manifest states {shard[name]}")
        if len(keys) != min(size, self._total - start):
            raise Faulty(f"has {len(keys)} rows, but this shard should have {min(size, self._total - start)}")
        progress.advance(path.stat().st_size)
        return keys

    def _rows(self, batch: pa.RecordBatch, lengths: np.ndarray, prompts: np.ndarray) -> Iterator[Key]:
        """Check the rows of a batch; yield their keys."""
        ids = batch["token_ids"].flatten().to_numpy(zero_copy_only=False)
        self._check_values(batch, ids, lengths, prompts)
        starts = np.cumsum(lengths) - lengths
        seed_ids, continuations = batch["seed_id"].to_pylist(), batch["continuation"].to_pylist()
        for seed_id, continuation, start, length in zip(seed_ids, continuations, starts, prompts, strict=True):
            row, wanted = self._next, self._next % self._settings["n"]
            if continuation != wanted:
                raise Faulty(f"row {row} of the corpus is continuation {continuation} of its seed, not {wanted}")
            seed = Seed(seed_id, ids[start : start + length].tolist())
            if wanted == 0:
                self._fingerprint.add(seed)
                if self._seed is not None and seed_id == self._seed.id:
                    raise Faulty(f"row {row} of the corpus repeats the seed {seed_id!r}")
            elif self._seed is not None and seed != self._seed:
                raise Faulty(f"row {row} of the corpus has another seed or prompt than the row before it")
            self._seed, self._next = seed, row + 1
            yield seed_id, continuation

    def _check_values(self, batch: pa.RecordBatch, ids: np.ndarray, lengths: np.ndarray, prompts: np.ndarray) -> None:
        """Check the values of a batch that do not depend on other rows."""
        new, most = lengths - prompts, self._settings["max_tokens"]
        if (prompts < 0).any() or (new < 0).any():
            raise Faulty("has a prompt_length that is not between 0 and the number of tokens")
        if most is not None and (new > most).any():
            raise Faulty(f"has a continuation of {new.max()} tokens, more than max_tokens = {most}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self._settings["vocab_size"]:
            raise Faulty(f"has a token id that is not in the vocabulary of {self._settings['vocab_size']} tokens")
        if others := {*batch["finish_reason"].to_pylist()} - {*_REASONS}:
            raise Faulty(f"has a finish_reason {sorted(others)[0]!r}, which is none of {', '.join(_REASONS)}")
        for name in self._schema.names:
            if name in shards.LOGPROBS and (_lengths(batch[name]) != new).any():
                raise Faulty(f"has a list in the column {name} whose length is not that of the continuation")


def check_documents(path: Path, format: str, rows: int, keys: list[Key]) -> None:
    """Check the documents of a shard: they are those of its texts, in order, numbered from 0, and not empty.

    Args:
        path: their file.
        format: its format.
        rows: number of documents in the manifest.
        keys: the seed and continuation of every text of the shard.
    Raises:
        Faulty: the documents are others.
    """
    left, count = iter(keys), 0
    last: Key | None = None
    number = 0  # number of the last document within its text
    for batch in batches(path, format, shards.DOCUMENT):
        columns = (batch[name].to_pylist() for name in shards.DOCUMENT.names)
        for seed_id, continuation, document, text in zip(*columns, strict=True):
            key = (seed_id, continuation)
            number = number + 1 if key == last else 0
            if key != last and key not in left:  # this moves `left` to the text
                raise Faulty(f"document {count} is of no text of its shard, or not in their order")
            if document != number or not text.strip():
                raise Faulty(f"document {count} of the file is empty, or its number is not {number}")
            last, count = key, count + 1
    if count != rows:
        raise Faulty(f"has {count} documents, but the manifest states {rows}")


def batches(path: Path, format: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Iterate over the rows of a file in batches.

    Args:
        path: the file.
        format: "parquet" or "jsonl.gz".
        schema: the columns that it should have.
    Raises:
        Faulty: the file cannot be read, has other columns, or lacks a value.
    """
    try:
        for batch in (_from_parquet if format == "parquet" else _from_jsonl)(path, schema):
            for name in schema.names:
                if batch[name].null_count:
                    raise Faulty(f"has a null in the column {name}")
            yield batch
    except (OSError, ValueError, pa.ArrowException, InputError) as error:
        raise Faulty(f"cannot be read: {first_line(error)}") from error


def _from_parquet(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        if not file.schema_arrow.equals(schema):
            raise Faulty(f"has the columns {', '.join(file.schema_arrow.names)} and not {', '.join(schema.names)}")
        yield from file.iter_batches(batch_size=_BATCH)


def _from_jsonl(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = map(json.loads, lines(path))
    while part := list(islice(rows, _BATCH)):
        for row in part:
            if not isinstance(row, dict) or list(row) != schema.names:
                raise Faulty(f"has a line without the fields {', '.join(schema.names)}")
        yield pa.RecordBatch.from_pylist(part, schema=schema)


def _lengths(column: pa.ListArray) -> np.ndarray:
    return np.diff(column.offsets.to_numpy()).astype(np.int64)
