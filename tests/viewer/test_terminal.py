"""Explanations on a terminal: colours, what a terminal without colours gets, unsafe text, and the table."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from cdgen.viewer.encode import CONTRAST_STEPS, contrast_step
from cdgen.viewer.explanation import Candidate, ExplainedToken, Explanation, Prediction
from cdgen.viewer.page import asset
from cdgen.viewer.terminal import BACKGROUNDS, FOREGROUND, print_explanation
from tests.helpers.explanations import TEXTS, sample

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printed(explanation: Explanation, color_system: str | None = None, width: int = 80, **options: bool) -> str:
    """Return what is printed to a terminal with these colours; None stands for a pipe."""
    file = io.StringIO()
    terminal = color_system is not None
    console = Console(file=file, width=width, color_system=color_system, force_terminal=terminal, **options)
    print_explanation(console, explanation)
    return file.getvalue()


def coloured(text: str) -> dict[str, str]:
    """Return the background of every printed part that has one, by the part, as #rrggbb."""
    found = re.findall(r"\x1b\[(?:4;)?38;2;28;30;33;48;2;(\d+);(\d+);(\d+)m([^\x1b]*)\x1b", text)
    return {part: "#" + "".join(f"{int(value):02x}" for value in colour) for *colour, part in found}


def explained(*contrasts: float, text: tuple[str, ...] = ()) -> Explanation:
    """Return an explanation in which a token has each contrast; tokens are named t0, t1, ... unless `text` is given."""
    pieces = ("start", *(text or [f"t{number}" for number in range(len(contrasts))]))
    tokens = [ExplainedToken(0, "start", None)]
    for number, contrast in enumerate(contrasts, 1):
        one = Candidate(number, math.log(0.25), math.log(0.25) - contrast, math.log(0.5))
        prediction = Prediction(one.good, one.bad, one.logprob, 1.0, 1, 1, (one,), number, number)
        tokens.append(ExplainedToken(number, pieces[number], prediction))
    params = {"method": "contrastive"}
    return Explanation(tuple(tokens), 1, dict(enumerate(pieces)), frozenset(), "good", "bad", params)


def changed(explanation: Explanation, change: Callable[[int, Prediction], Prediction]) -> Explanation:
    """Return an explanation with every prediction replaced by what `change` returns for its place."""
    tokens = [
        replace(token, prediction=token.prediction and change(place, token.prediction))
        for place, token in enumerate(explanation.tokens)
    ]
    return replace(explanation, tokens=tuple(tokens))


def without_effect(_: int, prediction: Prediction) -> Prediction:
    return replace(prediction, logprob=prediction.good)


def test_colours_are_those_of_pages() -> None:
    light = asset("base.css").partition("@media")[0]
    values = dict(re.findall(r"--(\S+): ([^;]+);", light))
    names = [f"c{step}" for step in range(-len(CONTRAST_STEPS), len(CONTRAST_STEPS) + 1)]
    assert [values[name].replace("var(--bg)", values["bg"]) for name in names] == list(BACKGROUNDS)
    assert values["fg"] == FOREGROUND


def test_every_token_has_the_colour_of_its_contrast_and_the_legend_names_it() -> None:
    contrasts = [-9.0, -4.0, -1.9, -0.3, -0.2, 0.0, 0.2, 0.3, 1.9, 4.0, 9.0]
    output = printed(explained(*contrasts), "truecolor", 200)
    found = coloured(output)
    assert [found[f"t{at}"] for at in range(len(contrasts))] == [BACKGROUNDS[5 + contrast_step(x)] for x in contrasts]
    legend = output.partition("log p_GOOD - log p_BAD: ")[2].partition("\n")[0]
    assert list(coloured(legend).values()) == list(BACKGROUNDS)
    for label, background in coloured(legend).items():
        assert background == BACKGROUNDS[5 + contrast_step(float(label))]
    assert "start" not in found, "nothing predicts the first token"
    assert "\x1b[4mstart" in output and output.count("\x1b[4") == 1 and "prompt is underlined" in output


@pytest.mark.parametrize(
    ("color_system", "options"), [(None, {}), ("standard", {}), ("truecolor", {"no_color": True})], ids=str
)
def test_without_colours_there_are_the_text_and_the_table(color_system: str | None, options: dict[str, bool]) -> None:
    output = printed(sample("english"), color_system, **options)
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    assert "".join(TEXTS["english"]) in " ".join(line.strip() for line in plain.splitlines())  # type: ignore[arg-type]
    assert "log p_GOOD" not in plain and "p sampling" in plain
    assert re.search(r"\x1b\[(\d+;)*[34][0-8]", output) is None
    if color_system is None:
        assert output == plain and "underlined" not in plain


