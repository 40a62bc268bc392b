"""The context of a job: its device, its time limit, and the results file."""

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import records

BROKEN = 3  # exit status of a job whose CUDA context can no longer be used
MARGIN = 3  # seconds before the limit at which a job starts no more cases, and a stuck one prints its traceback


def in_one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


@dataclass
class Context:
    """The device and the time limit of a job, and the file for its results.

    Attributes:
        seconds: time limit, counted from `started`.
        device: "cuda", or "cpu" in a dry run, which uses tiny shapes.
        started: time.monotonic() at the start of the job.
    """

    part: str
    job: str
    out: Path
    seconds: float
    device: torch.device
    started: float = field(default_factory=time.monotonic)

    @property
    def dry(self) -> bool:
        """Whether this is a dry run."""
        return self.device.type == "cpu"

    @property
    def left(self) -> float:
        """Seconds until the job is killed."""
        return self.seconds - (time.monotonic() - self.started)

    def record(self, kind: str, **fields: Any) -> None:
        """Append a record to the results file."""
        records.append(self.out, {"part": self.part, "job": self.job, "kind": kind} | fields)

    def plan(self, names: Iterable[str]) -> None:
        """Announce results, so that missing ones can be reported by name."""
        self.record("planned", names=list(names))

    def each(self, cases: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Announce named cases and yield them, until the time limit is near."""
        self.plan(cases)
        for name, case in cases.items():
            if self.left < MARGIN:
                return
            yield name, case

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[records.Record]:
        """Run one case, in a `with` block that fills the yielded record.

        Fields of the record: `status` (default "ok"), `line` for the summary, and figures. After an exception the
        status is "failed" and the job continues, unless CUDA can no longer be used.
        """
        found: records.Record = {"status": "ok"}
        start, fatal = time.monotonic(), False
        try:
            yield found
        except Exception as error:
            trace = traceback.format_exc()[-2000:]
            found |= {"status": "failed", "failure": in_one_line(error), "traceback": trace}
            del error
            fatal = self._is_broken()
        self.record("result", name=name, took=round(time.monotonic() - start, 3), **found)
        if fatal:
            self._exit(BROKEN)
        if not self.dry:
            gc.collect()
            torch.cuda.empty_cache()

    def _is_broken(self) -> bool:
        if self.dry:
            return False
        try:
            torch.cuda.synchronize()
            return torch.ones(1, device=self.device).add_(1).item() != 2
        except Exception:
            return True

    def _exit(self, status: int) -> None:
        """Exit immediately: with a broken CUDA context, a normal exit may hang."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
