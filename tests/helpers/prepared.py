"""Small sources of text, and what a prepared folder holds."""

import json

import pyarrow.parquet as pq

SPLITS = ("train", "test", "seeds")


def fish(count, start=0):
    """So many distinct documents of 2 to 8 words."""
    return [f"fish {number}" + " swims" * (number % 7) for number in range(start, start + count)]


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(out, split):
    return pq.read_table(out / f"{split}.parquet")["text"].to_pylist()


def split_of(out):
    """The split of each text; asserts that no text is in the corpus twice."""
    found = [(text, split) for split in SPLITS if (out / f"{split}.parquet").exists() for text in texts(out, split)]
    assert len(dict(found)) == len(found)
    return dict(found)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}
