"""Multiple choice: the model's answer is the choice to which it gives the greatest log-probability."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cdgen.corpus.records import check_text
from cdgen.errors import InputError
from cdgen.evaluation.forms.base import REQUIRED, Form, Item
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.tasks import Row, Task, group, rows
from cdgen.values import shown

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator, Score


class MultipleChoice(Form):
    """Multiple choice by log-likelihood, as in Brown et al. 2020, section 2.4 (COPA, XCOPA, HellaSwag, PIQA and so on).

    Each choice is scored as the continuation of the context, with the option `target_delimiter` between them. The
    model's answer is the choice with the greatest log-probability (`accuracy`; lm-evaluation-harness: acc), with the
    greatest log-probability per scored token (`accuracy_per_token`), or per UTF-8 byte of the choice without the
    delimiter (`accuracy_per_byte`; lm-evaluation-harness: acc_bytes; its acc_norm divides by characters instead, which
    is the same for ASCII). The first of several equal choices wins.
    """

    name: ClassVar = "multiple_choice"
    fields: ClassVar = {"context": REQUIRED, "choices": REQUIRED, "label": REQUIRED, "group": None}
    options: ClassVar = {"target_delimiter": " "}
    metrics: ClassVar = (
        Metric("accuracy", "mean", {"value": "correct"}),
        Metric("accuracy_per_token", "mean", {"value": "correct_per_token"}),
        Metric("accuracy_per_byte", "mean", {"value": "correct_per_byte"}),
    )

    def items(self, task: Task) -> list[Item]:
        """Read the items; see :meth:`Form.items`."""
        return [Item(row.id, group(row), _content(row, task.option("target_delimiter"))) for row in rows(task)]

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score the items.

        Returns:
            correct, correct_per_token, correct_per_byte (0 or 1), prediction and label (numbers from 0), and with a
            value for each choice, logprobs (natural logarithms) and tokens (numbers of scored tokens).
        """
        contents = [item.content for item in items]
        queries = [
            Query(each["context"], each["delimiter"] + choice) for each in contents for choice in each["choices"]
        ]
        scores = iter(evaluator.continuations(queries))
        found = [_row(content, list(islice(scores, len(content["choices"])))) for content in contents]
        return {name: [row[name] for row in found] for name in found[0]}


def _row(content: dict[str, Any], scores: "Sequence[Score]") -> dict[str, Any]:
    """Return one row of the score table."""
    label = content["label"]
    logprobs = np.array([score.logprob for score in scores])
    tokens = np.array([score.tokens for score in scores])
    sizes = np.array([len(choice.encode()) for choice in content["choices"]])
    prediction = int(logprobs.argmax())
    return {
        "correct": int(prediction == label),
        "correct_per_token": int((logprobs / tokens).argmax() == label),
        "correct_per_byte": int((logprobs / sizes).argmax() == label),
        "prediction": prediction,
        "label": label,
        "logprobs": logprobs.tolist(),
        "tokens": tokens.tolist(),
    }


def _content(row: Row, delimiter: str) -> dict[str, Any]:
    """Return what is scored of a record."""
    found = row.values["choices"]
    if not isinstance(found, list) or len(found) < 2:
        raise InputError(f"{row.where}: field 'choices' = {shown(found)}: must be a list of at least two texts")
    choices = [check_text(row.where, f"choice {number} of field 'choices'", each) for number, each in enumerate(found)]
    empty = next((number for number, each in enumerate(choices) if not each.strip()), None)
    if empty is not None:
        raise InputError(f"{row.where}: choice {empty} of field 'choices' is empty")
    context = check_text(row.where, "field 'context'", row.values["context"])
    return {"context": context, "delimiter": delimiter, "choices": choices, "label": _label(row, choices)}


def _label(row: Row, choices: Sequence[str]) -> int:
    """Return the number of the right choice, from 0.

    The field holds that number, which may be a text of digits, the choice itself, or a letter, A for the first.
    """
    value = row.values["label"]
    readings = {number for number, choice in enumerate(choices) if choice == value}
    if type(value) is int:
        readings = {value}
    elif isinstance(value, str) and value.strip().isdecimal():
        readings.add(int(value))
    elif isinstance(value, str) and not readings:
        readings = {ord(letter) - ord("A") for letter in [value.strip()] if len(letter) == 1}
    if len(readings) == 1 and 0 <= min(readings) < len(choices):
        return readings.pop()
    meaning = f"may mean the choices {sorted(readings)}, from 0; " if len(readings) > 1 else ""
    raise InputError(
        f"{row.where}: field 'label' = {shown(value)}: {meaning}must be a number from 0 to {len(choices) - 1}, a "
        f"letter from A to {chr(ord('A') + len(choices) - 1)}, or equal to one choice"
    )
