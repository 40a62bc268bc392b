"""Entity tracking (Kim and Schuster, ACL 2023): what is in a box after objects have been put, removed and moved.

The paper has a model write the contents. The BabyLM Challenge 2025 has it choose among completions
(babylm/evaluation-pipeline-2025, sentence_zero_shot), which is what this form does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.corpus.records import check_text
from cdgen.errors import InputError
from cdgen.evaluation.forms import boxes
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.tasks import Row, Task, group, rows, text
from cdgen.values import integer, shown

_MOST_ITEMS = 100_000

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator


class EntityTracking(Form):
    """The right completion is more probable than every other one; ties count as wrong.

    Prefix and options are joined as they are: in the files of the BabyLM Challenge 2025 a prefix ends with a space, and
    the first option is right. Log-probabilities are not normalised by length. An option that is given twice counts
    once.

    Two averages are published: `macro_accuracy`, the mean over the numbers of operations in each file, which is the
    score of the challenge (its file calculate_results_from_pred.py), and `accuracy`, the mean over all items. They
    differ since few items have many operations. The challenge's sentence_zero_shot/run.py averages each file's numbers
    of operations, then the files. That equals `macro_accuracy` for its files, regular.jsonl, ambiref.jsonl and
    move_contents.jsonl, all of which have 0 to 5 operations.

    Without a path, stories are made; see :mod:`cdgen.evaluation.forms.boxes`. The option `items` is their number,
    `operations` the number of operations in each story, and `boxes` the number of boxes. The groups are the numbers of
    operations that concern the box in question, from 0 to `operations`, with equally many stories each.

    The table has the columns `logprob` of the right option, `margin`, by which it exceeds the best of the others,
    `choice`, the number of the most probable option, from 0, and `correct`.
    """

    name: ClassVar = "entity_tracking"
    fields: ClassVar = {"prefix": "input_prefix", "options": "options", "group": "{{file}}_{{numops}}_ops"}
    options: ClassVar = {"items": 300, "operations": 5, "boxes": 7}
    path: ClassVar = "optional"
    metrics: ClassVar = (
        Metric("macro_accuracy", "macro_mean", {"value": "correct"}),
        Metric("accuracy", "mean", {"value": "correct"}),
    )

    def items(self, task: Task) -> list[Item]:
        """Read items, or make them if the task has no path."""
        if task.path is None:
            return _made(task)
        if task.options:
            raise InputError(
                f"task {task.name}: option {next(iter(task.options))!r} is for stories that are made; remove it, or "
                f"the path {task.path}"
            )
        return [
            Item(row.id, group(row), {"prefix": text(row, "prefix"), "options": _options(row)}) for row in rows(task)
        ]

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score all options of each item."""
        queries = [Query(item.content["prefix"], option) for item in items for option in item.content["options"]]
        scores = iter(evaluator.continuations(queries))
        table: dict[str, list[Any]] = {"logprob": [], "margin": [], "choice": [], "correct": []}
        for item in items:
            logprobs = [next(scores).logprob for _ in item.content["options"]]
            margin = logprobs[0] - max(logprobs[1:])
            values = (logprobs[0], margin, logprobs.index(max(logprobs)), int(margin > 0))
            for column, value in zip(table.values(), values, strict=True):
                column.append(value)
        return table


def _made(task: Task) -> list[Item]:
    where = f"task {task.name}: option "
    count = integer(f"{where}items", task.option("items"), 1, _MOST_ITEMS)
    operations = integer(f"{where}operations", task.option("operations"), 0, boxes.MOST_OPERATIONS)
    number = integer(f"{where}boxes", task.option("boxes"), boxes.WRONG_OPTIONS + 1, boxes.MOST_BOXES)
    found = []
    for index in range(min(count, count if task.limit is None else task.limit)):
        difficulty = index % (operations + 1)
        story = boxes.story(task.seed, index, boxes=number, operations=operations, difficulty=difficulty)
        content = {"prefix": story.prefix(), "options": story.completions()}
        found.append(Item(str(index), f"{difficulty}_ops", content))
    return found


def _options(row: Row) -> list[str]:
    """Return the distinct options of a record, after checking them."""
    options = row.values["options"]
    if not isinstance(options, (list, tuple)):
        raise InputError(
            f"{row.where}: field 'options' = {shown(options)}: must be a list of texts, the right one first"
        )
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise InputError(f"{row.where}: field 'options' holds {shown(option)}; each option must be text")
        check_text(row.where, "an option of field 'options'", option)
    distinct = list(dict.fromkeys(options))
    if len(distinct) < 2:
        raise InputError(f"{row.where}: field 'options' = {shown(options)}: must have a right and a wrong option")
    return distinct
