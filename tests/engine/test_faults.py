"""A sequence for which nothing can be drawn finishes with the reason "error"; the others are drawn as without it."""

import copy
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from cdgen import CompletionOutput, ContrastiveLM, SamplingParams
from cdgen.engine.requests import Prompts, make_requests
from tests.helpers.engines import backend, continued, outputs_of
from tests.helpers.tiny_models import make_llama

POISON = 7  # the token whose embedding is NaN
PROMPTS = [[5, 6], [5, POISON, 6], [9] * 17, [11], [12, POISON], [13, 14]]
POISONED = (1, 4)
N = 4


def poisoned(role: str, good: LlamaForCausalLM, bad: LlamaForCausalLM, **options: Any) -> ContrastiveLM:
    """Return a pair of which one model gives NaN for every text that holds POISON; weights are checked when loading."""
    lm = ContrastiveLM(*map(copy.deepcopy, (good, bad)), **options)
    model = lm.pair.good if role == "GOOD" else lm.pair.bad
    model.module.model.embed_tokens.weight.data[POISON] = float("nan")
    return lm


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"n": N, "max_tokens": 40, "ignore_eos": True, "alpha": 0.01} | changes)


def check(outputs: list[CompletionOutput], expected: list[CompletionOutput], role: str, max_tokens: int = 40) -> None:
    """Check outputs of a poisoned pair, N for each of PROMPTS, against those of the healthy pair."""
    failed_later = 0
    for at, (output, healthy) in enumerate(zip(outputs, expected, strict=True)):
        tokens = healthy.token_ids
        if at // N in POISONED:
            tokens = []
        elif POISON in tokens[:-1]:
            tokens = tokens[: tokens.index(POISON) + 1]
            failed_later += 1
        assert output.token_ids == tokens
        if len(tokens) < max_tokens:
            assert output.finish_reason == "error" and f"{role}'s logits contain NaN" in output.error
        else:
            assert output.finish_reason == "length" and output.error is None
    assert 0 < failed_later < N * (len(PROMPTS) - len(POISONED)), "some must fail at a later step, and some never"


@pytest.mark.parametrize("role", ["GOOD", "BAD"])
@pytest.mark.parametrize("kind", ["paged", "small batch", "static"])
@pytest.mark.parametrize("logprobs", [False, True], ids=["", "logprobs"])
def test_others_go_on_when_a_row_is_nan(kind, role, logprobs, good, bad, exact, monkeypatch) -> None:
    if kind == "static":
        monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
    given, size = params(logprobs=logprobs), 5 if kind == "small batch" else 64
    expected = ContrastiveLM(good, bad, max_num_seqs=size).generate(PROMPTS, given)
    tokens: list[int] = []
    requests = poisoned(role, good, bad, max_num_seqs=size).generate(PROMPTS, given, progress=tokens.append)
    outputs = [output for request in requests for output in request.outputs]
    check(outputs, [output for request in expected for output in request.outputs], role)
    assert sum(tokens) == sum(len(output.token_ids) for output in outputs), "a fault is no token"
    if logprobs:
        assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)


@pytest.mark.parametrize("capacity", [256, 3], ids=["", "more candidates than their list holds"])
@pytest.mark.parametrize("graphs", [False, True], ids=["", "graphs"])
@pytest.mark.parametrize("contrast_strength", [0.0, 1.0])
def test_others_go_on_between_two_syncs(
    graphs, capacity, contrast_strength, good, bad, exact, monkeypatch, request
) -> None:
    if graphs:
        request.getfixturevalue("fake_cuda")
    monkeypatch.setattr("cdgen.engine.paged_backend.CAPACITY", capacity)
    given = params(contrast_strength=contrast_strength)
    pairs = [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(N)]
    expected = continued(ContrastiveLM(good, bad), Prompts(PROMPTS), pairs, given)
    lm = poisoned("GOOD", good, bad)
    paged = backend(lm, given, size=6, longest=57)
    paged.steps_per_round, paged.rounds_in_flight = 4, 2
    if graphs:
        paged._graphs = paged._new_graphs()
    pages = paged.cache.free_pages
    check(outputs_of(lm.pair, paged, make_requests(Prompts(PROMPTS), pairs), given), expected, "GOOD")
    assert (paged.cache.free_pages, paged.cache.reserved_pages) == (pages, 0)


@pytest.mark.parametrize("kind", ["paged", "static"])
@pytest.mark.parametrize("bad", [False, True], ids=["GOOD alone", "contrast"])
def test_a_sequence_whose_tokens_are_all_banned(kind, bad, monkeypatch) -> None:
    """Forty tokens and no repetition: each sequence ends after all tokens that its prompt does not hold."""
    if kind == "static":
        monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
    models = [make_llama(seed, vocab_size=40) for seed in range(1 + bad)]
    prompts = [[5, 6, 7], [8], list(range(2, 40))]
    given = params(no_repeat_ngram_size=1, max_tokens=100, alpha=0.1, contrast_strength=float(bad))
    for prompt, request in zip(prompts, ContrastiveLM(*models).generate(prompts, given), strict=True):
        for output in request.outputs:
            assert sorted(prompt + output.token_ids) == list(range(40))
            assert output.finish_reason == "error" and "every token that is not banned" in output.error


def test_the_text_so_far_is_kept(good, bad, tokenizer) -> None:
    lm = poisoned("GOOD", good, bad, tokenizer=tokenizer)
    outputs = [output for request in lm.generate(["Once"], params(n=20)) for output in request.outputs]
    failed = [output for output in outputs if output.finish_reason == "error"]
    assert failed and all(
        output.token_ids[-1] == POISON and output.text == lm.tokenizer.decode(output.token_ids) for output in failed
    )


def test_a_model_that_gives_only_nan_fails_every_sequence(tokenizer) -> None:
    lm = ContrastiveLM(make_llama(0), tokenizer=tokenizer)
    lm.pair.good.module.lm_head.weight.data[7] = float("nan")
    (request,) = lm.generate("a", params(contrast_strength=0.0))
    assert [(output.text, output.token_ids, output.finish_reason) for output in request.outputs] == [
        ("", [], "error")
    ] * N
