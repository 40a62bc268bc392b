"""Questions that are made from held-out text of any language, for which no benchmark is needed."""

import logging
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.errors import InputError
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.forms.documents import documents
from cdgen.evaluation.forms.held_out_items import LONGEST, SHORTEST, questions
from cdgen.evaluation.metrics import Metric
from cdgen.evaluation.scoring.conventions import Query
from cdgen.values import INT32_MAX, integer
from cdgen.wording import counted

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator
    from cdgen.evaluation.tasks import Task

log = logging.getLogger("cdgen")


class HeldOut(Form):
    """Which of several continuations is the text's own: three kinds of questions, which are the groups.

    next_sentence: the true next sentence, or three others of similar length; word_order: the true order of words, or a
    shuffle; name: a repeated name, or another name of the text. They are made by
    :mod:`~cdgen.evaluation.forms.held_out_items`. The model's answer is the continuation with the greatest
    log-probability, so chance is 1/4, 1/2 and 1/2. The option `items` and the task's limit are both upper bounds for
    the number of questions of each kind.

    The path is any corpus (a prepared one: its test split), a file of texts, or a folder of .txt files.
    """

    name: ClassVar = "held_out"
    options: ClassVar = {"items": 500}
    metrics: ClassVar = (Metric("macro_accuracy", "macro_mean", {"value": "correct"}),)

    def items(self, task: "Task") -> list[Item]:
        """Make the questions; the limit applies to each kind. See :meth:`Form.items`."""
        assert task.path is not None, "the form needs a path"
        count = integer(f"task {task.name}: option items", task.option("items"), 1, INT32_MAX)
        texts = [text for _, text in documents(task.path)]
        found = questions(texts, min(count, task.limit or count), task.seed)
        missing = [kind for kind, made in found.items() if not made]
        if len(missing) == len(found):
            raise InputError(
                f"{task.path}: gives no questions: {counted(len(texts), 'document')} without finished sentences of "
                f"{SHORTEST} to {LONGEST} characters that have a context; give longer documents"
            )
        if missing:
            log.warning("task %s: %s gives no questions of the kind %s", task.name, task.path, " and ".join(missing))
        return [
            Item(f"{kind}:{document}:{sentence}", kind, {"context": context, "continuations": continuations})
            for kind, made in found.items()
            for (document, sentence), context, continuations in made
        ]

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score the questions.

        Returns:
            correct (0 or 1), and with a value for each continuation, the text's own first, logprobs (natural
            logarithms) and tokens (numbers of scored tokens).
        """
        queries = [Query(item.content["context"], each) for item in items for each in item.content["continuations"]]
        scores = iter(evaluator.continuations(queries))
        found = [list(islice(scores, len(item.content["continuations"]))) for item in items]
        logprobs = [[score.logprob for score in each] for each in found]
        return {
            "correct": [int(each[0] > max(each[1:])) for each in logprobs],
            "logprobs": logprobs,
            "tokens": [[score.tokens for score in each] for each in found],
        }
