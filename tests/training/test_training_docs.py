"""The recipe of docs/training.md runs, with fewer steps."""

import re
from pathlib import Path

import pytest

from cdgen.cli import main
from tests.helpers.tiny_models import SENTENCES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
FEWER = {
    "steps = 150": "steps = 6", "save_every = 50": "save_every = 2", "step = 50": "step = 2", "n = 8": "n = 2",
    "limit = 200": "limit = 10",
}  # fmt: skip


@pytest.mark.slow
def test_the_recipe_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "books").mkdir()
    for book in range(3):
        chapters = (f"CHAPTER {at}\n\n{book}.{at} {' '.join(SENTENCES * 5)}" for at in range(40))
        (tmp_path / "books" / f"{book}.txt").write_text("\n\n".join(chapters))
    found = re.search(r"^    \[prepare\]\n(?:    .*\n)+", PAGE.read_text(encoding="utf-8"), re.M)
    assert found is not None
    recipe = re.sub(r"^    ", "", found[0], flags=re.M)
    for number, fewer in FEWER.items():
        assert number in recipe
        recipe = recipe.replace(number, fewer)
    (tmp_path / "recipe.toml").write_text(recipe)
    assert main(["run", "recipe.toml", "--out", "experiment"]) == 0
