"""Small sources of text, and the content of a prepared folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SPLITS = ("train", "test", "seeds")


def fish(count: int, start: int = 0) -> list[str]:
    """Return `count` distinct documents of 2 to 8 words."""
    return [f"fish {number}" + " swims" * (number % 7) for number in range(start, start + count)]


def jsonl(path: Path, texts: Iterable[str]) -> str:
    """Write texts as JSON lines; return the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(out: Path, split: str) -> list[str]:
    """Return the texts of a split."""
    return pq.read_table(out / f"{split}.parquet")["text"].to_pylist()


def split_of(out: Path) -> dict[str, str]:
    """Return the split of each text; assert that no text is in the corpus twice."""
    found = [(text, split) for split in SPLITS if (out / f"{split}.parquet").exists() for text in texts(out, split)]
    assert len(dict(found)) == len(found)
    return dict(found)


def manifest_of(out: Path) -> dict[str, Any]:
    """Return the manifest of a prepared corpus."""
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return found


def contents(out: Path) -> dict[str, bytes]:
    """Return the content of every file, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir()}
