"""Log-probabilities in batches with shared prefixes, against one plain forward pass per sequence."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cdgen.errors import InputError
from cdgen.evaluation.scoring import scorer
from cdgen.evaluation.scoring.conventions import Tokens
from cdgen.evaluation.scoring.scorer import Scorer, TokenScores
from cdgen.models.language_model import LanguageModel
from tests.helpers.families import FAMILIES, family
from tests.helpers.tiny_models import VOCABULARY, make_llama


def sequences(count: int = 10) -> list[Tokens]:
    """Return sequences of awkward lengths, many with a common beginning, scored from before or after its end."""
    draw = random.Random(0)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(2, VOCABULARY) for _ in range(draw.randrange(least, most))]

    found = []
    for _ in range(count):
        start = ids(2, 20)
        wholes = [start + ids(0, 13) for _ in range(draw.randrange(1, 5))]
        found += [Tokens(whole, draw.randrange(1, len(whole))) for whole in wholes]
    same, first = found[3]
    return [*found, Tokens(same, 1), Tokens(same, first), Tokens([*same[:-1], 5], first), Tokens([7, 8], 1)]


@torch.no_grad()
def plain(model: PreTrainedModel, tokens: Tokens) -> TokenScores:
    ids, first = torch.tensor([tokens.ids]), tokens.first
    logits = model(input_ids=ids).logits[0, first - 1 : -1]  # [T, V]
    scored = ids[0, first:]
    logprobs = logits.double().log_softmax(1).gather(1, scored[:, None])[:, 0]
    return TokenScores(logprobs.numpy(), (logits.argmax(1) == scored).numpy())


def check(found: list[TokenScores], model: PreTrainedModel, given: list[Tokens]) -> None:
    for score, tokens in zip(found, given, strict=True):
        expected = plain(model, tokens)
        np.testing.assert_allclose(score.logprobs, expected.logprobs, atol=2e-5)
        np.testing.assert_array_equal(score.greedy, expected.greedy)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_families(name: str) -> None:
    model, given = family(name), sequences()
    for batch_tokens in (1, 100, 10_000):
        check(Scorer(LanguageModel(model, name), batch_tokens).score(given, lambda done: None), model, given)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_of_few_rows_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "_LOGITS", 3 * VOCABULARY)
    monkeypatch.setattr(scorer, "_ALL_LOGITS", 20 * VOCABULARY)
    model, given = family(name), sequences()
    check(Scorer(LanguageModel(model, name)).score(given, lambda done: None), model, given)


@pytest.mark.parametrize("change", ["bias", "cap"])
def test_models_that_change_their_logits(change: str) -> None:
    model, given = make_llama(0), sequences(3)
    if change == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, VOCABULARY))
    else:
        model.lm_head.register_forward_hook(lambda module, inputs, logits: 3 * torch.tanh(logits / 3))
    check(Scorer(LanguageModel(model, "changed")).score(given, lambda done: None), model, given)


def test_the_greedy_token_is_recognised() -> None:
    model = make_llama(0)
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].argmax())
    given = [Tokens([5, 6, token], 2) for token in (best, (best + 1) % VOCABULARY)]
    found = Scorer(LanguageModel(model, "llama")).score(given, lambda done: None)
    assert [score.greedy.tolist() for score in found] == [[True], [False]]


def passes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Return a list to which the shape of each forward pass will be added."""
    found: list[tuple[int, int]] = []
    model.base_model.register_forward_pre_hook(
        lambda module, given, options: found.append(tuple(options.get("input_ids", *given[:1]).shape)), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_shared_is_computed_once(name: str) -> None:
    model = family(name)
    context = list(range(2, 32))
    given = [Tokens([*context, 40, 41, token], 30) for token in range(50, 54)]
    given += [Tokens([*context, 42, 43], 31), Tokens([*context, 42, 44], 31), Tokens([*context, 45], 30)]
    found = Scorer(LanguageModel(model, name))
    shapes = passes(model)
    scores = found.score(given, lambda done: None)
    # ALiBi knows no positions but places in a row, and these sequences are longer than the sliding windows. Even
    # there, sequences that only differ in the token that is not read are computed once.
    shares = name not in ("bloom", "mistral", "gemma2", "gpt_neo")
    assert sum(rows * width for rows, width in shapes) == (33 if shares else 3 * 32)
    check(scores, model, given)


def test_rows_are_no_longer_than_a_sliding_window() -> None:
    config = FAMILIES["mistral"]()
    config.sliding_window = 24
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    given = sequences(20)
    found = Scorer(LanguageModel(model, "mistral"))
    shapes = passes(model)
    scores = found.score(given, lambda done: None)
    assert {width for _, width in shapes} & set(range(20, 25))
    assert sum(rows * width for rows, width in shapes) < sum(len(tokens.ids) - 1 for tokens in given)
    check(scores, model, given)


def test_a_model_that_takes_no_mask_for_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = make_llama(0), sequences(3)
    original = model.model.forward

    def forward(**options: Any) -> Any:
        if options.get("attention_mask") is not None:
            raise ValueError("not supported")
        return original(**options)

    lm = LanguageModel(model, "llama")
    monkeypatch.setattr(model.model, "forward", forward)
    check(Scorer(lm).score(given, lambda done: None), model, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(dtype: torch.dtype) -> None:
    model, given = make_llama(0), sequences(3)
    expected = [plain(model, tokens) for tokens in given]
    found = Scorer(LanguageModel(model.to(dtype), "llama"))
    shapes = passes(model)
    for score, one in zip(found.score(given, lambda done: None), expected, strict=True):
        np.testing.assert_allclose(score.logprobs, one.logprobs, atol=0.5)
    assert sum(rows * width for rows, width in shapes) < sum(len(tokens.ids) - 1 for tokens in given)


def test_progress() -> None:
    given = sequences()
    seen: list[int] = []
    Scorer(LanguageModel(make_llama(0), "llama"), 50).score(given, seen.append)
    assert seen[-1] == len(given)
    assert len(seen) > 2
    assert all(one < other for one, other in itertools.pairwise(seen))
    assert Scorer(LanguageModel(make_llama(0), "llama")).score([], seen.append) == []


def test_the_longest_sequences_come_first() -> None:
    model = make_llama(0)
    found = Scorer(LanguageModel(model, "llama"), 64)
    shapes = passes(model)
    found.score([Tokens([2, 3, 4, 5], 1), Tokens([2, 3, 6, 7], 1), Tokens(list(range(8, 248)), 1)], lambda done: None)
    assert shapes == [(1, 239), (1, 4)]


def test_a_token_that_the_model_lacks() -> None:
    found = Scorer(LanguageModel(make_llama(0), "small"))
    with pytest.raises(InputError, match="small: the tokenizer gives the token id 300, but the model has 300 tokens"):
        found.score([Tokens([2, VOCABULARY], 1)], lambda done: None)


def test_a_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama(0)
    found = Scorer(LanguageModel(model, "large"), 64)

    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(InputError, match="large: batches of 64 tokens do not fit into the memory of cpu"):
        found.score([Tokens([2, 3], 1)], lambda done: None)
