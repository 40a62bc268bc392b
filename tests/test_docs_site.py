"""The documentation site: every public name and every page is on it, and it builds as `make docs` builds it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cdgen
import cdgen_kernels

ROOT = Path(__file__).resolve().parent.parent


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_public_name_is_in_the_reference() -> None:
    for package, page in ((cdgen, "api.md"), (cdgen_kernels, "kernels-api.md")):
        text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
        listed = re.findall(rf"^::: {package.__name__}\.(\w+)$", text, re.M)
        assert sorted(listed) == sorted({*package.__all__} - {"__version__"})


@pytest.mark.slow
def test_every_page_is_in_the_navigation_and_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason='needs mkdocs: pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("index.html")}
    missing = [
        path for path in (ROOT / "docs").rglob("*.md") if path.with_suffix("").relative_to(ROOT / "docs") not in pages
    ]
    assert missing == [ROOT / "docs" / "index.md"]  # it is the page of the folder itself
    # Nothing on a page is loaded from another server.
    for path in tmp_path.rglob("*.html"):
        assert re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?https?://', path.read_text("utf-8")) == []
