"""Multiple choice and word problems: examples computed by hand, prompts of the task files, and what is refused."""

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cdgen.errors import InputError
from cdgen.evaluation.forms import form
from cdgen.evaluation.forms.numbers import last_number
from cdgen.evaluation.metrics import estimate
from cdgen.evaluation.results import arrays
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.scoring.evaluator import Evaluator, Score
from cdgen.evaluation.tasks import Task, parse_task


class Stated:
    """An evaluator with given scores by continuation, and given answers by the last line but one of the prompt."""

    model = SimpleNamespace(name="stated", position_limit=300)

    def __init__(self, scores: Mapping[str, tuple[float, int]], answers: Mapping[str, str] | None = None) -> None:
        self.scores, self.answers = scores, answers or {}
        self.asked: list[Query] = []
        self.generated: list[tuple[str, int, tuple[str, ...]]] = []

    def continuations(self, queries: Sequence[Query]) -> list[Score]:
        """Return the given log-probabilities and numbers of tokens."""
        self.asked += queries
        return [Score(*self.scores[query.continuation], False) for query in queries]

    def generate(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str]) -> list[str]:
        """Return the given answers."""
        self.generated += [(prompt, max_tokens, tuple(stop)) for prompt in prompts]
        return [self.answers[prompt.splitlines()[-2]] for prompt in prompts]


