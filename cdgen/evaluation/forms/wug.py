"""Wug tests: how a model inflects words that do not exist, compared with what people do.

The BabyLM Challenge 2025 has two: nouns from adjectives in -ity or -ness (Hofmann et al. 2024), and past tenses
(Weissweiler et al. 2023). An item has two sentences, one with each inflection, and the share of people who chose the
first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.corpus.records import check_text
from cdgen.errors import InputError
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.tasks import Row, Task, number, rows
from cdgen.values import shown

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator


class Wug(Form):
    """Spearman's correlation of the model's preference for the first sentence with the human ratio.

    The preference is log p(first sentence) - log p(second sentence), for whole sentences as in minimal pairs. The
    published code (babylm/evaluation-pipeline-2025, sentence_zero_shot/compute_results.py) ranks the softmax of the two
    log-probabilities, which grows with their difference: the correlation is the same, unless the softmax rounds to 1.
    In the convention `lm-eval` a sentence follows the start-of-text token, without a space.

    The field `sentences` is a list of two sentences, or a text with a tab between them, as in the published files. The
    table has the columns `logprob_1`, `logprob_2`, `preference` and `human`.
    """

    name: ClassVar = "wug"
    fields: ClassVar = {"sentences": "sentences", "ratio": "ratio"}
    metrics: ClassVar = (Metric("spearman", "spearman", {"x": "preference", "y": "human"}),)

    def items(self, task: Task) -> list[Item]:
        """Read pairs of sentences with their human ratios, which must not all be equal."""
        found = [Item(row.id, "", {"sentences": _sentences(row), "ratio": number(row, "ratio")}) for row in rows(task)]
        if found and len({item.content["ratio"] for item in found}) == 1:
            raise InputError(
                f"{task.path}: all items have the same 'ratio', so there is no correlation; use more items"
            )
        return found

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score both sentences of each item."""
        queries = [Query("", sentence) for item in items for sentence in item.content["sentences"]]
        logprobs = [score.logprob for score in evaluator.continuations(queries)]
        first, second = logprobs[::2], logprobs[1::2]
        return {
            "logprob_1": first,
            "logprob_2": second,
            "preference": [one - other for one, other in zip(first, second, strict=True)],
            "human": [item.content["ratio"] for item in items],
        }


def _sentences(row: Row) -> list[str]:
    """Return the two sentences of a record, after checking them."""
    value = row.values["sentences"]
    found = value.split("\t") if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or len(found) != 2 or not all(isinstance(one, str) for one in found):
        raise InputError(
            f"{row.where}: field 'sentences' = {shown(value)}: must be two texts, as a list or with a tab between them"
        )
    if not found[0].strip() or not found[1].strip() or found[0] == found[1]:
        raise InputError(f"{row.where}: field 'sentences' = {shown(value)}: both must be text, and they must differ")
    return [check_text(row.where, "a text of field 'sentences'", one) for one in found]
