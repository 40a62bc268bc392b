"""Hooks of mkdocs that add pages from outside docs/ to the site, and adapt the links of all pages to it.

Every page is also read in the repository, where its links are relative paths. On the site, a link to a page leads to
that page. A link to another file of the repository leads to `repo_url` if mkdocs.yml states it. Otherwise only its text
is left, as the site does not have the file.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages outside docs/, and their names on the site.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",  # on the site, the home page takes its place
    "examples/README.md": "examples.md",
}
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the programs of examples/ to the page about them."""
    for source, name in OUTSIDE.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=page_text(source)))
    return files


def page_text(source: str) -> str:
    """Return a page of the repository as Markdown; the page about examples shows each program as well."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if source != "examples/README.md":
        return text
    programs = sorted((ROOT / "examples").glob("*.py"))
    return "\n".join([text, *(f"## {path.name}\n\n```python\n{path.read_text('utf-8')}```\n" for path in programs)])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with links that work on the site."""
    here = page.file.src_uri
    source = next((path for path, name in OUTSIDE.items() if name == here != "index.md"), f"docs/{here}")
    return LINK.sub(lambda found: _link(found, source, here, config.repo_url), markdown)


def _link(found: re.Match[str], source: str, here: str, repo_url: str | None) -> str:
    """Return a link in the page `source` of the repository as it is on the page `here` of the site."""
    image, text, target = found.groups()
    parts = urlsplit(target)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path))
    if parts.scheme or not parts.path or not (ROOT / path).exists():
        return found[0]  # an address, a place on this page, or a mistake that mkdocs reports
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    if source == "examples/README.md" and path.endswith(".py"):
        return f"[{text}](#{posixpath.basename(path).replace('.', '')})"
    name = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if name is not None:
        return f"{image}[{text}]({posixpath.relpath(name, posixpath.dirname(here) or '.')}{fragment})"
    return f"[{text}]({repo_url.rstrip('/')}/blob/main/{path}{fragment})" if repo_url else text
