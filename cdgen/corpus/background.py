"""Call a function in a thread while the caller does other work."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

_Result = TypeVar("_Result")


class Background(Generic[_Result]):
    """Makes the calls of a function in a thread, in order.

    At the end of the context, all calls have been made. If the context ends with an error, the call in progress is
    completed, and the others are discarded.

    Args:
        function: the function to call.
        on_result: called with each result, in the caller's thread.
        most: greatest number of unfinished calls; a further one waits.
    """

    def __init__(self, function: Callable[..., _Result], on_result: Callable[[_Result], None], most: int = 2) -> None:
        self._function, self._on_result, self._most = function, on_result, most
        self._thread = ThreadPoolExecutor(1, "cdgen-background")
        self._calls: deque[Future[_Result]] = deque()

    def __enter__(self) -> "Background[_Result]":
        return self

    def call(self, *arguments: Any) -> None:
        """Add a call; wait while there are too many unfinished ones.

        Raises:
            Exception: what an earlier call raised.
        """
        while len(self._calls) >= self._most:
            self._end_first()
        self._calls.append(self._thread.submit(self._function, *arguments))

    def check(self) -> None:
        """Pass the results of finished calls to `on_result`, without waiting.

        Raises:
            Exception: what a call raised.
        """
        while self._calls and self._calls[0].done():
            self._end_first()

    def _end_first(self) -> None:
        self._on_result(self._calls.popleft().result())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._calls:
                self._end_first()
        finally:
            self._thread.shutdown(cancel_futures=True)
