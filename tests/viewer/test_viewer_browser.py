"""The contrast viewer in Chromium: what it shows and how it reacts, in both themes and at all widths."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.viewer.encode import LOWEST, contrast_step, viewer_data
from cdgen.viewer.explanation import Explanation, Prediction
from cdgen.viewer.page import asset, frame, page, script_json
from tests.helpers.browser import axe, open_page, overflowing
from tests.helpers.explanations import ALPHA, HOSTILE, TEXTS, long_sample, sample
from tests.helpers.tiny_models import make_llama

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CANNOT = "cannot be drawn"

# Returns the ratio of contrast between text and background (WCAG 2.2) of the elements that have a step of the scale.
RATIOS = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = (colour) => {
        const [red, green, blue] = channels(colour).map(linear);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const page = getComputedStyle(document.body).backgroundColor;
    return Array.from(document.querySelectorAll("[data-step]"), (element) => {
        const {color, backgroundColor} = getComputedStyle(element);
        const background = backgroundColor === "rgba(0, 0, 0, 0)" ? page : backgroundColor;
        const [dark, light] = [color, background].map(luminance).sort((a, b) => a - b);
        return [Number(element.dataset.step), (light + 0.05) / (dark + 0.05)];
    });
}"""

# Returns the direction of each text, its width, and the width of the same text without tokens.
WIDTHS = """() => Array.from(document.querySelectorAll(".viewer-text"), (text) => {
    const plain = text.cloneNode(false);
    plain.textContent = text.textContent;
    text.after(plain);
    const widths = [text, plain].map((element) => {
        element.style.cssText = "white-space: pre; max-width: none";
        const range = document.createRange();
        range.selectNodeContents(element);
        return range.getBoundingClientRect().width;
    });
    return [getComputedStyle(text).direction, ...widths];
})"""

# Moves from token to token with the keyboard and returns what the panel shows of each one.
DETAILS = """() => {
    const all = (names) => Array.from(document.querySelectorAll(".viewer-details " + names), (one) => one.innerText);
    const tokens = Array.from(document.querySelectorAll(".viewer-token"));
    tokens[0].focus();
    return tokens.map((token) => {
        const rows = Array.from(document.querySelectorAll(".viewer-candidates tbody tr"));
        const shown = {
            step: token.dataset.step,
            figures: all("dt").map((name, index) => [name, all("dd")[index]]),
            rows: rows.map((row) => Array.from(row.cells, (cell) => cell.innerText)),
            sentences: all(".viewer-sentences p"),
            note: all("> .viewer-note")[0],
        };
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
        return shown;
    });
}"""

# Returns where the text and the panel are. Selecting a token must not move them.
PLACES = """() => [".viewer-text", ".viewer-token:last-of-type", ".viewer-details"].map((name) => {
    const box = document.querySelector(name).getBoundingClientRect();
    return [box.x, box.y + scrollY * !name.includes("details"), box.width, box.height];
})"""


@contextmanager
def shown(
    browser: "Browser",
    folder: Path,
    explanation: Explanation,
    width: int = 1440,
    scheme: Literal["light", "dark"] = "light",
    **options: Any,
) -> Iterator["Page"]:
    """Open the page of an explanation, and check afterwards that it reported and requested nothing."""
    path = folder / "page.html"
    path.write_text(page(explanation, "A text"), encoding="utf-8", newline="")
    with open_page(browser, path, width, scheme, **options) as opened:
        yield opened.page
        opened.check()


