"""EWoK, Elements of World Knowledge (Ivanova et al. 2024): two contexts, two targets, and each target fits one context.

The published data (ewok-core-1.0) have one record per item. The files that the BabyLM Challenge 2025 makes of them
(babylm/evaluation-pipeline-2025, ewok/dl_and_filter.py) have each item twice, the second time with contexts and targets
swapped; such a second record is the same item and is left out.
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


class Ewok(Form):
    """log p(target 1 | context 1) > log p(target 2 | context 1), and the same for context 2; ties count as wrong.

    The BabyLM Challenge 2025 compares the targets after one context (sentence_zero_shot). `accuracy` is the share of
    these comparisons, two per item, that are right. EWoK's own score compares one target after both contexts,
    log p(target 1 | context 1) > log p(target 1 | context 2): `macro_context_accuracy`. The prefix `macro_` stands for
    the mean over domains. A space is put between context and target.

    The table has the columns `logprob_11`, `logprob_12`, `logprob_21` and `logprob_22` (first digit: target, second
    digit: context), `correct` and `context_correct`, which are 0, 0.5 or 1.
    """

    name: ClassVar = "ewok"
    fields: ClassVar = {
        "context_1": "Context1",
        "context_2": "Context2",
        "target_1": "Target1",
        "target_2": "Target2",
        "group": "Domain",
    }
    metrics: ClassVar = (
        Metric("macro_accuracy", "macro_mean", {"value": "correct"}),
        Metric("accuracy", "mean", {"value": "correct"}),
        Metric("macro_context_accuracy", "macro_mean", {"value": "context_correct"}),
    )

    def items(self, task: Task) -> list[Item]:
        """Read items, without those that repeat another one with contexts and targets swapped."""
        found = []
        seen: set[tuple[str, ...]] = set()
        for row in rows(task):
            contexts = [text(row, "context_1"), text(row, "context_2")]
            targets = [text(row, "target_1"), text(row, "target_2")]
            for name, pair in (("context", contexts), ("target", targets)):
                if pair[0] == pair[1]:
                    raise InputError(
                        f"{row.where}: fields '{name}_1' and '{name}_2' are the same text; remove the record"
                    )
            if (*contexts[::-1], *targets[::-1]) in seen:
                continue
            seen.add((*contexts, *targets))
            found.append(Item(row.id, group(row), {"contexts": contexts, "targets": targets}))
        return found

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score both targets of each item after both contexts."""
        queries = [
            Query(context, " " + target)
            for item in items
            for target in item.content["targets"]
            for context in item.content["contexts"]
        ]
        logprobs = [score.logprob for score in evaluator.continuations(queries)]
        table: dict[str, list[Any]] = {
            f"logprob_{target}{context}": logprobs[2 * (target - 1) + context - 1 :: 4]
            for target in (1, 2)
            for context in (1, 2)
        }
        fits_1, misfits_1, misfits_2, fits_2 = (table[f"logprob_{which}"] for which in ("11", "12", "21", "22"))
        rows_of = zip(fits_1, misfits_1, misfits_2, fits_2, strict=True)
        pairs = [(((a > c) + (d > b)) / 2, ((a > b) + (d > c)) / 2) for a, b, c, d in rows_of]
        table["correct"], table["context_correct"] = map(list, zip(*pairs, strict=True))
        return table
