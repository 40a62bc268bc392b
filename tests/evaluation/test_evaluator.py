"""What a task can ask of a model."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cdgen.errors import InputError
from cdgen.evaluation.scoring.conventions import ConventionName, Query
from cdgen.evaluation.scoring.evaluator import Evaluator
from cdgen.models.language_model import LanguageModel
from tests.helpers.families import family
from tests.helpers.tiny_models import SENTENCES, make_llama, make_tokenizer

CONVENTIONS: tuple[ConventionName, ...] = ("babylm", "lm-eval")
QUERIES = [
    Query("The quick brown fox", " jumps over the lazy dog."),
    Query("The quick brown fox", " jumps."),
    Query("", "Once upon a time"),
    Query("Once upon a", " time"),
]


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(make_llama(0), "tiny")


@torch.no_grad()
def logprobs(model: LanguageModel, ids: list[int], first: int) -> np.ndarray:
    """Return the log-probabilities of ids[first:] by one plain forward pass."""
    found = model.module(input_ids=torch.tensor([ids[:-1]])).logits[0].double().log_softmax(1)
    return found[range(first - 1, len(ids) - 1), ids[first:]].numpy()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_continuations(model: LanguageModel, tokenizer: PreTrainedTokenizerFast, convention: ConventionName) -> None:
    seen: list[tuple[int, int]] = []
    evaluator = Evaluator(model, tokenizer, convention, report=lambda *both: seen.append(both))
    for query, score in zip(QUERIES, evaluator.continuations(QUERIES), strict=True):
        ids = tokenizer(query.context + query.continuation)["input_ids"]
        expected = logprobs(model, ids, len(tokenizer(query.context)["input_ids"]))
        assert score.logprob == pytest.approx(expected.sum(), abs=1e-4)
        assert score.tokens == len(expected)
    assert seen[-1] == (4, 4)
    assert evaluator.continuations([]) == []


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_texts(model: LanguageModel, tokenizer: PreTrainedTokenizerFast, convention: ConventionName) -> None:
    evaluator = Evaluator(model, tokenizer, convention)
    for text, found in zip(SENTENCES, evaluator.texts(SENTENCES), strict=True):
        ids = tokenizer(text)["input_ids"]  # the tokenizer adds <s>, so lm-eval's convention adds no other
        np.testing.assert_allclose(found.logprobs, logprobs(model, ids, 1), atol=2e-5)
        pieces = [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
        assert "".join(pieces) == text
        assert len(found.starts) == len(found.ends) == len(found.logprobs)
    assert evaluator.texts([]) == []


def test_a_text_without_scored_tokens(model: LanguageModel) -> None:
    found = Evaluator(model, make_tokenizer(bos=False), "babylm").texts(["h", SENTENCES[0]])
    assert [len(array) for array in found[0]] == [0, 0, 0]
    assert len(found[1].logprobs) > 0


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_text_longer_than_the_model(convention: ConventionName) -> None:
    model, tokenizer = LanguageModel(family("gpt2"), "gpt2"), make_tokenizer(bos=False)  # 256 positions
    text = " ".join(SENTENCES * 6)
    ids = tokenizer(text)["input_ids"]
    if convention == "lm-eval":
        ids = [tokenizer.eos_token_id, *ids]
    assert 513 < len(ids) < 768
    found = Evaluator(model, tokenizer, convention).texts([SENTENCES[0], text])[1]
    parts = [
        logprobs(model, ids[:257], 1),
        logprobs(model, ids[256:513], 1),
        logprobs(model, ids[-257:], 770 - len(ids)),
    ]
    np.testing.assert_allclose(found.logprobs, np.concatenate(parts), atol=2e-5)
    assert found.ends[-1] == len(text)


def test_a_long_context_is_cut_on_the_left() -> None:
    model, tokenizer = LanguageModel(family("gpt2"), "gpt2"), make_tokenizer()
    query = Query(" ".join(SENTENCES * 20), " The quick brown fox.")
    ids = tokenizer(query.context + query.continuation)["input_ids"]
    scored = len(ids) - len(tokenizer(query.context)["input_ids"])
    for convention in CONVENTIONS:
        (found,) = Evaluator(model, tokenizer, convention).continuations([query])
        assert found.logprob == pytest.approx(logprobs(model, ids[-257:], 257 - scored).sum(), abs=1e-4)


def test_a_continuation_that_is_too_long_is_scored_in_windows() -> None:
    """Every token once; each window but the last begins with the last token of the one before."""
    model, tokenizer = LanguageModel(family("gpt2"), "gpt2"), make_tokenizer()
    text = " ".join(SENTENCES * 6)
    ids, start = tokenizer("The" + text)["input_ids"], len(tokenizer("The")["input_ids"])
    assert 512 + start < len(ids) < 768 + start
    (found,) = Evaluator(model, tokenizer, "lm-eval").continuations([Query("The", text)])
    whole = [ids[at : at + 257] for at in (start - 1, start + 255)]
    parts = [logprobs(model, window, 1) for window in whole]
    parts.append(logprobs(model, ids[-257:], 257 - (len(ids) - start - 512)))
    assert found.tokens == sum(map(len, parts)) == len(ids) - start
    assert found.logprob == pytest.approx(sum(part.sum() for part in parts), abs=1e-3)


def test_a_model_without_a_stated_number_of_positions() -> None:
    tokenizer = make_tokenizer()
    evaluator = Evaluator(LanguageModel(family("bloom"), "bloom"), tokenizer)
    assert evaluator.positions == 2048
    tokenizer.model_max_length = 100
    assert evaluator.positions == 100


def test_nan(model: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> None:
    evaluator = Evaluator(model, tokenizer)
    with torch.no_grad():
        model.module.model.embed_tokens.weight[tokenizer("fox")["input_ids"][-1]] = torch.nan
    for call in (lambda: evaluator.continuations(QUERIES), lambda: evaluator.texts(SENTENCES)):
        with pytest.raises(InputError, match="tiny: gives NaN as a log-probability in the text 'The quick brown fox"):
            call()


def test_a_tokenizer_of_another_model(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="its tokenizer has 300 tokens, but the model scores 200"):
        Evaluator(LanguageModel(make_llama(0, vocab_size=200), "other"), tokenizer)


def test_generate(model: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> None:
    evaluator = Evaluator(model, tokenizer)
    ids = torch.tensor([tokenizer(SENTENCES[0])["input_ids"]])
    whole = model.module.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(whole, skip_special_tokens=True)
    assert evaluator.generate([SENTENCES[0]], max_tokens=12) == [text]
    stop = text[len(text) // 2 :]
    assert evaluator.generate([SENTENCES[0]], max_tokens=12, stop=[stop]) == [text[: text.index(stop)]]
    assert evaluator.generate([], max_tokens=12) == []


def test_generate_after_a_prompt_that_is_too_long(model: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = " ".join(SENTENCES * 20)
    ids = torch.tensor([tokenizer(prompt)["input_ids"][-(256 - 8) :]])
    new = model.module.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    expected = tokenizer.decode(new, skip_special_tokens=True)
    assert Evaluator(model, tokenizer).generate([prompt], max_tokens=8) == [expected]
    with pytest.raises(InputError, match="max_tokens = 256: leaves no room"):
        Evaluator(model, tokenizer).generate(["The"], max_tokens=256)
