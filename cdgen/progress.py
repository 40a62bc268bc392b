"""How a long run tells where it is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import sys
import time


class Progress:
    """Silent; the others derive from it. Rates count the tokens that were drawn for rows still running."""

    def begin(self, rows, done):
        """A run of `rows` documents starts, of which `done` were finished by an earlier one."""

    def tokens(self, count):
        """One step of the decode loop drew `count` tokens."""

    def batch(self, rows):
        """A batch of `rows` documents is finished."""

    def shard(self, name, rows, new_tokens):
        """A shard is written."""

    def close(self):
        """The run is over, or broken off."""


class Lines(Progress):
    """A plain line for each shard, and one every `every` seconds between."""

    def __init__(self, stream, every=5.0):
        self._stream, self._every = stream, every

    def begin(self, rows, done):
        self._rows, self._done = rows, done
        self._start = self._last = time.monotonic()
        self._drawn, self._written = 0, 0  # in this run
        self._say(f"{rows} documents to write, {done} done before")

    def tokens(self, count):
        self._drawn += count
        if time.monotonic() - self._last >= self._every:
            self._say(self._state())

    def batch(self, rows):
        self._written += rows

    def shard(self, name, rows, new_tokens):
        self._say(f"{name}: {rows} documents, {new_tokens} new tokens; {self._state()}")

    def _state(self):
        seconds = max(time.monotonic() - self._start, 1e-9)
        finished = self._done + self._written
        left = self._rows - finished
        state = f"{finished} of {self._rows} documents, {self._drawn / seconds:.0f} tokens/s"
        if left and self._written:
            state += f", {_duration(left * seconds / self._written)} left"
        return state

    def _say(self, line):
        self._last = time.monotonic()
        print(line, file=self._stream, flush=True)


class Bar(Progress):
    """A rich progress bar with tokens a second and the time left."""

    def __init__(self, console):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("documents"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=console, transient=True)
        self._drawn = 0

    def begin(self, rows, done):
        self._task = self._bar.add_task("documents", total=rows, completed=done, rate=0.0)
        self._start = time.monotonic()
        self._bar.start()

    def tokens(self, count):
        self._drawn += count
        self._bar.update(self._task, rate=self._drawn / max(time.monotonic() - self._start, 1e-9))

    def batch(self, rows):
        self._bar.advance(self._task, rows)

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


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
