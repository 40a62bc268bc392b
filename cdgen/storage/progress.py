"""How a long run tells where it is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import sys
import time


class Progress:
    """Silent; the others derive from it.

    A corpus counts documents, and in its rates the tokens drawn for rows still running; training counts steps.
    """

    def begin(self, rows, done):
        """A run of `rows` documents or steps starts, of which `done` were finished by an earlier one."""

    def tokens(self, count):
        """One step of the loop dealt with `count` tokens."""

    def batch(self, rows):
        """A batch of `rows` documents, or so many steps, is finished."""

    def about(self, text):
        """A few words on how it goes, to stand beside the rate."""

    def note(self, text):
        """Something is finished that is worth a line."""

    def shard(self, name, rows, new_tokens):
        """A shard is written."""

    def close(self):
        """The run is over, or broken off."""


class Lines(Progress):
    """A plain line for each shard or checkpoint, and one every `every` seconds between."""

    def __init__(self, stream, every=5.0, unit="documents", verb="to write"):
        self._stream, self._every, self._unit, self._verb = stream, every, unit, verb
        self._about = ""

    def begin(self, rows, done):
        self._rows, self._done = rows, done
        self._start = self._last = time.monotonic()
        self._drawn, self._written = 0, 0  # in this run
        self._say(f"{rows} {self._unit} {self._verb}, {done} done before")

    def tokens(self, count):
        self._drawn += count
        if time.monotonic() - self._last >= self._every:
            self._say(self._state())

    def batch(self, rows):
        self._written += rows

    def about(self, text):
        self._about = f", {text}"

    def note(self, text):
        self._say(f"{text}; {self._state()}")

    def shard(self, name, rows, new_tokens):
        self.note(f"{name}: {rows} documents, {new_tokens} new tokens")

    def _state(self):
        seconds = max(time.monotonic() - self._start, 1e-9)
        finished = self._done + self._written
        left = self._rows - finished
        state = f"{finished} of {self._rows} {self._unit}, {self._drawn / seconds:.0f} tokens/s{self._about}"
        if left and self._written:
            state += f", {_duration(left * seconds / self._written)} left"
        return state

    def _say(self, line):
        self._last = time.monotonic()
        print(line, file=self._stream, flush=True)


class Bar(Progress):
    """A rich progress bar with tokens a second and the time left."""

    def __init__(self, console, unit="documents"):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} tokens/s{task.fields[about]}"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=console, transient=True)
        self._drawn = 0

    def begin(self, rows, done):
        self._task = self._bar.add_task("", total=rows, completed=done, rate=0.0, about="")
        self._start = time.monotonic()
        self._bar.start()

    def tokens(self, count):
        self._drawn += count
        self._bar.update(self._task, rate=self._drawn / max(time.monotonic() - self._start, 1e-9))

    def batch(self, rows):
        self._bar.advance(self._task, rows)

    def about(self, text):
        self._bar.update(self._task, about=f", {text}")

    def note(self, text):
        self._bar.console.print(text, highlight=False)

    def close(self):
        self._bar.stop()


def choose(quiet, unit="documents", verb="to write"):
    """The progress that suits standard error."""
    if quiet:
        return Progress()
    if not sys.stderr.isatty():
        return Lines(sys.stderr, unit=unit, verb=verb)
    from rich.console import Console

    return Bar(Console(stderr=True), unit)


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
