"""Progress of long commands: a bar on a terminal or in a notebook, a line every few seconds elsewhere, or nothing."""

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from cdgen.errors import InputError
from cdgen.values import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

BYTES = "bytes"  # unit of a phase that is shown in megabytes
ITEMS = "items"  # unit of a phase whose rate is shown in units, not in tokens

_REFRESH = 0.1  # minimum seconds between two updates of a bar, since an update takes longer than reading a document
_PRIOR = 0.05  # weight of the expected number of tokens per unit, as a share of the units that are left


class Progress(Protocol):
    """Shows how far a command has come. One object may show several phases, one after another."""

    def begin(
        self, total: int | None, done: int = 0, *, unit: str, verb: str, tokens_per_unit: int | None = None
    ) -> None:
        """Start a phase.

        Args:
            total: number of units in the whole phase, or None if it is not known.
            done: number of units that were finished by an earlier command.
            unit: "documents", "continuations", "steps", :data:`ITEMS` or :data:`BYTES`.
            verb: "to write", "to train" or "to score"; for bytes "read", "written" or "tokenised".
            tokens_per_unit: number of tokens in a unit, or the greatest number if units differ. With it, the time left
                is estimated from tokens, which are counted more often than units.
        """

    def advance(self, units: int) -> None:
        """Count units that are finished."""

    def tokens(self, count: int) -> None:
        """Count tokens that were processed, including those of unfinished units."""

    def about(self, text: str) -> None:
        """Show a few words beside the rate, such as the current loss. A call also shows that work continues."""

    def note(self, text: str) -> None:
        """Report a finished part, such as a shard or a checkpoint."""

    def close(self) -> None:
        """End the display, whether or not the work is complete."""


class Silent:
    """Shows nothing."""

    def begin(
        self, total: int | None, done: int = 0, *, unit: str, verb: str, tokens_per_unit: int | None = None
    ) -> None:
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


class Pace:
    """Counts the units and tokens of a phase, and estimates the time left.

    The rate covers the time up to the last count, so a pause does not lower it before the pause is over.

    Args:
        total, done, tokens_per_unit: see :meth:`Progress.begin`.
    Attributes:
        done: finished units, including those of an earlier command.
        tokens: tokens that were counted in this phase.
    """

    def __init__(self, total: int | None, done: int, tokens_per_unit: int | None) -> None:
        self._total, self._before, self._per_unit = total, done, tokens_per_unit
        self.done, self.tokens = done, 0
        self._start = self._last = time.monotonic()

    def advance(self, units: int) -> None:
        """Count finished units."""
        self.done += units
        self._last = time.monotonic()

    def count(self, tokens: int) -> None:
        """Count processed tokens."""
        self.tokens += tokens
        self._last = time.monotonic()

    def per_second(self, count: float) -> float:
        """Return a count divided by the seconds since the phase began."""
        return count / max(self._last - self._start, 1e-9)

    def rate(self, unit: str) -> str:
        """Return the items per second of a phase of :data:`ITEMS`, the tokens per second of any other."""
        if unit != ITEMS:
            return f"{self.per_second(self.tokens):.0f} tokens/s"
        items = self.per_second(self.done - self._before)
        return f"{items:.1f} items/s" if items < 10 else f"{items:.0f} items/s"

    def seconds_left(self) -> float | None:
        """Return the estimated time left, or None if it is not known."""
        if self._total is None or self.done >= self._total:
            return None
        finished, units = self.done - self._before, self._total - self._before
        if self._per_unit and self.tokens:
            # Units may be shorter than expected, and the first to finish are the shortest. Their mean therefore has
            # little weight at first, and more as fewer units are left.
            prior = (units - finished) * _PRIOR
            per_unit = min(self._per_unit, (self._per_unit * prior + self.tokens) / (prior + finished))
            left, rate = max(units * per_unit - self.tokens, 0), self.per_second(self.tokens)
        else:
            left, rate = units - finished, self.per_second(finished)
        return left / rate if rate else None


