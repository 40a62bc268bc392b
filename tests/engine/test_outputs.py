"""How results are shown on a terminal and by IPython."""

from collections.abc import Iterator
from contextlib import contextmanager

from cdgen import CompletionOutput, RequestOutput

LONG = "word\n" * 100


class Printer:
    """Stands for IPython's pretty printer, with the methods that are used."""

    def __init__(self) -> None:
        self.shown, self._indent = "", 0

    def text(self, text: str) -> None:
        self.shown += text

    def break_(self) -> None:
        self.shown += "\n" + " " * self._indent

    @contextmanager
    def group(self, indent: int, start: str, end: str) -> Iterator[None]:
        self.text(start)
        self._indent += indent
        yield
        self._indent -= indent
        self.text(end)


def request(n: int) -> RequestOutput:
    outputs = [CompletionOutput(index, f" text {index}", [5] * 400, "length") for index in range(n)]
    return RequestOutput("A prompt", [1, 2, 3], outputs)


def test_a_continuation_is_one_short_line() -> None:
    output = CompletionOutput(2, LONG, [5] * 1400, "length")
    assert repr(output) == (
        "CompletionOutput(index=2, text='" + "word\\n" * 12 + "'..., token_ids=<1,400 tokens>, finish_reason='length')"
    )
    failed = CompletionOutput(0, None, [5], "error", None, "all tokens are banned")
    assert repr(failed) == (
        "CompletionOutput(index=0, text=None, token_ids=<1 token>, finish_reason='error', "
        "error='all tokens are banned')"
    )


def test_a_request_shows_its_first_continuations() -> None:
    assert repr(request(1)) == (
        "RequestOutput(prompt='A prompt', prompt_token_ids=<3 tokens>, outputs=[CompletionOutput(index=0, "
        "text=' text 0', token_ids=<400 tokens>, finish_reason='length')])"
    )
    assert repr(request(2)).endswith(", finish_reason='length')])") and "more" not in repr(request(3))
    assert repr(request(1003)).endswith(", finish_reason='length'), <1,000 more>])")


def test_ipython_shows_a_request_on_several_lines() -> None:
    printer = Printer()
    request(4)._repr_pretty_(printer, False)
    first, *outputs, last = printer.shown.splitlines()
    assert first == "RequestOutput(prompt='A prompt', prompt_token_ids=<3 tokens>, outputs=["
    assert outputs == [f"  {one!r}," for one in request(3).outputs] and last == "  <1 more>,])"
