"""From matplotlib figures to SVG that belongs to a page: its colours and its font are those of the page."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from cdgen.errors import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 720, 350  # width of a plot across the page, and on a phone, in CSS pixels
SMALL = 310  # width of a plot that shares its row with others
FONT = 12  # font size of all text in plots, in CSS pixels
_STYLES = 8  # number of colours of methods on the page, --m0 to --m7
_MARKERS = "osD^vPX*"
# The names of the page's colours. matplotlib draws with a stand-in for each, which no plot needs as a colour.
_NAMES = ("fg", "muted", "line", "bg", "accent", *(f"m{index}" for index in range(_STYLES)))
_STAND_INS = {f"#5eed{index:02x}": f"var(--{name})" for index, name in enumerate(_NAMES)}
_SVG = "{http://www.w3.org/2000/svg}"


class Look(NamedTuple):
    """How a method is drawn.

    Attributes:
        color: its colour, for matplotlib.
        marker: its marker, so that methods differ by more than colour.
        name: its CSS custom property.
    """

    color: str
    marker: str
    name: str


def color(name: str) -> str:
    """Return what matplotlib draws with, for a CSS custom property of the page, such as "muted"."""
    return next(stand_in for stand_in, value in _STAND_INS.items() if value == f"var(--{name})")


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Return how each label is drawn. The first one, which is the baseline or the real text, gets a neutral colour."""
    found = {}
    for index, label in enumerate(labels):
        place = index if index < _STYLES else 1 + (index - 1) % (_STYLES - 1)
        shift = 0 if index < _STYLES else (index - 1) // (_STYLES - 1)
        name = f"m{place}"
        found[label] = Look(color(name), _MARKERS[(place + shift) % len(_MARKERS)], name)
    return found


def swatch(look: Look) -> Markup:
    """Return a marker in its colour, for text next to it."""
    from matplotlib.markers import MarkerStyle

    marker = MarkerStyle(look.marker)
    lines = [np.asarray(line) for line in marker.get_path().transformed(marker.get_transform()).to_polygons()]
    shape = "".join("M" + "L".join(f"{12 * x:.1f} {-12 * y:.1f}" for x, y in line) + "Z" for line in lines)
    return Markup(
        '<svg class="swatch" viewBox="-9 -9 18 18" aria-hidden="true"><path d="{}" fill="var(--{})"/></svg>'
    ).format(shape, look.name)


def shortened(text: str, width: int = 24) -> str:
    """Return a text for a plot, on one line; the middle of a long one is cut out, since labels differ at their ends."""
    text = escaped(text)
    return text if len(text) <= width else f"{text[: width - width // 2 - 1]}…{text[-(width // 2) :]}"


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure of a size in CSS pixels, and its axes, row by row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=4 / 72, h_pad=4 / 72)
    new = Figure(figsize=(width / 72, height / 72), layout=layout)
    grid = new.subplots(rows, columns, squeeze=False)
    found = list(grid.flat)
    new.patch.set_visible(False)
    for axes in found:
        _style(axes)
    return new, found


def _style(axes: "Axes") -> None:
    """Leave only what helps to read values: the lower axis and a faint grid."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(color("line"))
    axes.tick_params(colors=color("muted"), labelsize=FONT, length=0, pad=6)
    axes.tick_params(labelcolor=color("muted"))
    axes.xaxis.label.set(color=color("muted"), fontsize=FONT)
    axes.yaxis.label.set(color=color("muted"), fontsize=FONT)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=color("line"), linewidth=1)


def svg(drawn: "Figure", name: str, title: str, description: str) -> Markup:
    """Return a figure as an SVG element.

    Args:
        drawn: the figure.
        name: prefix of the ids in the element; it is unique on the page.
        title: what the plot shows.
        description: what can be seen in it, for people who cannot.
    """
    import matplotlib

    buffer = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "path.simplify": True}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the page's fonts have it
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for child in list(root)[:2]:  # the metadata, and a style that would hold for the whole page
        root.remove(child)
    used = {found for element in root.iter() for found in _references(element)}
    for element in root.iter():
        _adapt(element, name, used)
    _describe(root, name, title, description)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(element: ElementTree.Element) -> list[str]:
    """Return the ids that an element refers to, by a link or by its clip path."""
    return [found for value in element.attrib.values() for found in re.findall(r"(?:^|url\()#([^)]+)", value)]


def _adapt(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Make an element of matplotlib's file one of the page: no namespaces, unique ids, the page's colours and font."""
    element.tag = element.tag.removeprefix(_SVG)
    attributes = {}
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key == "id" and value not in used:
            continue
        if key == "id":
            value = f"{name}-{value}"
        elif key == "href":
            value = f"#{name}-{value[1:]}"
        elif key == "clip-path":
            value = value.replace("#", f"#{name}-")
        elif key == "style":
            value = _styled(value)
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif key in ("d", "x", "y", "transform"):
            value = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value).replace("\n", "")
        attributes[key] = value
    element.attrib.clear()
    element.attrib.update(attributes)


def _styled(style: str) -> str:
    style = re.sub(r"#5eed[0-9a-f]{2}", lambda found: _STAND_INS[found[0]], style)
    return re.sub(r"font-family: [^;]*(; )?|stroke-miterlimit: [^;]*(; )?", "", style)


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"})
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = escaped(text)
        root.insert(place, element)
