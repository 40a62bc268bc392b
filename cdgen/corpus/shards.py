"""Rows of a corpus as Parquet or JSON lines, the same bytes for the same rows; and documents cut out of them."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

ROW = pa.schema(
    {
        "text": pa.string(),  # prompt and continuation: the document
        "token_ids": pa.list_(pa.int32()),  # of both, everything drawn
        "prompt_length": pa.int32(),  # tokens
        "seed_id": pa.string(),
        "continuation": pa.int32(),  # 0 .. n - 1
        "finish_reason": pa.string(),  # "stop" or "length"
    }
)
LOGPROBS = ("logprob", "good_logprob", "bad_logprob")  # of the tokens drawn, where they were asked for
ROW_WITH_LOGPROBS = pa.schema([*ROW, *(pa.field(name, pa.list_(pa.float32())) for name in LOGPROBS)])
DOCUMENT = pa.schema({"seed_id": pa.string(), "continuation": pa.int32(), "document": pa.int32(), "text": pa.string()})

FORMATS = {"parquet": ".parquet", "jsonl.gz": ".jsonl.gz"}


def encode(rows, schema, format):
    """Bytes of a file with these rows (dicts with the keys of `schema`); format "parquet" or "jsonl.gz"."""
    if format == "jsonl.gz":
        lines = (json.dumps({key: row[key] for key in schema.names}, ensure_ascii=False) for row in rows)
        return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)  # no time of day in the header
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def split_at(ids, marks):
    """Cut a list of token ids at every id in the set `marks`; marks and empty pieces are left out."""
    pieces, piece = [], []
    for token in ids:
        if token in marks:
            pieces.append(piece)
            piece = []
        else:
            piece.append(token)
    return [piece for piece in (*pieces, piece) if piece]
