"""The page of one text as HTML: what is escaped, what it may load, what can be read without JavaScript."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cdgen.viewer.encode import viewer_data
from cdgen.viewer.page import asset, frame, page, policy, script_json
from tests.helpers.explanations import HOSTILE, TEXTS, sample
from tests.helpers.viewer_data import decode


class Elements(HTMLParser):
    """The tags of a page, and for each kind of element the attributes and the own text of every element."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[dict[str, str | None]]] = {}
        self.texts: dict[str, list[str]] = {}
        self._open = ["document"]
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.setdefault(tag, []).append(dict(attrs))
        self.texts.setdefault(tag, []).append("")
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1], [""])[-1] += data


@pytest.mark.parametrize("name", TEXTS)
def test_text_and_title_are_escaped_and_readable(name: str) -> None:
    elements = Elements(page(sample(name), HOSTILE))
    assert elements.tags == Elements(page(sample("english"), "title")).tags
    assert elements.texts["title"] == elements.texts["h1"] == [HOSTILE.replace("\0", "\u2400")]
    assert elements.texts["p"][0] == sample(name).text.replace("\0", "\u2400")


def test_data_of_hostile_text_survives() -> None:
    elements = Elements(page(sample("hostile"), "title"))
    data = json.loads(elements.texts["script"][0])
    assert decode(data)[0].text == HOSTILE
    assert data == viewer_data([sample("hostile")])


@pytest.mark.parametrize("text", [HOSTILE, "]]>", "<!--<script>", "&lt;", "\u2028\u2029", "a\ud800b\udfff", "\r\n\0"])
def test_script_json(text: str) -> None:
    written = script_json({"text": text})
    assert not set("<>&\u2028\u2029\r\n\0") & set(written)
    assert json.loads(written.encode()) == {"text": text}


def test_script_json_writes_other_scripts_as_they_are() -> None:
    assert script_json("हिन्दी 日本 😀") == '"हिन्दी 日本 😀"'


def test_policy_allows_the_scripts_of_the_page_and_nothing_else() -> None:
    elements = Elements(page(sample("english"), "title"))
    content = next(one["content"] for one in elements.attributes["meta"] if "http-equiv" in one)
    rules = dict(rule.split(" ", 1) for rule in (content or "").split("; "))
    assert rules["default-src"] == "'none'" and set(rules) == {"default-src", "style-src", "img-src", "script-src"}
    scripts = zip(elements.texts["script"], elements.attributes["script"], strict=True)
    inline = [text for text, attributes in scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
    assert rules["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert policy([]).endswith("script-src 'none'")


def test_assets_load_nothing_and_cannot_end_their_element() -> None:
    for name in ("base.css", "viewer.css", "viewer.js"):
        text = asset(name)
        assert not re.search(r"</|<!--|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text), name
        assert "innerHTML" not in text and "\r" not in text


def test_facts_leave_out_parameters_without_effect() -> None:
    params = {"method": "contrastive_top_k", "top_k": 5, "top_p": 1.0, "temperature": 1.0, "min_tokens": 0}
    elements = Elements(page(replace(sample("english", bad=None), params=params), "title"))
    assert elements.texts["dt"] == ["GOOD", "BAD", "method", "top_k", "temperature"]
    assert elements.texts["dd"] == ["tiny/step-2500", "none", "contrastive_top_k", "5", "1.0"]


def test_frame_is_sandboxed_and_holds_the_page() -> None:
    outer = Elements(frame(sample("hostile")))
    assert outer.tags == ["iframe"]
    attributes = outer.attributes["iframe"][0]
    assert attributes["sandbox"] == "allow-scripts"
    inner = Elements(attributes["srcdoc"] or "")
    assert decode(json.loads(inner.texts["script"][0]))[0].text == HOSTILE