def write(path: Path, *records: Mapping[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(task: Task, stated: Stated) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Return the score table of a task and the values of its metrics."""
    kind = form(task.form)
    items = kind.items(task)
    table = kind.score(items, cast(Evaluator, stated))
    columns = arrays(table, items, "test")
    return table, {metric.name: estimate(metric, columns) for metric in kind.metrics}


FIELDS: dict[str, str | list[str]] = {"context": "q", "choices": "answers", "label": "right"}


def choice_task(path: Path, *records: Mapping[str, Any], **options: Any) -> Task:
    return Task("t", "multiple_choice", write(path / "a.jsonl", *records), FIELDS, options)


def test_accuracies_by_hand(tmp_path: Path) -> None:
    # "ab" is the most probable one, with -3 per token and -1.5 per byte; "cdefgh" has -2 per token, "éé" -1.25 per byte
    # but -2.5 per character.
    scores = {" ab": (-3.0, 1), " cdefgh": (-8.0, 4), " éé": (-5.0, 2)}
    answers = ["ab", "cdefgh", "éé"]
    records = [{"q": "Q", "answers": answers, "right": right} for right in (0, 1, 2, 1)]
    stated = Stated(scores)
    table, values = run(choice_task(tmp_path, *records), stated)
    assert stated.asked[:3] == [("Q", " ab"), ("Q", " cdefgh"), ("Q", " éé")]
    assert table["prediction"] == [0] * 4 and table["label"] == [0, 1, 2, 1]
    assert table["logprobs"][0] == [-3.0, -8.0, -5.0] and table["tokens"][0] == [1, 4, 2]
    assert table["correct_per_token"] == [0, 1, 0, 1]  # -3, -2, -2.5
    assert table["correct_per_byte"] == [0, 0, 1, 0]  # -1.5, -1.33, -1.25
    assert values == pytest.approx({"accuracy": 0.25, "accuracy_per_token": 0.5, "accuracy_per_byte": 0.25})


def test_equal_choices_are_won_by_the_first(tmp_path: Path) -> None:
    records = [{"q": "Q", "answers": ["a", "b"], "right": right} for right in (0, 1)]
    assert run(choice_task(tmp_path, *records), Stated({" a": (-1, 1), " b": (-1, 1)}))[0]["correct"] == [1, 0]


def test_the_delimiter_is_an_option(tmp_path: Path) -> None:
    stated = Stated({"a": (-1, 1), "b": (-2, 1)})
    run(choice_task(tmp_path, {"q": "Q", "answers": ["a", "b"], "right": 0}, target_delimiter=""), stated)
    assert stated.asked == [("Q", "a"), ("Q", "b")]


@pytest.mark.parametrize(
    ("label", "choices", "number"),
    [
        (1, ["x", "y"], 1),
        ("1", ["x", "y"], 1),
        ("B", ["x", "y"], 1),
        ("y", ["x", "y"], 1),
        ("A", ["B", "A"], 1),  # the choice, not the letter
        (0, ["1", "0"], 0),  # the number, not the choice
        ("0", ["0", "1"], 0),
    ],
)
def test_labels(tmp_path: Path, label: object, choices: list[str], number: int) -> None:
    task = choice_task(tmp_path, {"q": "Q", "answers": choices, "right": label})
    assert form("multiple_choice").items(task)[0].content["label"] == number


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"right": 2}, "a.jsonl: line 1: field 'label' = 2: must be a number from 0 to 1, a letter from A to B, or"),
        ({"right": -1}, "field 'label' = -1: must be a number from 0 to 1"),
        ({"right": ""}, "field 'label' = '': must be a number from 0 to 1"),
        ({"right": None}, "field 'label' = None"),
        ({"right": True}, "field 'label' = True"),
        ({"right": "C"}, "field 'label' = 'C'"),
        ({"right": "1", "answers": ["1", "0"]}, r"field 'label' = '1': may mean the choices \[0, 1\], from 0"),
        ({"answers": ["x", "x"], "right": "x"}, r"field 'label' = 'x': may mean the choices \[0, 1\], from 0"),
        ({"answers": ["x"]}, "field 'choices' = .'x'.: must be a list of at least two texts"),
        ({"answers": "xy"}, "field 'choices' = 'xy': must be a list"),
        ({"answers": ["x", " "]}, "choice 1 of field 'choices' is empty"),
        ({"answers": ["x", 1]}, "choice 1 of field 'choices' is not text but int"),
        ({"q": None}, "field 'context' is not text but NoneType"),
    ],
)
def test_records_that_cannot_be_used(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    task = choice_task(tmp_path, {"q": "Q", "answers": ["x", "y"], "right": 0} | record)
    with pytest.raises(InputError, match=message):
        form("multiple_choice").items(task)


COPA = {
    "premise": "My body cast a shadow. ",
    "choice1": "The sun rose.",
    "choice2": "É.",
    "question": "cause",
    "label": 0,
}
HELLASWAG = {
    "activity_label": "Roofing",
    "ctx_a": "A man sits.",
    "ctx_b": "he Starts [title] x [step] now",
    "endings": ["is  using [title] wrap.", "[header] rips", "holds  a [b] c", "starts"],
    "label": "3",
}
CHOICES_OF = {"text": ["bank", "library", "store", "mall", "york"], "label": list("ABCDE")}
# The expected prompts are those of lm-evaluation-harness 0.4 for these records.
PROMPTS: list[tuple[str, dict[str, Any], str, list[str], int]] = [
    ("copa", COPA, "My body cast a shadow because", ["  the sun rose.", "  é."], 0),
    ("xcopa_it", COPA, "My body cast a shadow perché", [" the sun rose.", " é."], 0),
    ("xcopa_sw", COPA | {"question": "effect"}, "My body cast a shadow kwa hiyo", [" the sun rose.", " é."], 0),
    (
        "hellaswag",
        HELLASWAG,
        "Roofing: A man sits. He starts. x now",
        [" is using. wrap.", "  rips", " holds a c", " starts"],
        3,
    ),
    ("piqa", {"goal": "Do?", "sol1": "a", "sol2": "b ", "label": 1}, "Question: Do?\nAnswer:", [" a", " b "], 1),
    (
        "commonsense_qa",
        {"question": " Where? ", "choices": CHOICES_OF, "answerKey": "C"},
        "Question: Where?\nA. bank\nB. library\nC. store\nD. mall\nE. york\nAnswer:",
        [" A", " B", " C", " D", " E"],
        2,
    ),
    (
        "belebele",
        {"flores_passage": "P.", "question": " Q? ", "correct_answer_num": "3"}
        | {f"mc_answer{number}": f"a{number}" for number in (1, 2, 3, 4)},
        "P: P.\nQ: Q?\nA: a1\nB: a2\nC: a3\nD: a4\nAnswer:",
        [" A", " B", " C", " D"],
        2,
    ),
]


@pytest.mark.parametrize(("name", "record", "context", "choices", "label"), PROMPTS, ids=[each[0] for each in PROMPTS])
def test_prompts_of_task_files(
    tmp_path: Path, name: str, record: dict[str, Any], context: str, choices: list[str], label: int
) -> None:
    task = parse_task(f"{name}={write(tmp_path / 'a.jsonl', record)}")
    content = form(task.form).items(task)[0].content
    assert content["context"] == context
    assert [content["delimiter"] + choice for choice in content["choices"]] == choices
    assert content["label"] == label


GSM = [
    {"question": "How many?", "answer": "It is 6*3 = <<6*3=18>>18.\n#### 18"},
    {"question": "How much?", "answer": "It costs $1,200.50.\n#### 1,200.50"},
    {"question": "And now?", "answer": "#### -2"},
]
ANSWERS = {
    "Question: How many?": " 6*3 = 18.00",
    "Question: How much?": " That is $1,200.5, or 1200.49",
    "Question: And now?": "none",
}


def test_word_problems_by_hand(tmp_path: Path) -> None:
    task = parse_task(f"gsm8k={write(tmp_path / 'a.jsonl', *GSM)}")
    nlls = {" " + record["answer"]: (-10.0 * (number + 1), 5) for number, record in enumerate(GSM)}
    stated = Stated(nlls, ANSWERS)
    table, values = run(task, stated)
    assert stated.asked[0] == ("Question: How many?\nAnswer:", " It is 6*3 = <<6*3=18>>18.\n#### 18")
    assert stated.generated[1] == ("Question: How much?\nAnswer:", 256, ("Question:", "</s>", "<|im_end|>"))
    assert table["nll"] == [10, 20, 30] and table["tokens"] == [5, 5, 5]
    assert table["bytes"] == [len(" " + record["answer"]) for record in GSM]
    assert table["correct"] == [1, 0, 0] and table["predicted"] == ["18.00", "1200.49", ""]
    assert table["generated"] == list(ANSWERS.values())
    assert values == pytest.approx(
        {
            "perplexity": math.exp(60 / 15),
            "perplexity_per_byte": math.exp(60 / sum(table["bytes"])),
            "exact_match": 1 / 3,
        }
    )


def test_shots_are_examples_and_not_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *GSM)
    task = Task("t", "math_word_problems", path, options={"shots": 2})
    items = form("math_word_problems").items(task)
    assert [item.content["number"] for item in items] == ["-2"]
    shots = [f"Question: {record['question']}\nAnswer: {record['answer']}\n\n" for record in GSM[:2]]
    assert items[0].content["question"] == "".join(shots) + "Question: And now?\nAnswer:"
    with pytest.raises(InputError, match=r"option shots = 3 leaves no item to ask; .* gives 3 items"):
        form("math_word_problems").items(Task("t", "math_word_problems", path, options={"shots": 3}))


def test_mgsm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "Ngapi?", "answer": None, "answer_number": 18})
    content = form("math_word_problems").items(parse_task(f"mgsm_direct_sw={path}"))[0].content
    assert (content["question"], content["delimiter"], content["answer"]) == ("Swali: Ngapi?\nAnswer:", "", "18")
    assert content["number"] == "18" and content["stop"][0] == "Swali:"


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"answer": "many"}, {}, "line 1: field 'answer' = 'many': has no number"),
        ({"answer": " "}, {}, "field 'answer' is empty"),
        ({"answer": None}, {}, "field 'answer' is not text but NoneType"),
        ({}, {"stop": [""]}, "option stop = .''.: must be a list of texts"),
        ({}, {"max_tokens": 0}, "option max_tokens = 0: must be 1 to"),
        ({}, {"shots": -1}, "option shots = -1: must be 0 to"),
    ],
)
def test_problems_that_cannot_be_used(
    tmp_path: Path, record: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", GSM[0] | record)
    with pytest.raises(InputError, match=message):
        form("math_word_problems").items(Task("t", "math_word_problems", path, options=options))


def test_answers_that_leave_no_room_for_a_question(tmp_path: Path) -> None:
    task = Task("t", "math_word_problems", write(tmp_path / "a.jsonl", GSM[0]), options={"max_tokens": 300})
    stated = Stated({})
    with pytest.raises(
        InputError, match=r"stated: option max_tokens = 300 leaves no room .* 300 positions; write a task"
    ):
        run(task, stated)
    assert stated.asked == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("It is 18.", "18"),
        ("first 3, then 4 apples", "4"),
        ("$1,234.50 in total", "1234.50"),
        ("1,234,567", "1234567"),
        ("1, 2,3", "3"),
        ("12,34", "34"),
        ("1,2345", "2345"),
        (".5", "0.5"),
        ("3.50%", "3.50"),
        ("-4", "-4"),
        ("-$4", "-4"),
        ("$-4", "-4"),
        ("\N{MINUS SIGN}4", "-4"),
        ("= -4", "-4"),
        ("10-4", "4"),
        ("(2)-4", "4"),
        ("10 - 4", "4"),
        ("1/2", "2"),
        ("1200 as a sum\n#### 72", "72"),
        ("#### 72 and #### 5", "5"),
        ("१८ सेब", "18"),
        ("none", None),
        ("#### ", None),
        ("5 ####", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))
