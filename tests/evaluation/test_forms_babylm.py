"""The forms of the BabyLM Challenge: examples computed by hand, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cdgen.errors import InputError
from cdgen.evaluation.forms import form
from cdgen.evaluation.metrics import estimate
from cdgen.evaluation.results import arrays
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.scoring.evaluator import Evaluator, Score
from cdgen.evaluation.tasks import Task


class Stated:
    """An evaluator with given log-probabilities, by context and continuation."""

    def __init__(self, logprobs: Mapping[tuple[str, str], float], convention: str = "babylm") -> None:
        self.logprobs, self.convention = logprobs, convention
        self.asked: list[Query] = []

    def continuations(self, queries: Sequence[Query]) -> list[Score]:
        """Return the given scores."""
        self.asked += queries
        return [Score(self.logprobs[query], 1, False) for query in queries]


def write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(task: Task, logprobs: Mapping[tuple[str, str], float]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Return the score table of a task and the values of its metrics."""
    kind = form(task.form)
    items = kind.items(task)
    table = kind.score(items, cast(Evaluator, Stated(logprobs)))
    columns = arrays(table, items, "test")
    return table, {metric.name: estimate(metric, columns) for metric in kind.metrics_of(task)}


def refused(task: Task, message: str) -> None:
    with pytest.raises(InputError, match=message):
        form(task.form).items(task)


# Minimal pairs: of phenomenon A one of two pairs is right, of B the only one is, and a tie is wrong.
PAIRS = [
    {"UID": "A", "sentence_good": "a good", "sentence_bad": "a bad"},
    {"UID": "A", "sentence_good": "tie one", "sentence_bad": "tie two"},
    {"UID": "B", "sentence_good": "b good", "sentence_bad": "b bad"},
]
PAIR_SCORES = {
    ("", "a good"): -3.0,
    ("", "a bad"): -5.0,
    ("", "tie one"): -4.0,
    ("", "tie two"): -4.0,
    ("", "b good"): -9.0,
    ("", "b bad"): -9.5,
}


def test_minimal_pairs(tmp_path: Path) -> None:
    task = Task("t", "minimal_pairs", write(tmp_path / "a.jsonl", PAIRS), {"group": "UID"})
    table, values = run(task, PAIR_SCORES)
    assert table == {"logprob_good": [-3.0, -4.0, -9.0], "logprob_bad": [-5.0, -4.0, -9.5], "correct": [1, 0, 1]}
    assert values == pytest.approx({"macro_accuracy": (1 / 2 + 1) / 2, "accuracy": 2 / 3})


def test_phenomena_are_files_by_default(tmp_path: Path) -> None:
    write(tmp_path / "island.jsonl", PAIRS[:1])
    write(tmp_path / "agreement.jsonl", PAIRS[2:])
    items = form("minimal_pairs").items(Task("t", "minimal_pairs", str(tmp_path)))
    assert [(item.id, item.group) for item in items] == [("agreement:1", "agreement"), ("island:1", "island")]


@pytest.mark.parametrize(
    ("convention", "options", "expected"),
    [("babylm", {}, "a good"), ("lm-eval", {}, " a good"), ("lm-eval", {"target_delimiter": ""}, "a good")],
)
def test_the_space_before_a_sentence(tmp_path: Path, convention: str, options: dict[str, str], expected: str) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS[:1])
    items = form("minimal_pairs").items(Task("t", "minimal_pairs", path, options=options))
    evaluator = Stated({("", text): 0.0 for text in (expected, expected.replace("good", "bad"))}, convention)
    form("minimal_pairs").score(items, cast(Evaluator, evaluator))
    assert evaluator.asked[0] == Query("", expected)


# EWoK: the first item is right in both directions; in the second, target 1 is preferred after both contexts.
EWOK = [
    {"Domain": "social", "Context1": "c1", "Context2": "c2", "Target1": "t1", "Target2": "t2"},
    {"Domain": "physical", "Context1": "d1", "Context2": "d2", "Target1": "u1", "Target2": "u2"},
]
EWOK_SCORES = {
    ("c1", " t1"): -1.0,
    ("c1", " t2"): -2.0,
    ("c2", " t1"): -4.0,
    ("c2", " t2"): -3.0,
    ("d1", " u1"): -1.0,
    ("d1", " u2"): -6.0,
    ("d2", " u1"): -2.0,
    ("d2", " u2"): -5.0,
}