class Lines:
    """Prints a line for every note, and one every few seconds in between.

    Args:
        stream: where the lines go.
        every: seconds between two lines.
    """

    def __init__(self, stream: TextIO, every: float = 5.0) -> None:
        self._stream, self._every = stream, every

    def begin(
        self, total: int | None, done: int = 0, *, unit: str, verb: str, tokens_per_unit: int | None = None
    ) -> None:
        """Start a phase, and say how much there is to do if units are counted."""
        self._total, self._before, self._unit, self._verb = total, done, unit, verb
        self._pace, self._about, self._last = Pace(total, done, tokens_per_unit), "", time.monotonic()
        if unit != BYTES:
            self._print(f"{total} {unit} {verb}, {done} already done")

    def advance(self, units: int) -> None:
        """Count finished units."""
        self._pace.advance(units)
        self._print_if_due()

    def tokens(self, count: int) -> None:
        """Count processed tokens."""
        self._pace.count(count)
        self._print_if_due()

    def about(self, text: str) -> None:
        """Put a few words beside the rate."""
        self._about = f", {text}"
        self._print_if_due()

    def note(self, text: str) -> None:
        """Print a line at once."""
        self._print(f"{text}; {self._state()}")

    def close(self) -> None:
        """Do nothing: every line is complete."""

    def _print_if_due(self) -> None:
        if time.monotonic() - self._last >= self._every:
            self._print(self._state())

    def _state(self) -> str:
        pace = self._pace
        if self._unit == BYTES:
            rate = pace.per_second(pace.done - self._before) / 1e6
            state = f"{pace.done / 1e6:.0f} MB {self._verb}, {rate:.0f} MB/s{self._about}"
        else:
            state = f"{pace.done} of {self._total} {self._unit}, {pace.rate(self._unit)}{self._about}"
        left = pace.seconds_left()
        return state if left is None else f"{state}, {_duration(left)} left"

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        print(line, file=self._stream, flush=True)


class Bar:
    """Shows a rich progress bar with the rate and the time left; it pulses while the total is not known."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._bar: RichProgress | None = None

    def begin(
        self, total: int | None, done: int = 0, *, unit: str, verb: str, tokens_per_unit: int | None = None
    ) -> None:
        """Replace the bar of the phase before, if any."""
        from rich.progress import Progress as RichProgress

        self.close()
        self._pace, self._about, self._last = Pace(total, done, tokens_per_unit), "", 0.0
        self._unit = unit
        self._bar = RichProgress(*_columns(unit, verb), console=self._console, transient=True)
        self._task = self._bar.add_task("", total=total, completed=done, rate="", about="", left="-:--:--")
        self._bar.start()

    def advance(self, units: int) -> None:
        """Count finished units."""
        self._pace.advance(units)
        self._update()

    def tokens(self, count: int) -> None:
        """Count processed tokens."""
        self._pace.count(count)
        self._update()

    def about(self, text: str) -> None:
        """Put a few words beside the rate."""
        self._about = f", {text}"
        self._update()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._last = 0.0  # so that the bar is updated now
        self._update()
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _update(self) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._last >= _REFRESH:
            self._last = now
            left = self._pace.seconds_left()
            self._bar.update(
                self._task,
                completed=self._pace.done,
                rate=self._pace.rate(self._unit),
                about=self._about,
                left="-:--:--" if left is None else _duration(left),
            )


def choose(quiet: bool) -> Progress:
    """Return the display that suits standard error: a bar on a terminal or in a notebook, else lines.

    Args:
        quiet: whether to show nothing.
    """
    if quiet:
        return Silent()
    if not sys.stderr.isatty() and not _is_notebook():
        return Lines(sys.stderr)
    from rich.console import Console

    return Bar(Console(stderr=True))


@contextmanager
def displayed(progress: Progress | bool | None) -> Iterator[Progress]:
    """Provide a display inside a context, and close it at the end of the context, even after an exception.

    Args:
        progress: True for the display that :func:`choose` returns; None or False to show nothing; or a display, which
            stays open.
    Raises:
        InputError: `progress` is something else.
    """
    if progress is not None and not isinstance(progress, bool):
        if not hasattr(progress, "begin"):
            raise InputError(f"progress = {shown(progress)}: use True, False or a display with the methods of Progress")
        yield progress
        return
    display = choose(quiet=not progress)
    try:
        yield display
    finally:
        display.close()


def _is_notebook() -> bool:
    """Return whether this is a notebook in which rich can show a bar, for which it needs ipywidgets."""
    if "IPython" not in sys.modules:  # spares the import of rich
        return False
    from rich.console import Console

    return Console().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def _columns(unit: str, verb: str) -> list["ProgressColumn"]:
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn

    left = TextColumn("{task.fields[left]}", style="progress.remaining", markup=False)
    if unit == BYTES:
        return [TextColumn(f"text {verb}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), left]
    rate = TextColumn("{task.fields[rate]}{task.fields[about]}", markup=False)
    return [TextColumn(unit), BarColumn(), MofNCompleteColumn(), rate, left]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
