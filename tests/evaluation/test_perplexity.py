"""Perplexity: an example computed by hand in both conventions, and on a model against transformers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cdgen.errors import InputError
from cdgen.evaluation.forms import form
from cdgen.evaluation.metrics import estimate
from cdgen.evaluation.results import arrays
from cdgen.evaluation.scoring.conventions import ConventionName
from cdgen.evaluation.scoring.evaluator import Evaluator, TextScores
from cdgen.evaluation.tasks import Task
from cdgen.models.language_model import LanguageModel
from tests.helpers.tiny_models import make_tokenizer


def write(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def values(table: dict[str, list[float]], task: Task) -> dict[str, float]:
    kind = form("perplexity")
    columns = arrays(table, kind.items(task), "test")
    return {metric.name: estimate(metric, columns) for metric in kind.metrics}


class Stated:
    """An evaluator with given scores."""

    def __init__(self, *scores: Sequence[tuple[float, int, int]]) -> None:
        self.scores = scores

    def texts(self, texts: Sequence[str]) -> list[TextScores]:
        """Return the log-probability, first and last character of each token."""
        columns = [np.array(score, dtype=float).reshape(-1, 3).T for score in self.scores]
        return [TextScores(logprobs, starts.astype(int), ends.astype(int)) for logprobs, starts, ends in columns]


def test_perplexity_by_hand(tmp_path: Path) -> None:
    task = Task("t", "perplexity", write(tmp_path / "a.jsonl", ["ab é", "  ", "cd", "e"]))
    items = form("perplexity").items(task)
    assert [(item.id, item.content) for item in items] == [("1", "ab é"), ("3", "cd"), ("4", "e")]
    # The first token of the first text is not scored. A special token, which has no characters, does not count.
    stated = Stated([(-1.0, 2, 4), (-0.5, 0, 0)], [(-2.0, 0, 1), (-3.0, 1, 2)], [])
    table = form("perplexity").score(items, cast(Evaluator, stated))
    assert table == {"nll": [1.0, 5.0, 0.0], "tokens": [1, 2, 0], "bytes": [3, 2, 0]}
    assert values(table, task) == pytest.approx({"perplexity_per_byte": math.exp(6 / 5), "perplexity": math.exp(6 / 3)})


def test_documents_without_a_scored_token(tmp_path: Path, good: LlamaForCausalLM) -> None:
    """A perplexity of 1, the best there is, would be the result of no tokens."""
    items = form("perplexity").items(Task("t", "perplexity", write(tmp_path / "a.jsonl", ["a", "b"])))
    evaluator = Evaluator(LanguageModel(good, "tiny"), make_tokenizer(bos=False), "babylm")
    with pytest.raises(InputError, match="no token of the documents is scored in the convention 'babylm'"):
        form("perplexity").score(items, evaluator)


def test_the_limit_is_a_number_of_documents(tmp_path: Path) -> None:
    task = Task("t", "perplexity", write(tmp_path / "a.jsonl", ["", "a", "b", "c"]), limit=2)
    assert [item.content for item in form("perplexity").items(task)] == ["a", "b"]


def test_a_corpus_that_is_missing() -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        form("perplexity").items(Task("t", "perplexity", "nowhere"))


@pytest.mark.parametrize(("convention", "adds_start"), [("lm-eval", False), ("babylm", True)])
def test_against_transformers(
    tmp_path: Path, good: LlamaForCausalLM, convention: ConventionName, adds_start: bool
) -> None:
    tokenizer = make_tokenizer(bos=adds_start)
    texts = ["the cat sat on the mat", "dogs run in Århus"]
    task = Task("t", "perplexity", write(tmp_path / "a.jsonl", texts))
    items = form("perplexity").items(task)
    table = form("perplexity").score(items, Evaluator(LanguageModel(good, "good"), tokenizer, convention))
    for nll, tokens, size, text in zip(table["nll"], table["tokens"], table["bytes"], texts, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        start = 0 if adds_start else 1  # the end-of-text token stands for a missing start-of-text token
        with torch.inference_mode():
            loss = good(torch.tensor([[start, *ids]]), labels=torch.tensor([[start, *ids]])).loss
        assert (tokens, size) == (len(ids), len(text.encode()))
        assert nll == pytest.approx(float(loss) * len(ids), rel=1e-4)


def test_added_special_tokens_are_not_counted(tmp_path: Path, good: LlamaForCausalLM) -> None:
    task = Task("t", "perplexity", write(tmp_path / "a.jsonl", ["the cat"]))
    evaluator = Evaluator(LanguageModel(good, "good"), make_tokenizer(bos=True), "lm-eval")
    table = form("perplexity").score(form("perplexity").items(task), evaluator)
    assert table["tokens"] == [len(make_tokenizer(bos=False)("the cat").input_ids)] and table["bytes"] == [7]
