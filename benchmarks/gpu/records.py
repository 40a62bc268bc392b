"""The results file: one JSON object per line, appended to by the parent process and by every job."""

import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Append one record with a single write. If the last line is incomplete, the record starts a new one."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = json.dumps(record | {"time": now}, default=str) + "\n"
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = "\n" + line
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(path: Path, start: int = 0) -> Iterator[Record]:
    """Yield the records from byte `start` on. Lines that are not JSON objects are skipped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
