"""Ctrl-C and SIGTERM: the first ends a run after its step, the second at once."""

import signal
import threading


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, by signal `number`, and has saved step `step`."""

    def __init__(self, number, step):
        super().__init__(f"saved as step {step}")
        self.number = number


class Signals:
    """While this context lasts `number` is that of the signal that came, or 0. Only the main thread is sent signals."""

    number = 0

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number, frame):
        if self.number:
            raise KeyboardInterrupt
        self.number = number