def test_ewok(tmp_path: Path) -> None:
    third = {"Domain": "social", "Context1": "c2", "Context2": "c1", "Target1": "t1", "Target2": "t2"}
    table, values = run(Task("t", "ewok", write(tmp_path / "a.jsonl", [*EWOK, third])), EWOK_SCORES)
    assert table["correct"] == [1.0, 0.5, 0.0]  # the third pairs each context with the other's target
    # EWoK's own comparison: after c1, t1 is more probable than after c2, but t2 is too.
    assert table["context_correct"] == [0.5, 1.0, 0.5]
    assert values["macro_context_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert values["macro_accuracy"] == pytest.approx(((1 + 0) / 2 + 0.5) / 2)
    assert values["accuracy"] == pytest.approx(0.5)
    assert [table[f"logprob_{which}"][0] for which in ("11", "12", "21", "22")] == [-1.0, -4.0, -2.0, -3.0]


def test_an_item_of_ewok_that_is_repeated_with_contexts_and_targets_swapped(tmp_path: Path) -> None:
    swapped = [
        {"Domain": r["Domain"], "Context1": r["Context2"], "Context2": r["Context1"], "Target1": r["Target2"]}
        | {"Target2": r["Target1"]}
        for r in EWOK
    ]
    both = [record for pair in zip(EWOK, swapped, strict=True) for record in pair]
    once = run(Task("t", "ewok", write(tmp_path / "once.jsonl", EWOK)), EWOK_SCORES)
    twice = run(Task("t", "ewok", write(tmp_path / "twice.jsonl", both)), EWOK_SCORES)
    assert once == twice and len(twice[0]["correct"]) == 2


# Entity tracking: right, right, wrong with 0 operations; right with 1; a tie with 2.
BOXES = [
    {"numops": 0, "input_prefix": "p0 ", "options": ["a", "b"]},
    {"numops": 0, "input_prefix": "p1 ", "options": ["a", "b", "c"]},
    {"numops": 0, "input_prefix": "p2 ", "options": ["a", "b", "a"]},
    {"numops": 1, "input_prefix": "p3 ", "options": ["a", "b"]},
    {"numops": 2, "input_prefix": "p4 ", "options": ["a", "b"]},
]
BOX_SCORES = {
    ("p0 ", "a"): -1.0,
    ("p0 ", "b"): -2.0,
    ("p1 ", "a"): -1.0,
    ("p1 ", "b"): -2.0,
    ("p1 ", "c"): -1.5,
    ("p2 ", "a"): -3.0,
    ("p2 ", "b"): -2.0,
    ("p3 ", "a"): -7.0,
    ("p3 ", "b"): -8.0,
    ("p4 ", "a"): -7.0,
    ("p4 ", "b"): -7.0,
}


def test_entity_tracking_and_both_of_its_averages(tmp_path: Path) -> None:
    task = Task("t", "entity_tracking", write(tmp_path / "regular.jsonl", BOXES))
    table, values = run(task, BOX_SCORES)
    assert [item.group for item in form("entity_tracking").items(task)] == [f"regular_{n}_ops" for n in (0, 0, 0, 1, 2)]
    assert table["correct"] == [1, 1, 0, 1, 0]
    assert table["choice"] == [0, 0, 1, 0, 0]
    assert table["margin"] == [1.0, 0.5, -1.0, 1.0, 0.0]
    assert values == pytest.approx({"macro_accuracy": (2 / 3 + 1 + 0) / 3, "accuracy": 3 / 5})


def test_entity_tracking_without_a_file() -> None:
    items = form("entity_tracking").items(Task("t", "entity_tracking", options={"items": 8, "operations": 3}, seed=1))
    assert [item.group for item in items] == [f"{n}_ops" for n in (0, 1, 2, 3, 0, 1, 2, 3)]
    again = form("entity_tracking").items(Task("t", "entity_tracking", options={"operations": 3}, limit=5, seed=1))
    assert again == items[:5]
    other = form("entity_tracking").items(Task("t", "entity_tracking", options={"operations": 3}, limit=5, seed=2))
    assert [item.content for item in other] != [item.content for item in again]
    assert items[0].content["prefix"].endswith("contains") and items[0].content["options"][0].startswith(" the ")


# Wug: the model's preferences are 1, -2, 3 (ranks 2, 1, 3), people's ratios 0.2, 0.5, 0.9 (ranks 1, 2, 3).
WUGS = [
    {"sentences": "a ity\ta ness", "ratio": 0.2},
    {"sentences": "b ity\tb ness", "ratio": "0.5"},
    {"sentences": ["c ity", "c ness"], "ratio": 0.9},
]
WUG_SCORES = {
    ("", "a ity"): -4.0,
    ("", "a ness"): -5.0,
    ("", "b ity"): -4.0,
    ("", "b ness"): -2.0,
    ("", "c ity"): -50.0,
    ("", "c ness"): -53.0,
}


def test_wug(tmp_path: Path) -> None:
    table, values = run(Task("t", "wug", write(tmp_path / "a.jsonl", WUGS)), WUG_SCORES)
    assert table["preference"] == [1.0, -2.0, 3.0] and table["human"] == [0.2, 0.5, 0.9]
    assert values == pytest.approx({"spearman": 1 - 6 * (1 + 1 + 0) / (3 * (9 - 1))})


# Reading: the last record has no time, and the first word of a sentence has no previous one.
def word(at: int, *, time: float | None, other: float = 1.0) -> dict[str, Any]:
    return {
        "item": f"c{at}",
        "word": f"w{at}",
        "Subtlex_log10": [3.0, 1.0, 2.0, 4.0, 2.5, 1.5][at % 6] + at / 7,
        "length": [3, 5, 2, 8, 4, 6, 7][at % 7],
        "context_length": at % 5 + 1,
        "prev_item": f"c{at - 1}" if at else "",
        "prev_word": f"w{at - 1}" if at else None,
        "prev_length": [3, 5, 2, 8, 4, 6, 7][(at - 1) % 7] if at else None,
        "time": time,
        "other": other,
    }


WORDS = 40
SURPRISALS = np.random.default_rng(0).gamma(2.0, 2.0, WORDS)
TIMES = [200 + 10 * SURPRISALS[at] + 5 * (at % 7) + 20 * np.sin(at) for at in range(WORDS)]
READING = [word(at, time=TIMES[at], other=100 + at % 3 * SURPRISALS[at]) for at in range(WORDS)]
READING_SCORES = {(f"c{at}", f" w{at}"): -SURPRISALS[at] for at in range(WORDS)}


def r2(response: Sequence[float], *columns: Sequence[float]) -> float:
    """Return R² of a linear regression with an intercept."""
    x = np.column_stack([np.ones(len(response)), *columns])
    y = np.array(response)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - residual.var() / y.var())


