"""Reading times: how much of their variance a model's surprisal explains beyond simpler properties of words.

The data of the BabyLM Challenge 2025 are those of de Varda, Marelli and Amenta (Behavior Research Methods, 2023): words
in their contexts, with times of eye tracking and of self-paced reading. Its code is babylm/evaluation-pipeline-2025,
reading/run.py.
"""

import logging
import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.errors import InputError
from cdgen.evaluation.forms.base import REQUIRED, Form, Item
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.tasks import Row, Task, number, rows, text

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator

log = logging.getLogger("cdgen")

_PREDICTORS = ("frequency", "length", "position")
_PREVIOUS = ("previous_context", "previous_word", "previous_length")
_BASELINE = (*_PREDICTORS, "previous_length", "previous_surprisal")
_MISSING = ("", "NA", "NaN", "nan")


def _metrics(responses: int) -> tuple[Metric, ...]:
    """Return the metrics of a task with this number of reading times."""
    columns: dict[str, str | tuple[str, ...]] = {
        "response": tuple(f"response_{at}" for at in range(1, responses + 1)),
        "baseline": (*_BASELINE, *(f"{one}*{other}" for one, other in combinations(_BASELINE, 2))),
        "added": "surprisal",
    }
    return Metric("partial_r2", "partial_r2", columns), Metric("r2_gain", "r2_gain", columns)


class Reading(Form):
    """Gain in R² of the regression of reading times on baseline predictors when the word's surprisal is added.

    The baseline is the word's frequency (logarithm), its length, its position in the sentence, and all products of two
    of these. With the fields `previous_context`, `previous_word` and `previous_length`, the length and the surprisal of
    the previous word are added to the baseline, as the challenge does for self-paced reading. Without these fields the
    two columns are 0, which does not change the regression. `partial_r2`, which the challenge reports as a percentage,
    is the gain as a share of the variance that the baseline leaves unexplained, (R² - baseline R²) / (1 - baseline R²);
    `r2_gain` is R² - baseline R². If `response` lists several reading times, the result is the mean over them.

    The surprisal of a word is -log p(word | context), in nats, summed over the tokens that overlap the word or the
    space before it. (The published code encodes a word on its own, so a tokenizer that marks spaces at the beginning of
    words, such as GPT-2's, gives the probability of a word without a space before it.) Records that lack a value are
    left out, as in the published code.

    The table has the columns `surprisal`, those of the baseline, their products such as `frequency*length`, and
    `response_1`, `response_2` and so on.
    """

    name: ClassVar = "reading"
    fields: ClassVar = {
        "context": "item",
        "word": "word",
        "response": REQUIRED,
        "frequency": "Subtlex_log10",
        "length": "length",
        "position": "context_length",
        **dict.fromkeys(_PREVIOUS),
    }
    metrics: ClassVar = _metrics(1)

    def metrics_of(self, task: Task) -> tuple[Metric, ...]:
        """Return the metrics; their columns depend on the number of reading times in `response`."""
        stated = task.fields["response"]
        return _metrics(len(stated) if isinstance(stated, list) else 1)

    def items(self, task: Task) -> list[Item]:
        """Read words in their contexts, without those that lack a value."""
        stated = [name for name in _PREVIOUS if name in task.fields]
        if 0 < len(stated) < len(_PREVIOUS):
            other = next(name for name in _PREVIOUS if name not in stated)
            raise InputError(f"task {task.name}: states the field {stated[0]!r} but not {other!r}; give all or none")
        found, missing = [], 0
        for row in rows(task):
            content = _content(row, bool(stated))
            if content is None:
                missing += 1
            else:
                found.append(Item(row.id, "", content))
        if missing:
            log.info("task %s: %d of %d words lack a value and are left out", task.name, missing, missing + len(found))
        predictors = len(_BASELINE if stated else _PREDICTORS)
        coefficients = 2 + predictors * (predictors + 1) // 2
        if len(found) <= coefficients:
            raise InputError(
                f"{task.path}: has {len(found)} words with all values, but the regression has {coefficients} "
                "coefficients; use more words"
            )
        return found

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score each word, and each previous word, once in each of its contexts."""
        words = {
            tuple(item.content[which]) for item in items for which in ("word", "previous") if which in item.content
        }
        order = sorted(words)
        scores = evaluator.continuations([Query(context, " " + word) for context, word in order])
        surprisals = {word: -score.logprob for word, score in zip(order, scores, strict=True)}
        records = [_record(item.content, surprisals) for item in items]
        return {name: [record[name] for record in records] for name in records[0]}


def _content(row: Row, with_previous: bool) -> dict[str, Any] | None:
    """Return the content of a record's item, or None if a value is missing."""
    responses = row.values["response"]
    responses = responses if isinstance(responses, list) else [responses]
    names = [*_PREDICTORS, *(_PREVIOUS if with_previous else ())]
    if any(_is_missing(value) for value in (*responses, *(row.values[name] for name in names))):
        return None
    content: dict[str, Any] = {
        "word": [text(row, "context"), text(row, "word")],
        "response": [number(_with(row, value), "response") for value in responses],
        **{name: number(row, name) for name in _PREDICTORS},
    }
    if with_previous:
        content["previous"] = [text(row, "previous_context"), text(row, "previous_word")]
        content["previous_length"] = number(row, "previous_length")
    return content


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or (isinstance(value, str) and value.strip() in _MISSING)


def _with(row: Row, response: Any) -> Row:
    """Return a row in which `response` is one of its reading times."""
    return row._replace(values=row.values | {"response": response})


def _record(content: dict[str, Any], surprisals: dict[tuple[str, ...], float]) -> dict[str, float]:
    """Return a row of the score table."""
    found = {"surprisal": surprisals[tuple(content["word"])]}
    found |= {name: content[name] for name in _PREDICTORS}
    found["previous_length"] = content.get("previous_length", 0.0)
    found["previous_surprisal"] = surprisals[tuple(content["previous"])] if "previous" in content else 0.0
    found |= {f"{one}*{other}": found[one] * found[other] for one, other in combinations(_BASELINE, 2)}
    return found | {f"response_{at}": value for at, value in enumerate(content["response"], 1)}
