"""The browser harness reports each fault that a page can have, and none on a page without faults."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.browser import axe, open_page, overflowing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Write = Callable[..., Path]
POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a page with this body and returns its path."""

    def write_page(body: str, head: str = "") -> Path:
        path = tmp_path / "page.html"
        text = f'<!doctype html><html lang="en"><meta charset="utf-8">{head}<title>A page</title><main>{body}</main>'
        path.write_text(text)
        return path

    return write_page


def test_a_page_without_faults(browser: "Browser", write: Write) -> None:
    """Wide content is allowed in a container that scrolls. A strict policy for scripts does not hinder the harness."""
    wide = '<h1>Title</h1><div style="overflow-x: auto" tabindex="0"><p style="width: 3000px">wide</p></div>'
    hidden = '<p style="position: absolute; left: -5000px">for screen readers</p>'
    image = '<svg width="20" height="20" aria-hidden="true"><rect x="-50" width="9000" height="5"/></svg>'
    with open_page(browser, write(wide + hidden + image, POLICY), width=390) as opened:
        opened.check()
        assert overflowing(opened.page) == []
        assert axe(opened.page) == []
        opened.check()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<script>console.debug('a message')</script>", "console debug: a message"),
        ("<script>console.warn('a warning')</script>", "console warning: a warning"),
        ("<script>throw new Error('not caught')</script>", "error: not caught"),
        ("<script>alert('a dialog')</script>", "dialog: a dialog"),
        ('<img alt="" src="https://example.com/a.png">', "request: https://example.com/a.png"),
        ('<img alt="" src="beside.png">', "beside.png"),
        ("<script>fetch('http://127.0.0.1:9/later')</script>", "request: http://127.0.0.1:9/later"),
    ],
)
def test_faults_are_recorded(browser: "Browser", write: Write, body: str, expected: str) -> None:
    with open_page(browser, write(body)) as opened:
        with pytest.raises(AssertionError):
            opened.check()
        assert any(expected in fault for fault in opened.faults), opened.faults


def test_a_violation_of_the_policy_is_recorded(browser: "Browser", write: Write) -> None:
    with open_page(browser, write("<script>document.title = 'executed'</script>", POLICY)) as opened:
        assert opened.page.title() == "A page"
        assert any("Content Security Policy" in fault for fault in opened.faults), opened.faults


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('<p id="box" style="width: 3000px">wide</p>', "p#box: from"),
        (f'<p class="a b">{"long" * 300}</p>', 'p.a.b (text "longlong'),
        ('<p dir="rtl"><b style="display: inline-block; width: 600px">leftwards</b></p>', "b: from -"),
    ],
)
def test_overflow_is_described(browser: "Browser", write: Write, body: str, expected: str) -> None:
    with open_page(browser, write(body), width=390) as opened:
        assert any(one.startswith(expected) for one in overflowing(opened.page)), overflowing(opened.page)


def test_a_page_wider_than_the_window_is_described(browser: "Browser", write: Write) -> None:
    body = '<style>main::after { content: ""; display: block; width: 2000px; height: 1px }</style>'
    with open_page(browser, write(body), width=390) as opened:
        assert overflowing(opened.page) == ["the page: 2008 px wide in a window of 390 px"]


def test_violations_of_accessibility_are_described(browser: "Browser", write: Write) -> None:
    body = '<h1>Title</h1><button></button><p style="color: #eee; background: #fff">pale</p>'
    with open_page(browser, write(body)) as opened:
        found = axe(opened.page)
    assert [one.partition(" ")[0] for one in found] == ["button-name", "color-contrast"]
    assert "<button></button>" in found[0]


def test_scheme_width_and_options(browser: "Browser", write: Write) -> None:
    body = "<style>@media (prefers-color-scheme: dark) { body { background: rgb(1, 2, 3) } }</style>"
    background = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, write(body), width=768, scheme="dark", reduced_motion="reduce") as opened:
        assert opened.page.evaluate(background) == "rgb(1, 2, 3)"
        assert opened.page.evaluate("innerWidth") == 768
        assert opened.page.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches")
    scripted = f"{body}<p id=text></p><script>text.textContent = 'by a script'</script>"
    with open_page(browser, write(scripted), java_script_enabled=False) as opened:
        opened.check()
        assert opened.page.evaluate(background) == "rgba(0, 0, 0, 0)"
        assert opened.page.text_content("#text") == ""
