"""Ctrl-C and SIGTERM: the first signal stops training after the current step, a second one stops it at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after it saved a checkpoint.

    Args:
        number: the signal, such as `signal.SIGTERM`.
        step: the step of the checkpoint.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"saved as step {step}")
        self.number = number


class Signals:
    """Context that catches SIGINT and SIGTERM. It has no effect outside the main thread, which receives all signals.

    Attributes:
        number: the signal that arrived, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[signal.Signals, Any] = {}  # handlers to restore

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {one: signal.signal(one, self._note) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one, handler in self._handlers.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
