"""Predictions recomputed from all logits of a text, in float64 and by definition, for comparison with explanations."""

import math
from collections.abc import Sequence

import pytest
import torch
import transformers

from cdgen import SamplingParams
from cdgen.viewer.explanation import Candidate, ExplainedToken, Prediction
from tests.helpers.families import FAMILIES, LLAMA_LIKE
from tests.helpers.viewer_data import DecodedToken

CONFIGS = FAMILIES | {"qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=16)}


def family(name: str, seed: int) -> transformers.PreTrainedModel:
    """Return a random model of one of `CONFIGS`, in evaluation mode."""
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def all_logits(model: transformers.PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Return the logits with which a model predicts all tokens but the first, float64 [T - 1, V], without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0, :-1].double()


def distribution(good: torch.Tensor, bad: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of being drawn [T, V] and the number of candidates [T], by sorting every row."""
    temperature = params.temperature or 1.0
    plausible = good / temperature >= good.max(1, keepdim=True).values / temperature + (
        math.log(params.alpha) if params.alpha else -math.inf
    )
    plausible &= good > -math.inf  # banned tokens
    score = (params.good_weight * good - params.contrast_strength * bad) / temperature
    scores = score.masked_fill(~plausible, -math.inf)
    if params.outside_head == "shifted_good":
        worst = score.masked_fill(~plausible, math.inf).min(1, keepdim=True).values
        tail = good.masked_fill(plausible, -math.inf)
        tail = worst + (tail - tail.max(1, keepdim=True).values) / temperature
        scores = torch.where(plausible, scores, tail)
    elif params.outside_head != "mask":
        of_both = [(x / temperature).log_softmax(1) for x in (good, bad)]
        scores = params.good_weight * of_both[0] - params.contrast_strength * of_both[1]
        scores = scores.masked_fill(~plausible, float(params.outside_head))
    scores = scores.masked_fill(good == -math.inf, -math.inf)
    for row in scores:
        best = row.argsort(descending=True, stable=True)  # the lower id first among equals
        if params.top_k:
            row[best[params.top_k :]] = -math.inf
        before = row.softmax(0)[best].cumsum(0) - row.softmax(0)[best]
        if params.top_p < 1:
            row[best[before >= params.top_p]] = -math.inf
    return scores.log_softmax(1), plausible.sum(1)


class Recomputation:
    """What a pair of models predicts in a text.

    Args:
        good, bad: logits float64 [T, V] for the tokens after the first one.
        params: the sampling parameters, without bans.
    """

    def __init__(self, good: torch.Tensor, bad: torch.Tensor, params: SamplingParams) -> None:
        self.good, self.bad = good.log_softmax(1), bad.log_softmax(1)
        self.logprob, self.candidates = distribution(good, bad, params)

    def prediction(self, at: int, token_id: int, listed: Sequence[int]) -> Prediction:
        """Return what is predicted at row `at`, where `token_id` follows, with the given tokens listed."""
        rows = [x[at] for x in (self.good, self.bad, self.logprob)]
        values = {token: [float(row[token]) for row in rows] for token in (token_id, *listed)}
        return Prediction(
            *values[token_id],
            entropy=float(rows[0].exp() @ -rows[0]),
            candidates=int(self.candidates[at]),
            drawable=int((rows[2] > -math.inf).sum()),
            listed=tuple(Candidate(token, *values[token]) for token in listed),
            best_id=int(rows[2].argmax()),
            good_best_id=int(rows[0].argmax()),
        )

    def check(self, tokens: Sequence[ExplainedToken] | Sequence[DecodedToken], tolerance: float) -> None:
        """Compare the tokens of a text with the recomputation.

        Args:
            tokens: all tokens of the text.
            tolerance: greatest difference of log-probabilities and entropies, in nats.
        """
        assert len(tokens) == len(self.good) + 1
        for at, token in enumerate(tokens[1:]):
            found = token.prediction if isinstance(token, ExplainedToken) else token
            assert found is not None and found.listed
            listed = [one.token_id for one in found.listed]
            expected = self.prediction(at, token.token_id, listed)
            for name in ("best_id", "good_best_id", "candidates", "drawable"):
                assert getattr(found, name) == getattr(expected, name), name
            for name in ("entropy", "good", "bad", "logprob"):
                assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=tolerance), name
            for one, right in zip(found.listed, expected.listed, strict=True):
                assert (one.good, one.bad, one.logprob) == pytest.approx(right[1:], abs=tolerance)
            self._check_listed(at, token.token_id, expected, tolerance)

    def _check_listed(self, at: int, token_id: int, expected: Prediction, tolerance: float) -> None:
        """Check that the right tokens are listed: by value, since two tokens of `contrastive_tail` are equal."""
        listed = [one.token_id for one in expected.listed]
        most = min(10, expected.drawable)
        best = self.logprob[at].topk(most).values.tolist()
        assert [one.logprob for one in expected.listed[:most]] == pytest.approx(best, abs=2 * tolerance)
        assert listed[0] == (expected.best_id if expected.drawable else listed[0]) and len(set(listed)) == len(listed)
        assert set(listed[most:]) == {token_id, expected.good_best_id} - set(listed[:most])
