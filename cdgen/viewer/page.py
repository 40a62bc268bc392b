"""The contrast viewer of one text as an HTML page or a frame for notebooks: one file that loads nothing else."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from cdgen.viewer.encode import viewer_data

if TYPE_CHECKING:
    from cdgen.viewer.explanation import Explanation

# What could end the element or start a comment, what JavaScript once took for the end of a line, and half characters.
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_PARTS = {"viewer.js": ("data.js", "details.js", "viewer.js")}
_START = """"use strict";
cdgenViewer.mount(
    document.getElementById("viewer"),
    cdgenViewer.read(JSON.parse(document.getElementById("viewer-data").textContent))[0],
);
"""
# Values with which a sampling parameter does nothing.
_NEUTRAL = {
    "good_weight": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "outside_head": "mask",
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "bad_words": [],
    "min_tokens": 0,
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body class="viewer-page">
<main>
<h1{hidden}>{title}</h1>
<dl class="viewer-facts">
{facts}
</dl>
<div id="viewer">
<p class="viewer-plain" dir="auto">{text}</p>
<noscript><p>The colours and the details of each token need JavaScript.</p></noscript>
</div>
</main>
<script type="application/json" id="viewer-data">{data}</script>
<script>{viewer}</script>
<script>{start}</script>
</body>
</html>
"""
_FRAME = (
    '<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" '
    'style="width: 100%; height: 44rem; border: 0"></iframe>'
)
_FRAME_TITLE = "Contrast of GOOD and BAD, token by token"


def page(explanation: "Explanation", title: str) -> str:
    """Return an HTML page that shows a text in the contrast viewer.

    Args:
        explanation: the text.
        title: heading of the page, as plain text.

    Returns:
        A whole page, which loads nothing else.
    """
    return _page(explanation, title, hidden="")


def frame(explanation: "Explanation") -> str:
    """Return the contrast viewer of a text as an iframe for notebooks.

    The frame is sandboxed: its script can reach neither the notebook nor its server.
    """
    content = _page(explanation, _FRAME_TITLE, hidden=' class="visually-hidden"')
    return _FRAME.format(page=html.escape(content), title=_FRAME_TITLE)


def asset(name: str) -> str:
    """Return an asset: "base.css", "viewer.css", or "viewer.js" with the scripts that it needs."""
    folder = resources.files(__package__)
    return "".join(folder.joinpath(part).read_text(encoding="utf-8") for part in _PARTS.get(name, (name,)))


def script_json(value: Any) -> str:
    """Return a value as JSON that can stand inside `<script type="application/json">`, whatever its strings contain.

    Unpaired surrogates are escaped, since UTF-8 has none. JSON itself escapes control characters.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def policy(scripts: Sequence[str]) -> str:
    """Return the content security policy of a page that runs the given scripts and loads nothing.

    Args:
        scripts: what stands between `<script>` and `</script>`, to the byte.

    Returns:
        The `content` of `<meta http-equiv="Content-Security-Policy">`, which must stand before the first script.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"


def _page(explanation: "Explanation", title: str, hidden: str) -> str:
    viewer = asset("viewer.js")
    return _PAGE.format(
        policy=policy([viewer, _START]),
        title=_escaped(title),
        hidden=hidden,
        style=asset("base.css") + asset("viewer.css"),
        facts="\n".join(_facts(explanation)),
        text=_escaped(explanation.text),
        data=script_json(viewer_data([explanation])),
        viewer=viewer,
        start=_START,
    )


def _facts(explanation: "Explanation") -> list[str]:
    """Return the models and the sampling parameters that have an effect as rows of a definition list."""
    params = {name: value for name, value in explanation.params.items() if _NEUTRAL.get(name) != value}
    facts = {"GOOD": explanation.good, "BAD": explanation.bad or "none", **params}
    return [f"<div><dt>{_escaped(name)}</dt><dd>{_escaped(str(value))}</dd></div>" for name, value in facts.items()]


def _escaped(text: str) -> str:
    """Return text for HTML. HTML has no NUL, and UTF-8 no unpaired surrogates: signs stand for them."""
    return html.escape(text.replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8"))