@contextmanager
def columns(browser: "Browser", folder: Path, explanations: list[Explanation]) -> Iterator["Page"]:
    """Open a page with viewers side by side, of which the first alone has a legend."""
    path = folder / "page.html"
    path.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Columns</title>
        <style>{asset("base.css")}{asset("viewer.css")} main {{ display: flex; }} main > div {{ width: 280px; }}</style>
        <main><h1 class="visually-hidden">Columns</h1>{"<div></div>" * len(explanations)}</main>
        <script type="application/json" id="data">{script_json(viewer_data(explanations))}</script>
        <script>{asset("viewer.js")}</script>
        <script>cdgenViewer.read(JSON.parse(document.getElementById("data").textContent)).forEach((one, index) => {{
            cdgenViewer.mount(document.querySelectorAll("main > div")[index], one, {{legend: index === 0}});
        }});</script>""",
        encoding="utf-8",
    )
    with open_page(browser, path, width=900) as opened:
        yield opened.page
        opened.check()


def token(page: "Page", index: int) -> "Locator":
    return page.locator(".viewer-token").nth(index)


def selected(page: "Page") -> int:
    """Return the index of the token that is marked as selected and whose details are shown."""
    [index] = page.locator(".viewer-token[aria-selected]").evaluate_all("all => all.map((one) => one.dataset.index)")
    assert page.locator(".viewer-head").inner_text().split("token ")[1].startswith(f"{int(index) + 1} of ")
    [tab_stop] = page.locator(".viewer-token[tabindex='0']").evaluate_all("all => all.map((one) => one.dataset.index)")
    assert tab_stop == index
    return int(index)


def test_pointer(browser: "Browser", tmp_path: Path) -> None:
    with shown(browser, tmp_path, sample("english")) as page:
        assert selected(page) == 5  # the first token after the prompt
        places = page.evaluate(PLACES)
        token(page, 14).hover()
        assert selected(page) == 14
        page.locator("h1").hover()
        assert selected(page) == 14
        token(page, 20).click()
        token(page, 30).hover()
        assert selected(page) == 30
        page.locator("h1").hover()
        assert selected(page) == 20  # the chosen one again
        assert page.evaluate(PLACES) == places
        strip = page.locator(".viewer-strip svg").first
        box = strip.bounding_box()
        assert box is not None
        strip.click(position={"x": box["width"] * 10.5 / len(sample("english").tokens), "y": 5})
        assert selected(page) == 10


def test_tap(browser: "Browser", tmp_path: Path) -> None:
    with shown(browser, tmp_path, long_sample(120), width=390, has_touch=True) as page:
        places = []
        for index in (3, 17):
            token(page, index).tap()
            assert selected(page) == index
            places.append(page.evaluate(PLACES))
        assert places[0] == places[1]
        assert page.locator(".viewer-details").bounding_box()["y"] < 900  # type: ignore[index]  # a sheet on the screen


def test_on_a_phone_the_details_cover_the_text_until_they_are_closed(browser: "Browser", tmp_path: Path) -> None:
    position = "one => getComputedStyle(one).position"
    with shown(browser, tmp_path, long_sample(120), width=390, has_touch=True, is_mobile=True) as page:
        panel, close = page.locator(".viewer-details"), page.get_by_role("button", name="Close the details")
        assert panel.evaluate(position) == "static" and close.is_hidden()
        page.evaluate("scrollTo(0, 0)")
        box = token(page, 40).bounding_box()
        assert box is not None and box["y"] < 900, "on the screen, where the details will be"
        token(page, 40).tap()
        assert panel.evaluate(position) == "sticky" and close.is_visible()
        covered = "([text, panel]) => text.getBoundingClientRect().bottom > panel.getBoundingClientRect().top"
        assert not page.evaluate(covered, [token(page, 40).element_handle(), panel.element_handle()])
        close.tap()
        assert panel.evaluate(position) == "static" and close.is_hidden() and selected(page) == 40


def test_high_contrast_themes_keep_the_scale(browser: "Browser", tmp_path: Path) -> None:
    backgrounds = "[...document.querySelectorAll('{} [data-step]')].map((one) => getComputedStyle(one).backgroundColor)"
    with shown(browser, tmp_path, long_sample(120), forced_colors="active") as page:
        assert len(set(page.evaluate(backgrounds.format(".viewer-scale")))) == 11
        assert len(set(page.evaluate(backgrounds.format(".viewer-text")))) > 6
        assert min(ratio for _, ratio in page.evaluate(RATIOS)) >= 4.5


def test_keyboard(browser: "Browser", tmp_path: Path) -> None:
    last = len(sample("arabic").tokens) - 1
    with shown(browser, tmp_path, sample("arabic")) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "viewer-token"
        steps = [("ArrowRight", 6), ("ArrowRight", 7), ("ArrowLeft", 6), ("End", last), ("ArrowRight", last)]
        for key, expected in [*steps, ("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1)]:
            page.keyboard.press(key)
            assert selected(page) == expected
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert "contrast" in page.locator("[aria-live=polite]").inner_text()
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement === document.body")
        page.keyboard.press("Tab")  # the viewer is one stop: the next one is outside
        assert not page.evaluate("document.activeElement.classList.contains('viewer-token')")


def number(text: str) -> float:
    """Return a number of the page; -inf for a token that cannot be drawn."""
    if text == CANNOT:
        return -math.inf
    return 0.0 if text.startswith("<") else float(text.replace("\u2212", "-").replace("\u202f", "").removesuffix("%"))


def assert_shows(text: str, logprob: float | None) -> None:
    """Check a percentage: three digits of a probability that is exact to 0.05 percent of its value."""
    assert logprob is not None
    if logprob == -math.inf:
        assert text == CANNOT
        return
    value = 100 * math.exp(logprob)
    if value < 0.00099:
        assert text == "<\u202f0.001\u202f%"
        return
    digits = re.sub(r"^[0.]+|[^0-9]", "", text)
    assert len(digits) == 3, text
    half = 0.5 * 10 ** (math.floor(math.log10(number(text))) - 2)
    assert number(text) == pytest.approx(value, abs=half + 0.0008 * value)


def assert_details(details: dict[str, Any], prediction: Prediction, token_id: int, piece: str) -> None:
    """Check the panel of a token against its prediction. `piece` is how the token is shown."""
    figures = dict(details["figures"])
    assert prediction.contrast is not None
    assert int(details["step"]) == contrast_step(round(prediction.contrast, 3))
    assert number(figures["contrast"]) == pytest.approx(prediction.contrast, abs=0.0061)
    for name, logprob in (("GOOD", prediction.good), ("BAD", prediction.bad), ("sampling", prediction.logprob)):
        assert_shows(figures[name], logprob)
    for (_, good, bad, drawn), candidate in zip(details["rows"], prediction.listed, strict=True):
        for text, logprob in ((good, candidate.good), (bad, candidate.bad), (drawn, candidate.logprob)):
            assert_shows(text, logprob)
    [chosen] = [row[0] for row in details["rows"] if "in the text" in row[0]]
    assert chosen.split()[0] == piece
    greedy, good = details["sentences"]
    by_id = {one.token_id: one for one in prediction.listed}
    best, good_best = by_id[prediction.best_id], by_id[prediction.good_best_id]
    assert ("takes this token." in greedy) == (prediction.best_id == token_id)
    assert ("is this one." in good) == (prediction.good_best_id == token_id)
    for sentence, logprob in ((greedy, best.logprob), (good, good_best.good)):
        if "(" in sentence:
            assert_shows(sentence.rpartition("(")[2].removesuffix(")."), logprob)
    drawable, listed = prediction.drawable, sum(one.logprob > -math.inf for one in prediction.listed)
    drawn = [counted(drawable, "token") + " can be drawn"] if drawable != prediction.candidates else []
    hidden = [f"{drawable - listed:,} of them not listed"] if drawable > listed else []
    *notes, entropy = details["note"].split(" · ")
    assert notes == [counted(prediction.candidates, "candidate"), *drawn, *hidden]
    assert entropy.startswith("entropy of GOOD ") and entropy.endswith(" nats")
    assert float(entropy.split()[-2]) == pytest.approx(prediction.entropy, abs=0.0058)


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def test_details_equal_the_explanation(browser: "Browser", tmp_path: Path) -> None:
    explanation = sample("english")
    with shown(browser, tmp_path, explanation) as page:
        first, *others = page.evaluate(DETAILS)
        assert (first.get("step"), first["rows"], first["note"]) == (None, [], "The first token is not predicted.")
        for details, one in zip(others, explanation.tokens[1:], strict=True):
            assert one.prediction is not None
            assert_details(details, one.prediction, one.token_id, one.text.replace(" ", "␣"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "19 candidates · 9 of them not listed"),
        ({"alpha": 0.0}, "297 candidates · 286 of them not listed"),
        ({"top_k": 3}, "19 candidates · 3 tokens can be drawn"),
        ({"outside_head": "shifted_good"}, "19 candidates · 297 tokens can be drawn · 286 of them not listed"),
        ({"top_k": 1}, "19 candidates · 1 token can be drawn"),
        ({"alpha": 1.0}, "1 candidate"),
    ],
    ids=str,
)
def test_counts_of_tokens(browser: "Browser", tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    """Three tokens are banned."""
    lm = ContrastiveLM(make_llama(0), make_llama(1))
    params = SamplingParams(**{"no_repeat_ngram_size": 1, "alpha": ALPHA} | changes)
    with shown(browser, tmp_path, lm.explain([5, 6, 7, 8], params)) as page:
        assert page.evaluate(DETAILS)[3]["note"].startswith(f"{expected} · entropy of GOOD ")


def test_temperature_0_and_bans_of_all_tokens(browser: "Browser", tmp_path: Path) -> None:
    lm = ContrastiveLM(make_llama(0, vocab_size=8))
    params = SamplingParams(no_repeat_ngram_size=1, alpha=0.0, contrast_strength=0.0, temperature=0.0)
    with shown(browser, tmp_path, lm.explain([*range(8), 3], params)) as page:
        *_, before, last = page.evaluate(DETAILS)
        assert before["sentences"][0] == "Greedy decoding takes this token."
        assert before["note"].startswith("1 candidate · entropy")
        assert before["note"].endswith("temperature 0 takes the best score; sampling is at temperature 1")
        assert last["sentences"][0] == "No token can be drawn here: all are banned."
        assert last["note"].startswith("0 candidates · entropy")
        assert not any("greedy" in row[0] for row in last["rows"]) and {row[-1] for row in last["rows"]} == {CANNOT}


def test_extreme_numbers(browser: "Browser", tmp_path: Path) -> None:
    """The greatest numbers that are stored, with as many bits as the viewer reads."""
    explanation = sample("english")
    prediction = explanation.tokens[3].prediction
    assert prediction is not None
    listed = tuple(one._replace(bad=-900.0 - at) for at, one in enumerate(prediction.listed))
    here = next(at for at, one in enumerate(listed) if one.token_id == explanation.tokens[3].token_id)
    extreme = replace(prediction, bad=listed[here].bad, candidates=10**6, drawable=10**6, listed=listed)
    far = replace(prediction, bad=-1e9, listed=tuple(one._replace(bad=-1e9) for one in listed))
    changed = {3: extreme, 4: far}
    tokens = [replace(one, prediction=changed.get(at, one.prediction)) for at, one in enumerate(explanation.tokens)]
    tokens[4] = replace(tokens[3], prediction=far)
    with shown(browser, tmp_path, replace(explanation, tokens=tuple(tokens))) as page:
        details = page.evaluate(DETAILS)
        assert number(dict(details[3]["figures"])["contrast"]) == pytest.approx(extreme.contrast, abs=0.006)
        assert details[3]["note"].startswith("1,000,000 candidates")
        assert number(dict(details[4]["figures"])["contrast"]) == pytest.approx(LOWEST + far.good, abs=0.006)
        for at in (1, 2, 5, 6):
            one = explanation.tokens[at]
            assert one.prediction is not None
            assert_details(details[at], one.prediction, one.token_id, one.text.replace(" ", "␣"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_legible_at_every_width(browser: "Browser", tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    with shown(browser, tmp_path, long_sample(150), scheme=scheme) as page:
        ratios = page.evaluate(RATIOS)
        assert {step for step, _ in ratios} == set(range(-5, 6))
        assert min(ratio for _, ratio in ratios) >= 4.5
        for width in (1440, 768, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert overflowing(page) == []
            assert axe(page) == []


def test_tokens_do_not_break_letters_apart(browser: "Browser", tmp_path: Path) -> None:
    with columns(browser, tmp_path, [sample(name) for name in ("arabic", "hebrew", "hindi")]) as page:
        directions, tokens, plain = zip(*page.evaluate(WIDTHS), strict=True)
        assert directions == ("rtl", "rtl", "ltr")
        assert min(tokens) > 200
        assert tokens == pytest.approx(plain, abs=1)


@pytest.mark.parametrize("framed", [False, True])
def test_hostile_text_is_shown_and_executes_nothing(browser: "Browser", tmp_path: Path, framed: bool) -> None:
    path = tmp_path / "page.html"
    whole = f"<!doctype html><title>Notebook</title>{frame(sample('hostile'))}"
    path.write_text(whole if framed else page(sample("hostile"), HOSTILE), encoding="utf-8")
    with open_page(browser, path) as opened:
        inside = opened.page.frames[-1]
        assert (inside != opened.page.main_frame) == framed
        assert inside.locator(".viewer-text").text_content() == HOSTILE
        assert len(inside.evaluate(DETAILS)) == len(TEXTS["hostile"])
        assert inside.locator("img, .viewer script").count() == 0
        opened.check()


def test_bytes_special_tokens_and_line_breaks(browser: "Browser", tmp_path: Path) -> None:
    with shown(browser, tmp_path, sample("emoji")) as page:
        assert page.locator(".viewer-text").text_content() == sample("emoji").text
        sign = "one => getComputedStyle(one, '::before').content"
        assert [token(page, index).evaluate(sign) for index in (1, 2)] == ['"20 e2 98"', '"83"']
        token(page, 11).focus()
        assert page.locator(".viewer-head bdi").inner_text() == "◌\u0301"
    with shown(browser, tmp_path, sample("lines")) as page:
        assert page.locator(".viewer-text").text_content() == sample("lines").text
        assert token(page, 0).inner_text() == "<|start|>"
        assert "viewer-special" in (token(page, 0).get_attribute("class") or "")
        heights = [token(page, index).bounding_box()["y"] for index in (1, 3, 4)]  # type: ignore[index]
        assert heights[2] > heights[0] + 20 and abs(heights[1] - heights[0]) < 5
        token(page, 6).focus()
        assert page.locator(".viewer-head bdi").inner_text() == "↵↵"


def test_print_and_no_javascript(browser: "Browser", tmp_path: Path) -> None:
    with shown(browser, tmp_path, long_sample(400), scheme="dark") as page:
        page.emulate_media(media="print")
        panel = page.locator(".viewer-details")
        assert (
            panel.evaluate("one => one.scrollHeight <= one.clientHeight + 1 && getComputedStyle(one).position")
            == "static"
        )
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    with shown(browser, tmp_path, sample("arabic"), java_script_enabled=False) as page:
        assert page.locator(".viewer-plain").inner_text() == sample("arabic").text
        assert page.locator("noscript").is_visible()


def test_several_viewers_in_narrow_columns(browser: "Browser", tmp_path: Path) -> None:
    explanations = [long_sample(80), sample("english", bad=None), sample("hebrew")]
    with columns(browser, tmp_path, explanations) as page:
        viewers = [page.locator(".viewer").nth(index) for index in range(3)]
        assert [one.locator(".viewer-scale").count() for one in viewers] == [1, 0, 0]
        assert viewers[1].locator("[data-step]").count() == 0
        assert viewers[1].locator(".viewer-candidates thead th").all_inner_texts() == ["token", "GOOD", "sampling"]
        wide = "all => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.className)"
        assert page.locator(".viewer, .viewer-details, .viewer-candidates").evaluate_all(wide) == []
        assert axe(page) == []