@pytest.mark.parametrize("color_system", [None, "truecolor"])
def test_no_text_controls_the_terminal(color_system: str | None) -> None:
    evil = ("\x1b[2J", "\x9b31m", "\x00", "\u202e", "\t", "\x7f", "[bold red]", ":smile:", "\\")
    shown = (r"\x1b[2J", r"\x9b31m", r"\x00", r"\u202e", r"\t", r"\x7f", "[bold red]", ":smile:", "\\")
    one = replace(explained(*[1.0] * len(evil), text=evil), good="g\x1b[1m", bad="\u202eb")
    output = re.sub(r"\x1b\[[\d;]*m", "", printed(one, color_system, 200))
    assert CONTROL.search(output) is None
    assert "start" + "".join(shown) in output
    assert r"GOOD g\x1b[1m, BAD \u202eb" in output
    assert all(f'"{text}"' in output for text in shown), "the table"


def test_line_breaks_are_kept_and_marked() -> None:
    output = printed(explained(1.0, 1.0, 1.0, text=("one", "\n\n", "two\nthree")))
    assert "\nstartone↵\n↵\ntwo↵\nthree\n" in output
    assert r'"two\nthree"' in output


def test_parts_of_characters_and_special_tokens() -> None:
    output = printed(sample("emoji"), width=200)
    assert "Snow<20 e2 98><83> ☃ and a rocket<20 f0 9f><9a><80> 🚀!" in output
    assert re.search(r"^ *2 <83> ", output, re.M), "the table"
    special = printed(replace(explained(1.0, text=("</s>",)), special_ids=frozenset({1})))
    assert re.search(r"^1 </s> ", special, re.M) and '"</s>"' not in special
    mark = printed(explained(1.0, text=("\u093f",)))
    assert '"◌\u093f"' in mark, "a vowel sign has a base in the table"


def test_the_table_has_the_most_affected_tokens_in_the_order_of_the_text() -> None:
    effects = {23: {"logprob": math.log(0.9)}, 27: {"logprob": -math.inf, "best_id": 9, "good_best_id": 10}}
    little = {"logprob": math.log(0.251)}
    one = changed(explained(*[0.5] * 30), lambda place, before: replace(before, **effects.get(place, little)))
    rows = [line.split() for line in printed(one).splitlines() if re.match(" ?[0-9]+ ", line)]
    places = [int(row[0]) for row in rows]
    assert len(rows) == 12 and places == sorted(places)
    assert rows[places.index(23)][1:] == ['"t22"', "+0.50", "25.0%", "15.2%", "90.0%", '"t22"', '"t22"']
    assert rows[places.index(27)][1:] == ['"t26"', "+0.50", "25.0%", "15.2%", "0%", '"t8"', '"t9"']


def test_temperature_0_and_bans_of_all_tokens() -> None:
    one = changed(sample("english"), lambda _, before: replace(before, drawable=0, logprob=-math.inf))
    output = printed(one)
    assert "emperature" not in output
    rows = [line for line in output.splitlines() if re.match(" ?[0-9]+ ", line)]
    assert len(rows) == 12 and all(re.search(r" 0% *none ", row) for row in rows)
    greedy = printed(replace(sample("english"), params={**sample("english").params, "temperature": 0.0}))
    assert "Temperature 0 takes the best score; p sampling is at temperature 1." in greedy


def test_without_an_effect_on_probabilities_the_largest_contrasts_are_listed() -> None:
    output = printed(changed(explained(*[0.1] * 20, -3.0), without_effect))
    assert "Largest contrasts" in output and re.search(r'^21 "t20" +-3\.00', output, re.M)


def test_without_bad_there_is_no_contrast() -> None:
    one = sample("english", bad=None)
    output = printed(one, "truecolor")
    assert "no BAD, so there is no contrast" in output
    assert coloured(output) == {} and "p BAD" not in output and "p sampling" in output
    assert "p sampling" not in printed(changed(one, without_effect)), "nothing to compare"


@pytest.mark.parametrize("name", TEXTS)
def test_every_line_fits_into_80_columns(name: str) -> None:
    long = replace(sample(name), pieces={key: piece * 9 for key, piece in sample(name).pieces.items()})
    for line in printed(long).splitlines():
        assert cell_len(line) <= 80, line
    assert "…" not in "".join(re.findall(r"\d+…", printed(long))), "numbers are whole"
