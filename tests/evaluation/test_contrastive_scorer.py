"""Log-probabilities under the contrastive distribution of a pair."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.errors import InputError
from cdgen.evaluation.scoring.contrastive_scorer import ContrastiveScorer, contrastive_logprobs
from cdgen.evaluation.scoring.conventions import Tokens
from cdgen_kernels import contrastive_sample, make_sampling_tensors
from tests.helpers.tiny_models import VOCABULARY, make_llama

TAIL = SamplingParams.for_method("contrastive_tail")
DISTRIBUTIONS = {
    "tail": TAIL,
    "tail, weights": replace(TAIL, good_weight=1.5, contrast_strength=0.5, alpha=0.3),
    "tail, temperature": replace(TAIL, temperature=0.7),
    "mask": SamplingParams.for_method("contrastive"),
    "constant": SamplingParams(outside_head=-20.0),
    "top-k": SamplingParams.for_method("contrastive_top_k", top_k=3, alpha=0.01),
    "top-p": SamplingParams.for_method("contrastive_top_p", top_p=0.6, alpha=0.01),
}


def logits(rows: int = 8) -> tuple[Tensor, Tensor]:
    """Return logits of GOOD and BAD that have something in common, float32 [rows, VOCABULARY]."""
    generator = torch.Generator().manual_seed(5)
    good, other = (3 * torch.randn(rows, VOCABULARY, generator=generator) for _ in range(2))
    return good, (good + other) / 2


def defined(good: Tensor, bad: Tensor, params: SamplingParams) -> Tensor:
    """Return the log-probabilities of one position, [V], as the documentation of SamplingParams defines them."""
    log_good, log_bad = ((x.double() / params.temperature).log_softmax(0) for x in (good, bad))
    is_candidate = log_good >= log_good.max() + math.log(params.alpha)
    score = params.good_weight * log_good - params.contrast_strength * log_bad
    if params.outside_head == "shifted_good":
        shift = score[is_candidate].min() - log_good[~is_candidate].max()
        outside = log_good + shift
    else:
        constant = -math.inf if params.outside_head == "mask" else float(params.outside_head)
        outside = torch.full_like(score, constant)
    return torch.where(is_candidate, score, outside).log_softmax(0)


@pytest.mark.parametrize("name", ["tail", "tail, weights", "tail, temperature", "mask", "constant"])
def test_every_token_has_the_defined_probability(name: str) -> None:
    good, bad = logits()
    expected = torch.stack([defined(*row, DISTRIBUTIONS[name]) for row in zip(good, bad, strict=True)])
    torch.testing.assert_close(contrastive_logprobs(good, bad, DISTRIBUTIONS[name]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_probabilities_sum_to_one(name: str) -> None:
    total = contrastive_logprobs(*logits(), DISTRIBUTIONS[name]).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_op_draws_from_this_distribution(name: str) -> None:
    """The log-probability that the op reports for each token that it draws is the one computed here."""
    params, draws = DISTRIBUTIONS[name], 200
    good, bad = logits(1)
    sampling = make_sampling_tensors(
        draws,
        alpha=params.alpha,
        good_weight=params.good_weight,
        contrast_strength=params.contrast_strength,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=1,
    )
    rows = (good.repeat(draws, 1), bad.repeat(draws, 1))
    drawn = contrastive_sample(*rows, sampling, outside_head=params.outside_head, logprobs=True)
    assert drawn.logprob is not None and len(drawn.token.unique()) > 1
    expected = contrastive_logprobs(good, bad, params)[0, drawn.token]
    torch.testing.assert_close(drawn.logprob.double(), expected, rtol=0, atol=1e-5)


@pytest.fixture
def pair(good: LlamaForCausalLM, bad: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> ContrastiveLM:
    return ContrastiveLM(good, bad, tokenizer=tokenizer)


def sequences() -> list[Tokens]:
    """Return sequences of several lengths, with one or more scored tokens."""
    generator = np.random.default_rng(3)
    lengths = (2, 30, 7, 7, 19, 100)
    ids = [generator.integers(0, VOCABULARY, length).tolist() for length in lengths]
    return [Tokens(one, first) for one, first in zip(ids, (1, 12, 6, 1, 18, 50), strict=True)]


@pytest.mark.parametrize("batch_tokens", [None, 1, 40])
def test_scores_of_sequences_are_those_of_their_tokens(pair: ContrastiveLM, batch_tokens: int | None) -> None:
    done: list[int] = []
    scores = ContrastiveScorer(pair.pair, TAIL, batch_tokens).score(sequences(), done.append)
    assert done[-1] == len(scores) and done == sorted(done)
    for (ids, first), found in zip(sequences(), scores, strict=True):
        given = torch.tensor([ids])
        with torch.inference_mode():
            outputs = [model.module(given).logits[0, :-1] for model in (pair.pair.good, pair.pair.bad) if model]
        each = contrastive_logprobs(*outputs, TAIL)[first - 1 :]
        expected = each.gather(1, given[0, first:, None])[:, 0]
        np.testing.assert_allclose(found.logprobs, expected.numpy(), rtol=0, atol=1e-4)
        assert found.greedy.tolist() == (each.argmax(1) == given[0, first:]).tolist()


def test_tokens_that_cannot_be_drawn_have_no_probability(pair: ContrastiveLM) -> None:
    (found,) = ContrastiveScorer(pair.pair, DISTRIBUTIONS["mask"]).score([sequences()[1]], lambda done: None)
    assert np.isneginf(found.logprobs).any() and not np.isnan(found.logprobs).any()


def test_scores_with_a_dropout_bad_can_be_repeated(good: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pair = ContrastiveLM(good, dropout=0.3, tokenizer=tokenizer).pair
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        runs.append(ContrastiveScorer(pair, TAIL).score(sequences(), lambda done: None))
        assert torch.equal(torch.get_rng_state(), state)
    first, second = (np.concatenate([one.logprobs for one in run]) for run in runs)
    assert np.array_equal(first, second)
    without = ContrastiveScorer(ContrastiveLM(good, make_llama(0), tokenizer=tokenizer).pair, TAIL)
    assert not np.array_equal(
        first, np.concatenate([one.logprobs for one in without.score(sequences(), lambda done: None)])
    )


def test_requests_that_have_no_distribution(pair: ContrastiveLM, good: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="needs a BAD"):
        ContrastiveScorer(ContrastiveLM(good).pair, TAIL)
    with pytest.raises(InputError, match="temperature = 0"):
        ContrastiveScorer(pair.pair, replace(TAIL, temperature=0))
    with pytest.raises(InputError, match="token id 300 is out of range"):
        ContrastiveScorer(pair.pair, TAIL).score([Tokens([1, 300], 1)], lambda done: None)