def with_products(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return columns and all products of two of them."""
    return [*columns, *(one * other for at, one in enumerate(columns) for other in columns[:at])]


def column(name: str, start: int = 0) -> np.ndarray:
    return np.array([record[name] for record in READING[start:]], dtype=float)


def test_eye_tracking(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*READING, word(WORDS, time=None)])
    table, values = run(Task("t", "reading", path, {"response": ["time", "other"]}), READING_SCORES)
    assert table["surprisal"] == pytest.approx(SURPRISALS)
    baseline = with_products([column("Subtlex_log10"), column("length"), column("context_length")])
    gains, shares = [], []
    for name in ("time", "other"):
        before, after = r2(list(column(name)), *baseline), r2(list(column(name)), *baseline, SURPRISALS)
        gains.append(after - before)
        shares.append((after - before) / (1 - before))
    assert values == pytest.approx({"partial_r2": np.mean(shares), "r2_gain": np.mean(gains)}, rel=1e-6)
    assert gains[0] > 0.1


def test_self_paced_reading(tmp_path: Path) -> None:
    previous = {"previous_context": "prev_item", "previous_word": "prev_word", "previous_length": "prev_length"}
    path = write(tmp_path / "a.jsonl", READING)
    table, values = run(Task("t", "reading", path, {"response": "time"} | previous), READING_SCORES)
    assert table["previous_surprisal"] == pytest.approx(SURPRISALS[:-1])  # the first word has none and is left out
    names = ("Subtlex_log10", "length", "context_length", "prev_length")
    baseline = with_products([*(column(name, 1) for name in names), SURPRISALS[:-1]])
    before, after = r2(TIMES[1:], *baseline), r2(TIMES[1:], *baseline, SURPRISALS[1:])
    expected = {"partial_r2": (after - before) / (1 - before), "r2_gain": after - before}
    assert values == pytest.approx(expected, rel=1e-6)


def test_a_word_is_scored_once_in_a_context(tmp_path: Path) -> None:
    previous = {"previous_context": "prev_item", "previous_word": "prev_word", "previous_length": "prev_length"}
    task = Task("t", "reading", write(tmp_path / "a.jsonl", READING), {"response": "time"} | previous)
    evaluator = Stated(READING_SCORES)
    form("reading").score(form("reading").items(task), cast(Evaluator, evaluator))
    assert sorted(evaluator.asked) == sorted(READING_SCORES)


PAIR, ENTITY, WUG, TIME = PAIRS[0], BOXES[0], WUGS[0], READING[1]
BAD_RECORDS = [
    ("minimal_pairs", PAIR | {"sentence_bad": " "}, "line 1: field 'bad' is empty"),
    ("minimal_pairs", PAIR | {"sentence_bad": 3}, "line 1: field 'bad' is not text but int"),
    ("minimal_pairs", PAIR | {"sentence_bad": "a good"}, "'good' and 'bad' are the same text; remove the record"),
    ("minimal_pairs", {"sentence_good": "a"}, "line 1 has no field 'sentence_bad'"),
    ("ewok", EWOK[0] | {"Target2": "t1"}, "'target_1' and 'target_2' are the same text; remove the record"),
    ("ewok", EWOK[0] | {"Context2": "c1"}, "'context_1' and 'context_2' are the same text; remove the record"),
    ("ewok", {"Context1": "c"}, "line 1 has no field"),
    ("entity_tracking", ENTITY | {"options": "a"}, "'options' = 'a': must be a list of texts, the right one first"),
    ("entity_tracking", ENTITY | {"options": ["a", "a"]}, "must have a right and a wrong option"),
    ("entity_tracking", ENTITY | {"options": []}, "must have a right and a wrong option"),
    ("entity_tracking", ENTITY | {"options": ["a", ""]}, "'options' holds ''; each option must be text"),
    (
        "entity_tracking",
        ENTITY | {"options": ["a", "\ud800"]},
        "line 1: character 0 of an option of field 'options' is",
    ),
    ("entity_tracking", ENTITY | {"input_prefix": ""}, "field 'prefix' is empty"),
    ("wug", WUG | {"sentences": "a"}, "must be two texts, as a list or with a tab between them"),
    ("wug", WUG | {"sentences": "a\ta"}, "both must be text, and they must differ"),
    ("wug", WUG | {"sentences": "a\t\ud800"}, "line 1: character 0 of a text of field 'sentences' is half of a surrog"),
    ("wug", WUG | {"ratio": "many"}, "field 'ratio' = 'many': must be a finite number"),
    ("wug", WUG, "all items have the same 'ratio'"),
    ("reading", TIME | {"length": "long"}, "field 'length' = 'long': must be a finite number"),
    ("reading", TIME | {"time": "fast"}, "field 'response' = 'fast': must be a finite number"),
    ("reading", TIME | {"item": ""}, "field 'context' is empty"),
    (
        "reading",
        TIME | {"time": None},
        "has 0 words with all values, but the regression has 8 coefficients; use more words",
    ),
]


@pytest.mark.parametrize(("name", "record", "message"), BAD_RECORDS)
def test_bad_records(tmp_path: Path, name: str, record: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"response": "time"} if name == "reading" else {}
    refused(Task("t", name, write(tmp_path / "a.jsonl", [record]), fields), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "task t: option items = 0: must be 1 to"),
        ({"operations": 21}, "task t: option operations = 21: must be 0 to 20"),
        ({"boxes": 3}, "task t: option boxes = 3: must be 4 to 12"),
    ],
)
def test_bad_options_of_made_stories(options: dict[str, int], message: str) -> None:
    refused(Task("t", "entity_tracking", options=options), message)


def test_options_of_made_stories_with_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", BOXES)
    refused(Task("t", "entity_tracking", path, options={"items": 5}), "option 'items' is for stories that are made")


def test_some_fields_of_the_previous_word(tmp_path: Path) -> None:
    fields = {"response": "time", "previous_word": "prev_word"}
    refused(Task("t", "reading", write(tmp_path / "a.jsonl", READING), fields), "but not 'previous_context'")
