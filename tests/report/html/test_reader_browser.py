"""The section "Read it" in Chromium: list, search, filters, keyboard, address, hostile documents, print."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 (the extra `report`)")
pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `report`)")

from cdgen.report.document_content import Column, Document, Documents, Entry
from cdgen.report.html.page import render
from cdgen.report.html.reader import documents_data, documents_view
from tests.helpers import reports
from tests.helpers.browser import axe, open_page, overflowing
from tests.helpers.explanations import HOSTILE, explained, long_sample, sample

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

COLUMNS = (
    Column("real", "", "", "", "good@150 and good@50"),
    Column("corpus-ancestral", "ancestral", "good@150", "", "good@150 and good@50"),
    Column("corpus-contrastive", "contrastive", "good@150", "good@50", ""),
)
ANIMALS = ("Ant", "Bear", "Cat", "Dog", "Élan", "Fox")
HOSTILE_TEXTS = (
    HOSTILE,
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script><img src=x onerror=alert(3)>",
    "quotes \" ' ` and {{ 7 * 7 }} ${8 * 8} &amp; &lt;b&gt;",
    "NUL \0, separators \u2028 \u2029, escape \x1b[2J, override \u202egnp.exe\u2066, mark \ufeff",
    "__proto__ constructor toString",
    "نص عربي مع \u202e تجاوز، ושורה בעברית",
    "x" * 100_000,
)


def document(column: int, text: str, finish_reason: str = "length", with_viewer: bool = True) -> Document:
    """Return a document whose tokens are its words."""
    explanation = explained(re.findall(r"\s*\S+|\s+$", text), 2) if with_viewer else None
    tokens = None if column == 0 else 2 * len(text.split())
    return Document(column, text, len(text.split()), tokens, finish_reason if column else "", 0, explanation, "")


@pytest.fixture(scope="module")
def documents() -> Documents:
    """Return six seeds in three columns, and a list of two texts."""
    entries = []
    for number, animal in enumerate(ANIMALS):
        reason = "stop" if number % 2 else "length"
        texts = (f"{animal} one two.", f"{animal} sleeps" + " again" * (5 * number) + ".", f"{animal} runs to the ant.")
        ones = tuple(document(column, text, reason) for column, text in enumerate(texts))
        entries.append(Entry(f"file:{number}#0", "Seeds", animal, ones))
    column = len(COLUMNS)
    for number in range(2):
        one = replace(document(column, f"Note {number}", "", with_viewer=False), tokens=None, left_out=1234)
        entries.append(Entry(f"notes {number}", "Documents of notes", f"Note {number}", (one,)))
    return Documents((*COLUMNS, Column("notes", "", "", "", "")), tuple(entries), ("A note of <b>this</b> section.",))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Documents], Path]:
    """Return a function that writes a page with documents alone; it returns the path of the page."""

    def make(documents: Documents) -> Path:
        path = tmp_path / "report.html"
        path.write_text(render(replace(reports.empty(), documents=documents)), encoding="utf-8")
        return path

    return make


def listed(page: "Page") -> list[str]:
    """Return the first lines of the entries in the list."""
    return page.locator(".reader-option .reader-start").all_inner_texts()


def headings(page: "Page") -> list[str]:
    """Return the headings of the documents that are shown."""
    return page.locator("#reader-documents h4").all_inner_texts()


def title(page: "Page") -> str:
    """Return the heading of the chosen entry."""
    return page.locator("#reader-title").inner_text()


def status(page: "Page") -> str:
    """Return what a screen reader says after a change of the search."""
    assert page.locator("#reader-status").get_attribute("role") == "status"
    return page.locator("#reader-status").inner_text()


def chosen(page: "Page") -> list[str]:
    """Return the entries that are marked as chosen in the list."""
    return page.locator(".reader-option[aria-selected=true] .reader-start").all_inner_texts()


def test_documents_of_a_seed_are_side_by_side(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        assert page.locator("#read .note").inner_text() == "A note of <b>this</b> section."
        assert listed(page) == [*ANIMALS, "Note 0", "Note 1"]
        assert page.locator(".reader-group").all_inner_texts() == ["Seeds", "Documents of notes"]
        assert (title(page), chosen(page), status(page)) == ("Seeds: file:0#0", ["Ant"], "8 of 8 entries")
        assert headings(page) == ["real", "ancestral", "contrastive"]
        tops = [box["y"] for box in boxes(page, ".reader-document")]
        texts = [box["y"] for box in boxes(page, ".viewer-text")]
        assert len(set(tops)) == len(set(texts)) == 1
        facts = page.locator(".reader-facts").nth(2).inner_text()
        expected = [
            "corpus",
            "corpus-contrastive",
            "GOOD",
            "good@150",
            "BAD",
            "good@50",
            "length",
            "5 words, 10 tokens",
        ]
        assert facts.split("\n") == [*expected, "finish reason", "length"]
        assert page.locator(".reader-facts").nth(0).inner_text().split("\n")[:2] == [
            "scored with",
            "good@150 and good@50",
        ]
        opened.check()


def boxes(page: "Page", selector: str) -> list[dict[str, float]]:
    """Return where elements are."""
    return [one.bounding_box() for one in page.locator(selector).all()]


def test_viewers_are_mounted_when_their_seed_is_chosen(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        assert page.locator(".viewer").count() == 3
        assert page.locator(".viewer-legend").count() == 1
        page.get_by_text("Bear", exact=True).click()
        assert page.locator(".viewer").count() == 3
        text = page.locator(".viewer-text").nth(1)
        assert text.inner_text().startswith("Bear sleeps again")
        text.locator(".viewer-token").nth(3).click()
        assert page.locator(".viewer-details").nth(1).inner_text().startswith("␣again")
        page.get_by_text("Note 1", exact=True).click()
        assert page.locator(".viewer").count() == 0
        assert page.locator(".reader-text").all_inner_texts() == ["Note 1"]
        assert "1,234 more characters are left out." in page.locator(".reader-document").inner_text()
        opened.check()


def test_search(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        page.get_by_label("Search").fill("aNT")
        assert listed(page) == list(ANIMALS)
        assert status(page) == "6 of 8 entries, 9 matches"
        assert page.locator(".reader-option").first.locator("mark").all_inner_texts() == ["Ant", "Ant"]
        assert page.locator(".reader-match").all_inner_texts()[:2] == [
            "real: Ant one two. (4 matches)", "contrastive: Bear runs to the ant. (1 match)",
        ]  # fmt: skip
        page.get_by_label("Search").fill("e\u0301LAN")  # decomposed, and in capitals
        assert (listed(page), chosen(page), title(page)) == (["Élan"], ["Élan"], "Seeds: file:4#0")
        page.get_by_label("Search").fill("bear.")  # a full stop, not any character
        assert listed(page) == []
        assert (status(page), title(page), headings(page)) == ("0 of 8 entries, 0 matches", "No document matches", [])
        page.get_by_role("button", name="Clear").click()
        page.locator(".reader-option").nth(7).wait_for()
        assert (status(page), page.get_by_label("Search").input_value()) == ("8 of 8 entries", "")
        opened.check()


def test_filters(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        page.get_by_label("Words from").fill("17")
        page.get_by_label("to", exact=True).fill("22")
        assert listed(page) == ["Dog", "Élan"]
        hidden = [one.is_hidden() for one in page.locator(".reader-unmatched").all()]
        assert (headings(page), hidden) == (["real", "ancestral", "contrastive"], [False, True, False])
        assert len({box["y"] for box in boxes(page, ".viewer-text")}) == 1
        page.get_by_label("Finish reason").select_option("stop")
        assert listed(page) == ["Dog"]
        page.get_by_label("Words from").fill("")
        page.get_by_label("to", exact=True).fill("")
        assert listed(page) == ["Bear", "Dog", "Fox"]
        page.get_by_label("Finish reason").select_option("none (not generated)")
        assert listed(page) == [*ANIMALS, "Note 0", "Note 1"]
        page.get_by_label("real", exact=True).uncheck()
        assert (listed(page), headings(page)) == (["Note 0", "Note 1"], ["notes"])
        page.get_by_label("Finish reason").select_option("any")
        page.get_by_label("Name of the seed").fill("NOTES 1")
        assert (listed(page), status(page)) == (["Note 1"], "1 of 8 entries")
        page.get_by_label("Name of the seed").fill("")
        page.get_by_role("checkbox", name="notes").uncheck()
        assert listed(page) == list(ANIMALS)
        page.get_by_text("Cat", exact=True).click()
        assert headings(page) == ["ancestral", "contrastive"]
        page.get_by_label("ancestral", exact=True).uncheck()
        assert headings(page) == ["contrastive"]
        opened.check()


def test_keyboard(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        press = page.keyboard.press
        page.get_by_label("Search").focus()
        for _ in range(20):
            press("Tab")
            if page.evaluate("document.activeElement.id") == "reader-list":
                break
        press("ArrowDown")
        assert (chosen(page), title(page)) == (["Bear"], "Seeds: file:1#0")
        press("End")
        assert chosen(page) == ["Note 1"]
        active = page.locator("#reader-list").get_attribute("aria-activedescendant")
        assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
        in_view = "(o, l) => o.top >= l.top - 1 && o.bottom <= l.bottom + 1"
        rectangles = "(id) => [document.getElementById(id), document.getElementById('reader-list')]"
        assert page.evaluate(
            f"(id) => ({in_view})(...({rectangles})(id).map((one) => one.getBoundingClientRect()))", active
        )
        press("ArrowDown")
        press("Home")
        press("ArrowUp")
        assert chosen(page) == ["Ant"]
        press("Tab")
        press("Enter")  # on "Previous"
        assert (page.evaluate("document.activeElement.id"), chosen(page)) == ("reader-previous", ["Ant"])
        press("Tab")
        press("Enter")
        press("Space")
        assert (chosen(page), page.locator("#reader-place").inner_text()) == (["Cat"], "3 of 8")
        press("Shift+Tab")
        press("Enter")
        assert chosen(page) == ["Bear"]
        page.locator(".viewer-token[tabindex='0']").first.focus()
        press("Home")
        press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.index") == "1"
        assert chosen(page) == ["Bear"]
        opened.check()


def test_steps_stay_in_the_filtered_list(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        page.get_by_label("Finish reason").select_option("stop")
        following, previous = (page.get_by_role("button", name=name) for name in ("Next", "Previous"))
        assert previous.get_attribute("aria-disabled") == "true"
        following.click()
        following.click()
        assert (chosen(page), following.get_attribute("aria-disabled")) == (["Fox"], "true")
        page.get_by_label("Search").fill("fox")
        assert chosen(page) == ["Fox"], "the entry stays as long as it is listed"
        opened.check()


def test_address(browser: "Browser", write: Any, documents: Documents) -> None:
    path = write(documents)
    with open_page(browser, path) as opened:
        page = opened.page
        assert page.evaluate("location.hash") == "", "opening the page does not change its address"
        page.get_by_text("Dog", exact=True).click()
        assert page.evaluate("location.hash") == "#read=file%3A3%230"
        page.reload()
        assert (chosen(page), title(page)) == (["Dog"], "Seeds: file:3#0")
        page.get_by_label("Search").fill("Cat")
        page.evaluate("location.hash = '#read=notes%201'")
        page.locator("#reader-title", has_text="notes 1").wait_for()
        assert (listed(page)[-1], page.get_by_label("Search").input_value()) == ("Note 1", "")
        page.evaluate("location.hash = '#read=%E0%A4%A'")  # names nothing, and is no text
        assert title(page) == "Documents of notes: notes 1"
        opened.check()


def hostile_documents(with_viewer: bool) -> Documents:
    """Return documents, names and ids that would do harm as HTML."""
    columns = tuple(replace(one, name=f"{one.name}</script><script>alert(4)</script>") for one in COLUMNS)
    entries = []
    for number, text in enumerate(HOSTILE_TEXTS):
        shown = text[:300] if with_viewer and " " not in text else text
        ones = tuple(replace(document(column, shown, "stop", with_viewer)) for column in range(3))
        entries.append(Entry(f'"><img src=x onerror=alert(5)>{number}', "Seeds", text[:80], ones))
    if with_viewer:
        one = replace(document(2, HOSTILE), explanation=sample("hostile"), text=sample("hostile").text)
        entries.append(Entry("tokens", "Seeds", "tokens", (one,)))
    return Documents(columns, tuple(entries), ())


@pytest.mark.parametrize("with_viewer", [True, False])
def test_hostile_documents_are_text(browser: "Browser", write: Any, with_viewer: bool) -> None:
    hostile = hostile_documents(with_viewer)
    path = write(hostile)
    with open_page(browser, path) as opened:
        page = opened.page
        elements = page.evaluate("document.scripts.length + document.images.length")
        for number, entry in enumerate(hostile.entries):
            if number:
                page.get_by_role("button", name="Next").click()
            assert title(page) == f"Seeds: {entry.id}"
            texts = page.locator(".viewer-text" if with_viewer else ".reader-text").evaluate_all(
                "(all) => all.map((one) => one.textContent)"
            )
            assert texts == [one.text for one in entry.documents]
            assert overflowing(page) == []
            page.get_by_label("Search").fill(entry.documents[0].text[:40].strip())
            page.get_by_label("Search").fill("")
        assert page.evaluate("document.scripts.length + document.images.length") == elements
        opened.check()


@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout(browser: "Browser", write: Any, documents: Documents, width: int, scheme: Any) -> None:
    long = tuple(
        replace(
            one,
            explanation=long_sample(60, one.column),
            text=long_sample(60).text + " and so on" * 50,
            rest=" and so on" * 50,
        )
        for one in documents.entries[0].documents
    )
    found = replace(documents, entries=(replace(documents.entries[0], documents=long), *documents.entries[1:]))
    with open_page(browser, write(found), width, scheme) as opened:
        page = opened.page
        assert overflowing(page) == []
        assert axe(page) == []
        assert "Only the first 60 tokens are scored." in page.locator(".viewer-reading").first.inner_text()
        columns = len({round(box["x"]) for box in boxes(page, ".reader-document")})
        assert columns == {390: 1, 768: 2, 1440: 3}[width]
        page.get_by_label("Search").fill("ant")
        assert overflowing(page) == []
        assert axe(page) == []
        opened.check()


def test_print_shows_the_chosen_entry_alone(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        page = opened.page
        page.get_by_text("Bear", exact=True).click()
        page.emulate_media(media="print")
        for name in ("reader-filters", "reader-list", "reader-status", "reader-next"):
            assert page.locator(f"#{name}").is_hidden(), name
        assert page.locator("#reader-title").is_visible() and page.locator(".viewer-details").first.is_hidden()
        scale = page.locator(".viewer-scale li").first
        assert scale.evaluate("one => getComputedStyle(one).printColorAdjust") == "exact"
        assert [one.is_visible() for one in page.locator(".reader-document").all()] == [True] * 3
        assert page.locator(".viewer-text").first.is_visible()
        opened.check()


def test_the_styles_of_tables_end_where_the_viewer_begins(browser: "Browser", write: Any, documents: Documents) -> None:
    with open_page(browser, write(documents)) as opened:
        cell = opened.page.locator(".viewer-candidates tbody th").first
        assert cell.evaluate("one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).position]") == [
            "rgba(0, 0, 0, 0)",
            "static",
        ]


def test_without_scripts_the_first_documents_can_be_read(browser: "Browser", write: Any, documents: Documents) -> None:
    lines = replace(documents.entries[0].documents[0], text="one\ntwo \u202e <b>")
    found = replace(documents, entries=(Entry("lines", "Seeds", "lines", (lines,)), *documents.entries))
    with open_page(browser, write(found), java_script_enabled=False) as opened:
        page = opened.page
        assert page.locator("#reader").is_hidden()
        assert page.locator("noscript details").count() == 1 + 3 + 3
        page.emulate_media(media="print")  # prints only open details
        assert page.locator("noscript .reader-text").first.inner_text() == "one\ntwo \\u202e <b>"
        opened.check()


def test_documents_of_a_large_experiment_stay_small() -> None:
    """Four corpora with fifty documents of 200 tokens, six candidates each, and 2,000 characters."""
    explanation = long_sample(200)
    tokens = []
    for token in explanation.tokens:
        if (one := token.prediction) is not None:
            named = (token.token_id, one.best_id, one.good_best_id)
            listed = tuple(each for at, each in enumerate(one.listed) if at < 6 or each.token_id in named)
            token = replace(token, prediction=replace(one, listed=listed))
        tokens.append(token)
    one = replace(document(2, "w" * 2000, with_viewer=False), explanation=replace(explanation, tokens=tuple(tokens)))
    many = document(0, " ".join(map(str, range(300))))  # the indices of later tokens take two bytes each
    entries = [Entry(f"seed {number}", "Seeds", "A start", (one,) * 4) for number in range(50)]
    view = documents_view(Documents(COLUMNS, (Entry("many", "Seeds", "many", (many,)), *entries), ()))
    size = len(view["documents_json"]) + len(view["viewer_json"])
    assert 2_000_000 < size < 3_500_000


def test_explanations_are_numbered_in_order(documents: Documents) -> None:
    data: dict[str, Sequence[Any]] = documents_data(documents)
    found = [one["explained"] for entry in data["entries"] for one in entry["documents"]]
    assert found == [*range(3 * len(ANIMALS)), None, None]
