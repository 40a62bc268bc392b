"""Perplexity of documents."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from cdgen.errors import InputError
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.forms.documents import documents
from cdgen.evaluation.metrics import Metric

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator, TextScores
    from cdgen.evaluation.tasks import Task


class Perplexity(Form):
    """Perplexity of documents: per byte, which is comparable between tokenizers, and per token.

    The path is any corpus (a prepared one: its test split), a file of texts, or a folder of .txt files, each of which
    is a document. With the convention lm-eval the first token of a document is scored after the start-of-text token;
    with babylm it is scored only if the tokenizer adds a start-of-text token. Bytes are those of the scored characters.
    Special tokens that the tokenizer adds are not scored. (The loglikelihood_rolling of lm-evaluation-harness scores
    them, for example a start-of-text token after another one.)
    """

    name: ClassVar = "perplexity"
    metrics: ClassVar = (
        Metric("perplexity_per_byte", "perplexity", {"nll": "nll", "count": "bytes"}, higher_is_better=False),
        Metric("perplexity", "perplexity", {"nll": "nll", "count": "tokens"}, higher_is_better=False),
    )

    def items(self, task: "Task") -> list[Item]:
        """Read the documents; see :meth:`Form.items`."""
        assert task.path is not None, "the form needs a path"
        return [Item(name, "", text) for name, text in islice(documents(task.path), task.limit)]

    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score the documents.

        Returns:
            nll (negative log-likelihood, natural logarithm), tokens (number of scored tokens), bytes (their number in
            UTF-8).
        Raises:
            InputError: no token of any document is scored.
        """
        texts = [item.content for item in items]
        found = [_without_special(scores) for scores in evaluator.texts(texts)]
        if not any(len(scores.logprobs) for scores in found):
            raise InputError(
                f"{evaluator.model.name}: no token of the documents is scored in the convention "
                f"{evaluator.convention!r}, since none has a second one; use longer documents"
            )
        return {
            "nll": [-float(scores.logprobs.sum()) for scores in found],
            "tokens": [len(scores.logprobs) for scores in found],
            "bytes": [_bytes(*both) for both in zip(texts, found, strict=True)],
        }


def _without_special(scores: "TextScores") -> "TextScores":
    """Return the scores of the text's own tokens."""
    own = scores.ends > 0
    return scores._replace(logprobs=scores.logprobs[own], starts=scores.starts[own], ends=scores.ends[own])


def _bytes(text: str, scores: "TextScores") -> int:
    """Return the number of bytes from the first scored character to the last."""
    return len(text[scores.starts[0] : scores.ends[-1]].encode()) if len(scores.logprobs) else 0
