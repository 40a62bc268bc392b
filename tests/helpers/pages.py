"""What an HTML page says, read without a browser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "img", "input", "link"}


@dataclass
class ReadTable:
    """A table: its caption, and the texts of its cells by row; empty cells are empty strings."""

    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)


class ReadPage(HTMLParser):
    """Reads a page.

    Args:
        page: the HTML.

    Attributes:
        ids: every id, in order.
        sections: ids of the sections.
        links: targets of the links.
        tags: every tag that starts, in order.
        attributes: every (tag, attribute, value).
        tables: the tables.
        texts: text by the id of the section that it is in, "" outside sections; white space is collapsed.
        blocks: texts of the elements <li>, <p>, <pre>, <dd>, <title>, <desc>, <h1>, <h2>, <h3>, in order.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids, self.sections, self.links, self.tags = list[str](), list[str](), list[str](), list[str]()
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[ReadTable] = []
        self.texts: dict[str, str] = {"": ""}
        self.blocks: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._section = ""
        self._blocks: list[tuple[str, list[str]]] = []
        self.feed(page)
        self.close()
        self.texts = {name: " ".join(text.split()) for name, text in self.texts.items()}
        assert self._open == [], "elements that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "section":
            self._section = values["id"]
            self.sections.append(self._section)
            self.texts[self._section] = ""
        if tag == "a":
            self.links.append(values["href"])
        if tag == "table":
            self.tables.append(ReadTable())
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("th", "td"):
            self.tables[-1].rows[-1].append("")
        if tag in ("li", "p", "pre", "dd", "title", "desc", "h1", "h2", "h3"):
            self._blocks.append((tag, []))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""
        if self._blocks and self._blocks[-1][0] == tag:
            self.blocks.append((tag, "".join(self._blocks.pop()[1]).strip()))

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.texts[self._section] += data
        for _, parts in self._blocks:
            parts.append(data)
        if "caption" in self._open:
            self.tables[-1].caption += data
        if self.tables and self.tables[-1].rows and ("th" in self._open or "td" in self._open):
            self.tables[-1].rows[-1][-1] += data

    def table(self, caption: str) -> ReadTable:
        """Return the table whose caption begins with these words."""
        return next(one for one in self.tables if one.caption.startswith(caption))
