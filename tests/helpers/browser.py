"""Pages in headless Chromium: what they print and request, what is wider than the screen, and what axe-core finds."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
AXE = Path(sys.prefix) / "axe" / "node_modules" / "axe-core" / "axe.min.js"

# Yields what reaches beyond the left or right edge of the window: elements, and text that leaves its element. What a
# container scrolls or an SVG image clips does not count, nor does what is hidden off screen on purpose.
OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth;
    const beyond = (box) => box.width > 0 && box.right > 0 && (box.right > width + 1 || box.left < -1);
    const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const isInside = (element) => {
        for (let outer = element.parentElement; outer && outer !== document.body; outer = outer.parentElement) {
            if (outer.tagName === "svg" || scrolls(outer)) return true;
        }
        return false;
    };
    const found = [];
    const report = (element, box, what) => {
        if (!beyond(box) || isInside(element)) return;
        const name = element.tagName.toLowerCase() + (element.id && "#" + element.id)
            + [...element.classList].map((one) => "." + one).join("");
        found.push(`${name}${what}: from ${Math.round(box.left)} to ${Math.round(box.right)} px of ${width} px`);
    };
    for (const element of document.body.querySelectorAll("*")) report(element, element.getBoundingClientRect(), "");
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (texts.nextNode()) {
        const text = texts.currentNode;
        if (!text.data.trim() || scrolls(text.parentElement)) continue;
        range.selectNodeContents(text);
        report(text.parentElement, range.getBoundingClientRect(), ` (text "${text.data.trim().slice(0, 30)}")`);
    }
    const whole = document.documentElement.scrollWidth;
    return whole > width ? [`the page: ${whole} px wide in a window of ${width} px`, ...found] : found;
}"""

RUN_AXE = """async () => {
    const {violations} = await axe.run(document, {resultTypes: ["violations"]});
    return violations.filter((one) => ["serious", "critical"].includes(one.impact)).map((one) =>
        `${one.id} (${one.impact}): ${one.help}: ` + one.nodes.slice(0, 5).map((node) => node.html).join(" | "));
}"""


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Start Chromium once per process."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (`make browser`)")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"there is no program {' or '.join(PROGRAMS)} (Debian's package chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--disable-quic"])
        yield started
        started.close()


class OpenedPage:
    """A page, and what it should not have done.

    Attributes:
        page: playwright's page.
        faults: console messages of any level, uncaught errors, dialogs, and requests for anything but the file itself.
    """

    def __init__(self, page: "Page", url: str) -> None:
        self.page, self.faults, self._url = page, list[str](), url
        page.on("console", self._add_message)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("dialog", self._add_dialog)
        page.context.on("request", self._add_request)

    def _add_message(self, message: "ConsoleMessage") -> None:
        self.faults.append(f"console {message.type}: {message.text}")

    def _add_dialog(self, dialog: "Dialog") -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _add_request(self, request: "Request") -> None:
        if request.url.partition("#")[0] != self._url:
            self.faults.append(f"request: {request.url}")

    def check(self) -> None:
        """Fail if there were faults."""
        self.page.evaluate("0")  # events that the browser sent before its answer are recorded now
        assert self.faults == []


@contextmanager
def open_page(
    browser: "Browser", path: Path, width: int = 1440, scheme: Literal["light", "dark"] = "light", **options: Any
) -> Iterator[OpenedPage]:
    """Open an HTML file in a new window without a network.

    Args:
        browser: the fixture.
        path: the file.
        width: width of the window in CSS pixels; it is 900 high.
        scheme: what the reader's system prefers.
        options: further options of playwright's `new_context`, such as `has_touch=True` or `java_script_enabled=False`.
    """
    size = {"width": width, "height": 900}
    context = browser.new_context(**{"viewport": size, "color_scheme": scheme, "offline": True, **options})
    try:
        url = path.resolve().as_uri()
        opened = OpenedPage(context.new_page(), url)
        opened.page.goto(url)
        yield opened
    finally:
        context.close()


def overflowing(page: "Page") -> list[str]:
    """Describe the elements and texts that reach beyond the edges of the window. Call it after any change of layout."""
    return page.evaluate(OVERFLOWING)


def axe(page: "Page") -> list[str]:
    """Describe the serious and critical violations that axe-core finds on the page as it is now."""
    if not AXE.exists():
        pytest.skip(f"{AXE} does not exist (`make browser`)")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate(RUN_AXE)
