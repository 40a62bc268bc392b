"""Math word problems: the perplexity of the answer, and whether a generated answer ends with the right number."""

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.errors import InputError
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.forms.numbers import last_number
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.tasks import Row, Task, group, rows, text
from cdgen.values import INT32_MAX, integer, shown

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator


class MathWordProblems(Form):
    """Word problems (GSM8K, Cobbe et al. 2021; MGSM, Shi et al. 2022).

    Perplexity is that of the answer after the question, with the option `target_delimiter` between them. Exact match
    means that the last number of the model's greedy answer equals the last number of the reference, by value: 18 and
    18.00 are equal; see :func:`~cdgen.evaluation.forms.numbers.last_number`. The greedy answer ends at an end-of-text
    token, at one of the strings `stop`, or after `max_tokens` tokens. With `shots` above 0, the first items of the task
    are examples that precede each question, and are not asked themselves.
    """

    name: ClassVar = "math_word_problems"
    fields: ClassVar = {"question": "Question: {{question}}\nAnswer:", "answer": "answer", "group": None}
    options: ClassVar = {
        "target_delimiter": " ",
        "shots": 0,
        "max_tokens": 256,
        "stop": ["Question:", "</s>", "<|im_end|>"],
    }
    metrics: ClassVar = (
        Metric("perplexity", "perplexity", {"nll": "nll", "count": "tokens"}, higher_is_better=False),
        Metric("perplexity_per_byte", "perplexity", {"nll": "nll", "count": "bytes"}, higher_is_better=False),
        Metric("exact_match", "mean", {"value": "correct"}),
    )

    def items(self, task: Task) -> list[Item]:
        """Read the problems; see :meth:`Form.items`."""
        delimiter, stop = task.option("target_delimiter"), task.option("stop")
        if not all(isinstance(each, str) and each for each in stop):
            raise InputError(f"task {task.name}: option stop = {shown(stop)}: must be a list of texts")
        shots = integer(f"task {task.name}: option shots", task.option("shots"), 0, INT32_MAX)
        longest = integer(f"task {task.name}: option max_tokens", task.option("max_tokens"), 1, INT32_MAX)
        found = list(rows(task))
        if found and shots >= len(found):
            raise InputError(
                f"task {task.name}: option shots = {shots} leaves no item to ask; {task.path} gives {len(found)} items"
            )
        examples = "".join(f"{text(row, 'question')}{delimiter}{_answer(row)}\n\n" for row in found[:shots])
        shared = {"delimiter": delimiter, "max_tokens": longest, "stop": stop}
        return [Item(row.id, group(row), _content(row, examples) | shared) for row in found[shots:]]

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score the problems.

        Returns:
            nll (of the answer, natural logarithm), tokens (scored), bytes (of the answer with its delimiter), correct
            (0 or 1), predicted (the last number of the greedy answer, "" if it has none), generated (that answer).
        """
        contents = [item.content for item in items]
        longest, limit = contents[0]["max_tokens"], evaluator.model.position_limit
        if limit is not None and longest >= limit:  # an error now, and not after the answers have been scored
            raise InputError(
                f"{evaluator.model.name}: option max_tokens = {longest} leaves no room for a question in the model's "
                f"{limit} positions; write a task file with a smaller one"
            )
        answers = [each["delimiter"] + each["answer"] for each in contents]
        questions = [each["question"] for each in contents]
        scores = evaluator.continuations([Query(*both) for both in zip(questions, answers, strict=True)])
        shared = contents[0]  # the options are those of the task
        generated = evaluator.generate(questions, max_tokens=shared["max_tokens"], stop=shared["stop"])
        numbers = [last_number(each) for each in generated]
        return {
            "nll": [-score.logprob for score in scores],
            "tokens": [score.tokens for score in scores],
            "bytes": [len(answer.encode()) for answer in answers],
            "correct": [int(both[0] == Decimal(both[1]["number"])) for both in zip(numbers, contents, strict=True)],
            "predicted": ["" if number is None else str(number) for number in numbers],
            "generated": generated,
        }


def _content(row: Row, examples: str) -> dict[str, Any]:
    """Return what is scored of a record."""
    answer = _answer(row)
    number = last_number(answer)
    if number is None:
        raise InputError(f"{row.where}: field 'answer' = {shown(answer)}: has no number")
    return {"question": examples + text(row, "question"), "answer": answer, "number": str(number)}


def _answer(row: Row) -> str:
    """Return the answer as text; in the record it may be a number."""
    value = row.values["answer"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text(row, "answer")
