"""Minimal pairs: a model should find an acceptable sentence more probable than an unacceptable one that differs little.

BLiMP (Warstadt et al., TACL 2020, section 3: the full-sentence method), the BLiMP supplement of the BabyLM Challenge,
MultiBLiMP (Jumelet et al. 2025) and CLAMS (Mueller et al., ACL 2020) have this form. The BabyLM Challenge 2025 reports
the mean over phenomena (babylm/evaluation-pipeline-2025, sentence_zero_shot).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.errors import InputError
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.tasks import Task, group, rows, text

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator


class MinimalPairs(Form):
    """log p(good sentence) > log p(bad sentence); ties count as wrong.

    A sentence is scored as a whole: all its tokens, without length normalisation. In the convention `babylm` it is the
    text itself. In the convention `lm-eval` it follows the start-of-text token and the option `target_delimiter`: a
    space by default, as in the harness, whose tasks for MultiBLiMP and others set it to "".

    The table has the columns `logprob_good`, `logprob_bad` and `correct`.
    """

    name: ClassVar = "minimal_pairs"
    fields: ClassVar = {"good": "sentence_good", "bad": "sentence_bad", "group": "{{file}}"}
    options: ClassVar = {"target_delimiter": " "}
    metrics: ClassVar = (
        Metric("macro_accuracy", "macro_mean", {"value": "correct"}),
        Metric("accuracy", "mean", {"value": "correct"}),
    )

    def items(self, task: Task) -> list[Item]:
        """Read pairs of sentences, and check that they differ."""
        found = []
        for row in rows(task):
            good, bad = text(row, "good"), text(row, "bad")
            if good == bad:
                raise InputError(f"{row.where}: fields 'good' and 'bad' are the same text; remove the record")
            content = {"good": good, "bad": bad, "target_delimiter": task.option("target_delimiter")}
            found.append(Item(row.id, group(row), content))
        return found

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score both sentences of each pair."""
        harness = evaluator.convention == "lm-eval"
        queries = [
            Query("", (item.content["target_delimiter"] if harness else "") + item.content[which])
            for item in items
            for which in ("good", "bad")
        ]
        logprobs = [score.logprob for score in evaluator.continuations(queries)]
        good, bad = logprobs[::2], logprobs[1::2]
        correct = [int(one > other) for one, other in zip(good, bad, strict=True)]
        return {"logprob_good": good, "logprob_bad": bad, "correct": correct}
