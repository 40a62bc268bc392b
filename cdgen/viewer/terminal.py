"""An explanation on a terminal: the text coloured by contrast, a legend, and a table of the most affected tokens."""

import math
import unicodedata
from typing import TYPE_CHECKING

from cdgen.errors import escaped, printable
from cdgen.viewer.encode import CONTRAST_STEPS, contrast_step
from cdgen.viewer.explanation import ExplainedToken, Explanation, Prediction

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# The light theme of base.css: --fg, and --c-5 to --c5. Text and background are both set, so the colours of the terminal
# do not matter.
FOREGROUND = "#1c1e21"
BACKGROUNDS = (
    *("#e08214", "#f0a650", "#f8c88f", "#fbdfbd", "#fdf0e0"),
    "#fdfdfc",
    *("#e8f0f9", "#cfe0f3", "#a9c9ea", "#7fade0", "#5690d3"),
)
ROWS = 12  # rows of the table
_TOKENS = ("token", "greedy", "GOOD's best")  # columns that hold tokens
_WIDEST = 14  # terminal cells of these columns, so that the table fits into 80


def print_explanation(console: "Console", explanation: Explanation) -> None:
    """Print an explanation.

    Without BAD, on a terminal with fewer than 256 colours, in a pipe, and with NO_COLOR, the text has no colours.
    Control characters, and characters that change the direction of the text, are shown as escapes.
    """
    from rich.text import Text

    contrasted = explanation.bad is not None
    coloured = contrasted and not console.no_color and console.color_system in ("256", "truecolor")
    bad = f"BAD {explanation.bad}" if contrasted else "no BAD, so there is no contrast"
    console.print(Text(printable(f"GOOD {explanation.good}, {bad}; {explanation.params['method']}")), soft_wrap=True)
    console.print()
    console.print(_text(explanation, coloured))
    if coloured:
        console.print()
        console.print(_legend())
    if explanation.prompt_length and console.color_system:
        console.print(Text("The prompt is underlined."))
    table = _table(explanation)
    if table is not None:
        console.print()
        console.print(table)
        if explanation.params.get("temperature") == 0:
            console.print(Text("Temperature 0 takes the best score; p sampling is at temperature 1."))


def _text(explanation: Explanation, coloured: bool) -> "Text":
    """Return the whole text, the prompt underlined."""
    from rich.text import Text

    text = Text()
    for position, token in enumerate(explanation.tokens):
        styles = ["underline"] if position < explanation.prompt_length else []
        if coloured and token.prediction is not None:
            styles.append(_colours(contrast_step(token.prediction.contrast or 0.0)))
        text.append(_printed(token, explanation), " ".join(styles))
    return text


def _printed(token: ExplainedToken, explanation: Explanation) -> str:
    """Return what a token adds to the printed text: bytes as in <e2 98>, and a mark before every line break."""
    piece = explanation.pieces[token.token_id]
    part = _hexadecimal(piece) if isinstance(piece, bytes) else ""
    return part + "↵\n".join(map(escaped, token.text.split("\n")))


def _hexadecimal(piece: bytes) -> str:
    return f"<{piece.hex(' ')}>"


def _colours(step: int) -> str:
    return f"{FOREGROUND} on {BACKGROUNDS[step + len(CONTRAST_STEPS)]}"


def _legend() -> "Text":
    from rich.text import Text

    text = Text("log p_GOOD - log p_BAD: ")
    for contrast in (*(-bound for bound in reversed(CONTRAST_STEPS)), 0, *CONTRAST_STEPS):
        text.append(f" {contrast:+g} " if contrast else " 0 ", _colours(contrast_step(contrast)))
    return text


def _table(explanation: Explanation) -> "Table | None":
    """Return the table of the tokens whose probability decoding changes most; None if there is nothing to compare."""
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    found = [(place, token.prediction) for place, token in enumerate(explanation.tokens) if token.prediction]
    most = sorted(found, key=lambda one: _effect(one[1]), reverse=True)[:ROWS]
    changed, contrast = _effect(most[0][1]) if most else (0.0, 0.0)
    if not changed and not contrast:
        return None
    rows = [_row(place, prediction, explanation) for place, prediction in sorted(most, key=lambda one: one[0])]
    title = "Largest differences between p GOOD and p sampling" if changed else "Largest contrasts"
    columns = [
        Column(name, no_wrap=True, max_width=_WIDEST) if name in _TOKENS else Column(name, justify="right")
        for name in rows[0]
    ]
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE, show_edge=False, padding=0)
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table


def _effect(prediction: Prediction) -> tuple[float, float]:
    """Return how much decoding changes the probability of a token, rounded to 0.1 %, and the size of its contrast."""
    change = abs(math.exp(prediction.logprob) - math.exp(prediction.good))
    return round(change, 3), abs(prediction.contrast or 0.0)


def _row(place: int, prediction: Prediction, explanation: Explanation) -> dict[str, str]:
    """Return the cells of a token by the name of their column."""
    contrasts = {} if prediction.contrast is None else {"contrast": f"{prediction.contrast:+.2f}"}
    bad = {} if prediction.bad is None else {"p BAD": _percent(prediction.bad)}
    token, best, good_best = (
        _quoted(number, explanation)
        for number in (explanation.tokens[place].token_id, prediction.best_id, prediction.good_best_id)
    )
    greedy = best if prediction.drawable else "none"  # all tokens are banned
    before = {"#": str(place), "token": token, **contrasts, "p GOOD": _percent(prediction.good), **bad}
    return before | {"p sampling": _percent(prediction.logprob), "greedy": greedy, "GOOD's best": good_best}


def _quoted(token_id: int, explanation: Explanation) -> str:
    """Return how the table shows a token: " the" in quotes, bytes as in <e2 98>, or the name of a special token."""
    piece = explanation.pieces[token_id]
    if isinstance(piece, bytes):
        return _hexadecimal(piece)
    if token_id in explanation.special_ids:
        return escaped(piece)
    base = "◌" if unicodedata.category(piece[:1] or " ").startswith("M") else ""  # for a combining mark
    return f'"{base}{escaped(piece)}"'


def _percent(logprob: float) -> str:
    probability = math.exp(logprob)
    return "0%" if probability == 0 else "<0.1%" if probability < 0.001 else f"{probability:.1%}"
