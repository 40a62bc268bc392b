"""Ctrl-C and SIGTERM: the first signal stops training after the current step, a second one stops it at once."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("cdgen")


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal.

    Args:
        number: the signal, such as `signal.SIGTERM`.
        state: a few words about what is saved.
    """

    def __init__(self, number: int, state: str) -> None:
        super().__init__(state)
        self.number = number


class Signals:
    """Context that catches SIGINT and SIGTERM. It has no effect outside the main thread, which receives all signals.

    Args:
        acknowledge: log a warning as soon as the first signal arrives. Only one of several processes should.
    Attributes:
        number: the signal that arrived, or 0.
    """

    def __init__(self, acknowledge: bool = True) -> None:
        self.number = 0
        self._acknowledge = acknowledge
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
            raise Interrupted(number, "finished checkpoints are kept")
        self.number = number
        if self._acknowledge:
            again = "press Ctrl-C again" if number == signal.SIGINT else "send the signal again"
            log.warning("stopping after this step; %s to stop now", again)
