"""The progress of `ContrastiveLM.generate`: a bar on terminals and in notebooks, lines elsewhere, or a callback."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cdgen.engine.outputs import CompletionOutput
from cdgen.errors import InputError
from cdgen.storage.progress import choose
from cdgen.values import shown


class Callbacks(NamedTuple):
    """What is called while sequences are decoded; see :meth:`cdgen.ContrastiveLM.continue_sequences`."""

    on_finished: Callable[[int, CompletionOutput], None]
    on_tokens: Callable[[int], None]


@contextmanager
def progress_shown(
    progress: bool | Callable[[int], None] | None,
    total: int,
    max_tokens: int | None,
    on_finished: Callable[[int, CompletionOutput], None],
) -> Iterator[Callbacks]:
    """Return a context whose callbacks show the progress; the display disappears when it ends, even by an exception.

    Args:
        progress: see :meth:`cdgen.ContrastiveLM.generate`.
        total: number of continuations.
        max_tokens: greatest number of tokens of a continuation, from which the time left is estimated; None if unknown.
        on_finished: called by the callback of the same name.
    Raises:
        InputError: `progress` is something else.
    """
    if callable(progress):
        yield Callbacks(on_finished, progress)
        return
    if progress is not None and not isinstance(progress, bool):
        raise InputError(f"progress = {shown(progress)}: use True, False or a function that takes a number of tokens")
    display = choose(quiet=not progress)

    def finished(place: int, output: CompletionOutput) -> None:
        on_finished(place, output)
        display.advance(1)

    try:
        display.begin(total, unit="continuations", verb="to write", tokens_per_unit=max_tokens)
        yield Callbacks(finished, display.tokens)
    finally:
        display.close()
