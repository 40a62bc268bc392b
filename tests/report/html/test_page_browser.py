"""The page of a report in Chromium: both themes, three widths, print, copying, and names that try to be code."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 (the extra `report`)")
pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `report`)")

from cdgen.report.html.page import render
from tests.helpers import reports
from tests.helpers.browser import axe, open_page, overflowing
from tests.report.html.test_page import HOSTILE, named

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (390, 768, 1440)
# Whether an element with text has a colour other than that of the page's text.
COLOUR = "selector => getComputedStyle(document.querySelector(selector)).color"
FILL = "getComputedStyle(document.querySelector('.swatch path')).fill"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a report with every section that can be made by hand, and the state of an experiment."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(replace(reports.report(), state=reports.unfinished())), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_axe_finds_nothing(
    browser: "Browser", report: Path, scheme: Literal["light", "dark"]
) -> None:
    with open_page(browser, report, 1440, scheme) as opened:
        for width in WIDTHS:
            opened.page.set_viewport_size({"width": width, "height": 900})
            assert overflowing(opened.page) == []
            assert axe(opened.page) == []
        opened.check()


def test_themes_differ(browser: "Browser", report: Path) -> None:
    found = []
    for scheme in ("light", "dark"):
        with open_page(browser, report, scheme=scheme) as opened:  # type: ignore[arg-type]
            found.append([opened.page.evaluate(COLOUR, "body"), opened.page.evaluate(FILL)])
            drawn = opened.page.evaluate(
                "[...document.querySelectorAll('.plot path')].map((one) => getComputedStyle(one).stroke)"
            )
            assert opened.page.evaluate(FILL) in drawn  # the plots have the method's colour in this theme
    light, dark = found
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_a_phone_gets_the_narrow_plot_with_legible_text(browser: "Browser", report: Path) -> None:
    sizes = """[...document.querySelectorAll(".plot text")].filter((one) => one.checkVisibility()).map((one) => {
        const {b, d} = one.getScreenCTM();
        return parseFloat(getComputedStyle(one).fontSize) * Math.hypot(b, d);
    })"""
    for width, shown, hidden in ((390, ".plot.narrow", ".plot.wide"), (1440, ".plot.wide", ".plot.narrow")):
        with open_page(browser, report, width) as opened:
            assert opened.page.locator(shown).is_visible() and opened.page.locator(hidden).is_hidden()
            assert opened.page.evaluate(f"Math.min(...{sizes})") > 10.5


def test_a_command_can_be_copied(browser: "Browser", report: Path) -> None:
    with open_page(browser, report, permissions=["clipboard-read", "clipboard-write"]) as opened:
        block = opened.page.locator(".copied").first
        block.get_by_role("button", name="Copy").click()
        block.get_by_role("button", name="Copied").wait_for()
        assert opened.page.evaluate("navigator.clipboard.readText()") == block.locator("code").inner_text()
        opened.check()


def test_without_scripts_everything_is_there_but_the_buttons(browser: "Browser", report: Path) -> None:
    with open_page(browser, report, java_script_enabled=False) as opened:
        assert opened.page.get_by_role("button").count() == 0
        assert reports.CITATION in opened.page.locator("pre.bibtex").all_inner_texts()
        opened.page.get_by_role("link", name="Models").click()
        assert opened.page.url.endswith("#models")


def test_the_keyboard_reaches_the_sections_and_scrolls_tables(browser: "Browser", report: Path) -> None:
    with open_page(browser, report, 390) as opened:
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("document.activeElement.getAttribute('href')") == "#outcome"
        table = opened.page.get_by_role("group", name=re.compile("Table: Values and relative changes"))
        assert table.get_attribute("tabindex") == "0"
        table.focus()
        opened.page.keyboard.press("ArrowRight")
        scrolled = (
            "(one) => one.scrollLeft > 0 || new Promise((done) => one.addEventListener('scroll', () => done(true)))"
        )
        assert table.evaluate(scrolled)
        heading = table.locator("caption span").bounding_box()
        assert heading is not None and heading["x"] >= 0 and heading["x"] + heading["width"] <= 390
    with open_page(browser, report, 1440) as opened:
        assert opened.page.locator(".scroll[tabindex]").count() == 0, "tables that fit are no tab stops"


def test_print_shows_everything_in_light_colours(browser: "Browser", report: Path) -> None:
    with open_page(browser, report, 720, "dark") as opened:
        opened.page.emulate_media(media="print")
        assert opened.page.evaluate(COLOUR, "body") == "rgb(28, 30, 33)"
        assert opened.page.locator("nav").is_hidden() and opened.page.locator(".copy").first.is_hidden()
        assert overflowing(opened.page) == []
        cut = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
        assert opened.page.evaluate(f"{cut}.map((one) => one.textContent.trim().slice(0, 40))") == []


def test_names_execute_nothing_and_fit(browser: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(named(tuple(HOSTILE))), encoding="utf-8")
    with open_page(browser, path, 390) as opened:
        for width in WIDTHS:
            opened.page.set_viewport_size({"width": width, "height": 900})
            assert overflowing(opened.page) == []
        opened.page.emulate_media(media="print")
        assert opened.page.locator("text=<script>alert(1)</script>").count() > 3
        opened.check()
