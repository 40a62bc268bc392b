"""Progress of long commands: a bar on a terminal, a line every few seconds elsewhere, or nothing."""

import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

BYTES = "bytes"  # unit of a phase that is shown in megabytes

_REFRESH = 0.1  # minimum seconds between two updates of a bar, since an update takes longer than reading a document


class Progress(Protocol):
    """Shows how far a command has come. One object may show several phases, one after another."""

    def begin(self, total: int | None, done: int = 0, *, unit: str, verb: str) -> None:
        """Start a phase.

        Args:
            total: number of units in the whole phase, or None if it is not known.
            done: number of units that were finished by an earlier command.
            unit: "documents", "steps" or :data:`BYTES`.
            verb: "to write" or "to train"; for bytes "read" or "written".
        """

    def advance(self, units: int) -> None:
        """Count units that are finished."""

    def tokens(self, count: int) -> None:
        """Count tokens that were processed, including those of unfinished units."""

    def about(self, text: str) -> None:
        """Show a few words beside the rate, such as the current loss."""

    def note(self, text: str) -> None:
        """Report a finished part, such as a shard or a checkpoint."""

    def close(self) -> None:
        """End the display, whether or not the work is complete."""


class Silent:
    """Shows nothing."""

    def begin(self, total: int | None, done: int = 0, *, unit: str, verb: str) -> None:
        """Ignore the start of a phase."""

    def advance(self, units: int) -> None:
        """Ignore finished units."""

    def tokens(self, count: int) -> None:
        """Ignore processed tokens."""

    def about(self, text: str) -> None:
        """Ignore the text."""

    def note(self, text: str) -> None:
        """Ignore the text."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """Prints a line for every note, and one every few seconds in between.

    Args:
        stream: where the lines go.
        every: seconds between two lines.
    """

    def __init__(self, stream: TextIO, every: float = 5.0) -> None:
        self._stream, self._every = stream, every

    def begin(self, total: int | None, done: int = 0, *, unit: str, verb: str) -> None:
        """Start a phase, and say how much there is to do if units are counted."""
        self._total, self._before, self._unit, self._verb = total, done, unit, verb
        self._advanced, self._tokens, self._about = 0, 0, ""
        self._start = self._last = time.monotonic()
        if unit != BYTES:
            self._print(f"{total} {unit} {verb}, {done} already done")

    def advance(self, units: int) -> None:
        """Count finished units."""
        self._advanced += units
        self._print_if_due()

    def tokens(self, count: int) -> None:
        """Count processed tokens."""
        self._tokens += count
        self._print_if_due()

    def about(self, text: str) -> None:
        """Put a few words beside the rate."""
        self._about = f", {text}"

    def note(self, text: str) -> None:
        """Print a line at once."""
        self._print(f"{text}; {self._state()}")

    def close(self) -> None:
        """Do nothing: every line is complete."""

    def _print_if_due(self) -> None:
        if time.monotonic() - self._last >= self._every:
            self._print(self._state())

    def _state(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        done = self._before + self._advanced
        if self._unit == BYTES:
            state = f"{done / 1e6:.0f} MB {self._verb}, {self._advanced / seconds / 1e6:.0f} MB/s{self._about}"
        else:
            state = f"{done} of {self._total} {self._unit}, {self._tokens / seconds:.0f} tokens/s{self._about}"
        left = (self._total or done) - done
        return f"{state}, {_duration(left * seconds / self._advanced)} left" if left and self._advanced else state

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        print(line, file=self._stream, flush=True)


class Bar:
    """Shows a rich progress bar with the rate and the time left; it pulses while the total is not known."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._bar: RichProgress | None = None

    def begin(self, total: int | None, done: int = 0, *, unit: str, verb: str) -> None:
        """Replace the bar of the phase before, if any."""
        from rich.progress import Progress as RichProgress

        self.close()
        self._done, self._tokens, self._about = done, 0, ""
        self._start, self._last = time.monotonic(), 0.0
        self._bar = RichProgress(*_columns(unit, verb), console=self._console, transient=True)
        self._task = self._bar.add_task("", total=total, completed=done, rate=0.0, about="")
        self._bar.start()

    def advance(self, units: int) -> None:
        """Count finished units."""
        self._done += units
        self._update()

    def tokens(self, count: int) -> None:
        """Count processed tokens."""
        self._tokens += count
        self._update()

    def about(self, text: str) -> None:
        """Put a few words beside the rate."""
        self._about = f", {text}"

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _update(self) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._last >= _REFRESH:
            self._last = now
            rate = self._tokens / max(now - self._start, 1e-9)
            self._bar.update(self._task, completed=self._done, rate=rate, about=self._about)


def choose(quiet: bool) -> Progress:
    """Return the display that suits standard error: a bar on a terminal, else lines; nothing if `quiet`."""
    if quiet:
        return Silent()
    if not sys.stderr.isatty():
        return Lines(sys.stderr)
    from rich.console import Console

    return Bar(Console(stderr=True))


def _columns(unit: str, verb: str) -> list["ProgressColumn"]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    if unit == BYTES:
        counted: list[ProgressColumn] = [TextColumn(f"text {verb}"), BarColumn(), DownloadColumn()]
        return [*counted, TransferSpeedColumn(), TimeRemainingColumn()]
    rate = TextColumn("{task.fields[rate]:.0f} tokens/s{task.fields[about]}")
    return [TextColumn(unit), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
