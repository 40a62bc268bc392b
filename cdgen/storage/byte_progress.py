"""How far a preparation is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import sys
import time


class Progress:
    """Silent; the others derive from it."""

    def begin(self, what, total=None):
        """`what` starts: "read" or "written", of `total` bytes of text where that is known."""

    def advance(self, count):
        """`count` bytes of text more."""

    def close(self):
        """All is over, or broken off."""


class Lines(Progress):
    """A plain line every `every` seconds."""

    def __init__(self, stream, every=5.0):
        self._stream, self._every = stream, every

    def begin(self, what, total=None):
        self._what, self._total, self._done = what, total, 0
        self._start = self._last = time.monotonic()

    def advance(self, count):
        self._done += count
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        rate = self._done / (now - self._start)
        state = f"{self._done / 1e6:.0f} MB {self._what}, {rate / 1e6:.0f} MB/s"
        if self._total:
            left = round((self._total - self._done) / rate)
            state += f", {left // 60}:{left % 60:02d} left"
        print(state, file=self._stream, flush=True)


class Bar(Progress):
    """A rich progress bar; it pulses while the total is not known."""

    def __init__(self, console):
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._bar = RichProgress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._waiting = 0

    def begin(self, what, total=None):
        self._task = self._bar.add_task(f"text {what}", total=total)
        self._bar.start()

    def advance(self, count):
        self._waiting += count
        if self._waiting >= 1 << 20:  # a bar takes longer to update than a document to read
            self._bar.advance(self._task, self._waiting)
            self._waiting = 0

    def close(self):
        self._bar.stop()


def choose(quiet):
    """The progress that suits standard error."""
    if quiet:
        return Progress()
    if not sys.stderr.isatty():
        return Lines(sys.stderr)
    from rich.console import Console

    return Bar(Console(stderr=True))
