"""The viewer's data: nothing is lost but what the quantisation takes, and it stays small."""

import json
import math
from dataclasses import replace

import pytest

from cdgen.viewer.encode import CONTRAST_STEPS, LOWEST, contrast_step, viewer_data
from cdgen.viewer.explanation import Candidate, ExplainedToken, Explanation, Prediction
from tests.helpers.explanations import TEXTS, long_sample, sample
from tests.helpers.viewer_data import DecodedCandidate, DecodedDocument, DecodedToken, decode

HALF_STEP = 0.0005 + 1e-9  # in nats


def round_trip(*explanations: Explanation) -> list[DecodedDocument]:
    return decode(json.loads(json.dumps(viewer_data(explanations))))


def assert_same_token(decoded: DecodedToken, token: ExplainedToken, explanation: Explanation) -> None:
    assert (decoded.token_id, decoded.text) == (token.token_id, token.text)
    assert decoded.piece == explanation.pieces[token.token_id]
    assert decoded.is_special == (token.token_id in explanation.special_ids)
    expected = token.prediction
    if expected is None:
        assert decoded.good is None and decoded.listed == ()
        return
    assert (decoded.best_id, decoded.good_best_id) == (expected.best_id, expected.good_best_id)
    assert decoded.candidates == expected.candidates
    assert decoded.entropy == pytest.approx(expected.entropy, abs=HALF_STEP)
    both: list[tuple[DecodedToken | DecodedCandidate, Prediction | Candidate]] = [
        (decoded, expected),
        *zip(decoded.listed, expected.listed, strict=True),
    ]
    for found, right in both:
        assert found.good == pytest.approx(right.good, abs=HALF_STEP)
        assert found.bad == (None if right.bad is None else pytest.approx(right.bad, abs=HALF_STEP))
        assert found.logprob == pytest.approx(right.logprob, abs=HALF_STEP)
    assert [one.token_id for one in decoded.listed] == [one.token_id for one in expected.listed]


@pytest.mark.parametrize("bad", ["tiny/step-500", None])
def test_round_trip(bad: str | None) -> None:
    explanations = [sample(name, bad=bad) for name in TEXTS]
    decoded = round_trip(*explanations)
    assert len(decoded) == len(explanations)
    for document, explanation in zip(decoded, explanations, strict=True):
        assert (document.good, document.bad) == (explanation.good, explanation.bad)
        assert document.params == explanation.params
        assert (document.prompt_length, document.text) == (explanation.prompt_length, explanation.text)
        for token, expected in zip(document.tokens, explanation.tokens, strict=True):
            assert_same_token(token, expected, explanation)


def single(candidates: int = 1, good: float = -1.0, bad: float = -2.0, logprob: float = 0.0) -> Explanation:
    """Return the explanation of two tokens with one listed candidate."""
    listed = (Candidate(7, good, bad, logprob),)
    prediction = Prediction(good, bad, logprob, 0.5, candidates, listed, best_id=7, good_best_id=7)
    tokens = (ExplainedToken(7, "a", None), ExplainedToken(7, "a", prediction))
    return Explanation(tokens, 1, {7: "a"}, frozenset(), "good", "bad", {})


def test_extreme_values() -> None:
    vast = round_trip(single(candidates=262_144, good=-1e-17, bad=-80.0, logprob=-math.inf))[0].tokens[1]
    assert vast.candidates == 262_144
    assert (vast.good, vast.bad, vast.logprob) == (0.0, -LOWEST, -math.inf)


def test_more_pieces_than_16_bits_hold() -> None:
    explanation = single()
    tokens = tuple(ExplainedToken(token_id, str(token_id), None) for token_id in range(66_000))
    many = replace(explanation, tokens=tokens, pieces={token_id: str(token_id) for token_id in range(66_000)})
    assert round_trip(many)[0].text == many.text


def test_tables_are_shared_unless_tokens_differ() -> None:
    explanation = sample("english")
    data = viewer_data([explanation, explanation])
    assert len(data["ids"]) == len(explanation.pieces) and len(data["settings"]) == 1
    other = replace(explanation, pieces=dict.fromkeys(explanation.pieces, "x"), good="another")
    first, second = round_trip(explanation, other)
    assert {token.piece for token in second.tokens} == {"x"} and second.good == "another"
    assert first.text == explanation.text
    # A text may differ from its tokens by themselves, as with the space that SentencePiece puts before the first word.
    assert second.text == explanation.text


def test_ancestral_log_probabilities_are_not_stored_twice() -> None:
    data = viewer_data([single(good=-1.0, logprob=-1.0)])
    assert "logprob" not in data["documents"][0]
    assert decode(data)[0].tokens[1].logprob == -1.0


def test_size() -> None:
    """200 texts of 200 tokens stay below 3.5 MB: 87 bytes per token."""
    texts = [long_sample(200, seed) for seed in range(3)]
    assert sum(len(one.prediction.listed) for text in texts for one in text.tokens if one.prediction) > 3 * 200 * 5
    assert len(json.dumps(viewer_data(texts)["documents"])) < 87 * 200 * len(texts)


def test_contrast_step() -> None:
    assert [contrast_step(limit) for limit in (0.0, *CONTRAST_STEPS, 99.0)] == [0, 1, 2, 3, 4, 5, 5]
    assert [contrast_step(-limit) for limit in (0.0, *CONTRAST_STEPS, 99.0)] == [0, -1, -2, -3, -4, -5, -5]
    assert contrast_step(0.2499) == contrast_step(-0.2499) == 0
