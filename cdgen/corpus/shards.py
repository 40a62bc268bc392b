"""Encode the rows of a corpus as Parquet or JSON lines, with the same bytes for the same rows; split token ids."""

import gzip
import io
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

ROW = pa.schema(
    {
        "text": pa.string(),  # the document: prompt and continuation
        "token_ids": pa.list_(pa.int32()),  # tokens of prompt and continuation
        "prompt_length": pa.int32(),  # number of tokens in the prompt
        "seed_id": pa.string(),
        "continuation": pa.int32(),  # 0 .. n - 1
        "finish_reason": pa.string(),  # "stop", "length" or "error"
    }
)
LOGPROBS = ("logprob", "good_logprob", "bad_logprob")  # optional columns: a value for each token of the continuation
ROW_WITH_LOGPROBS = pa.schema([*ROW, *(pa.field(name, pa.list_(pa.float32())) for name in LOGPROBS)])
DOCUMENT = pa.schema({"seed_id": pa.string(), "continuation": pa.int32(), "document": pa.int32(), "text": pa.string()})
PREPARED = pa.schema({"id": pa.string(), "source": pa.string(), "text": pa.string()})  # a row of a prepared corpus

_REPEATED = ("seed_id", "finish_reason")  # columns of a generated corpus whose values repeat

FORMATS = {"parquet": ".parquet", "jsonl.gz": ".jsonl.gz"}


class Encoded(NamedTuple):
    """The content of a file, and how many bytes of memory its rows take as an Arrow table."""

    content: bytes
    arrow_bytes: int


def encode(rows: list[dict[str, Any]], schema: pa.Schema, format: str) -> Encoded:
    """Return a file's content; format is "parquet" or "jsonl.gz", and rows have the keys of `schema`.

    JSON has no infinite numbers and no NaN, so log-probabilities that are not finite are null there.
    """
    if format == "jsonl.gz":
        rows = [{key: _json(key, row[key]) for key in schema.names} for row in rows]
    table = pa.Table.from_pylist(rows, schema=schema)
    if format == "jsonl.gz":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        packed = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)  # no timestamp in the header
        return Encoded(packed, table.nbytes)
    buffer = io.BytesIO()
    # Dictionaries only help where values repeat: those of token ids and log-probabilities are larger than the values.
    repeated = [name for name in _REPEATED if name in schema.names]
    with pq.ParquetWriter(buffer, schema, compression="zstd", use_dictionary=repeated) as writer:
        if rows:  # otherwise there is no row group: datasets cannot read one without rows
            writer.write_table(table)
    return Encoded(buffer.getvalue(), table.nbytes)


def _json(name: str, value: Any) -> Any:
    """Return the value of a column for JSON, with null for log-probabilities that are not finite."""
    if name not in LOGPROBS or value is None:
        return value
    return [each if each is not None and math.isfinite(each) else None for each in value]


def split_at(ids: Iterable[int], marks: set[int | None]) -> list[list[int]]:
    """Cut token ids at every id that is in `marks`; leave out marks and empty pieces."""
    pieces: list[list[int]] = []
    piece: list[int] = []
    for token in ids:
        if token in marks:
            pieces.append(piece)
            piece = []
        else:
            piece.append(token)
    return [piece for piece in (*pieces, piece) if piece]
