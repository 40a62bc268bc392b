"""The viewer's data: nothing is lost but what the quantisation takes, and it stays small."""

import json
import math
from dataclasses import replace

import pytest

from cdgen.viewer.encode import CONTRAST_STEPS, LOWEST, contrast_step, viewer_data
from cdgen.viewer.explanation import Candidate, ExplainedToken, Explanation, Prediction
from cdgen.viewer.page import script_json
from tests.helpers.explanations import TEXTS, long_sample, sample
from tests.helpers.viewer_data import DecodedCandidate, DecodedDocument, DecodedToken, decode

HALF_STEP = 0.0005 + 1e-9  # nats


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
    assert (decoded.candidates, decoded.drawable) == (expected.candidates, expected.drawable)
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


def single(
    candidates: int = 1,
    drawable: int = 1,
    good: float = -1.0,
    bad: float = -2.0,
    logprob: float = 0.0,
    entropy: float = 0.5,
) -> Explanation:
    """Return the explanation of two tokens with one listed candidate."""
    listed = (Candidate(7, good, bad, logprob),)
    prediction = Prediction(good, bad, logprob, entropy, candidates, drawable, listed, best_id=7, good_best_id=7)
    tokens = (ExplainedToken(7, "a", None), ExplainedToken(7, "a", prediction))
    return Explanation(tokens, 1, {7: "a"}, frozenset(), "good", "bad", {})


def test_extreme_values() -> None:
    extreme = single(1_000_000, 999_999, good=-1e-17, bad=-800.0, logprob=-math.inf, entropy=math.log(150_000))
    vast = round_trip(extreme)[0].tokens[1]
    assert (vast.candidates, vast.drawable) == (1_000_000, 999_999)
    assert (vast.good, vast.bad, vast.logprob) == (0.0, -800.0, -math.inf)
    assert vast.entropy == pytest.approx(math.log(150_000), abs=HALF_STEP)
    least = round_trip(single(0, 0, bad=-3e38, logprob=0.0, entropy=-1e-17))[0].tokens[1]
    assert (least.candidates, least.drawable, least.entropy, least.bad) == (0, 0, 0.0, -LOWEST)


def test_as_many_bits_as_the_viewer_reads() -> None:
    """viewer.js adds a byte to less than 24 bits, which 32 bits hold."""
    assert max(int(value[1]) for value in columns(single(10**6, bad=-1e9)).values()) == 24


def columns(explanation: Explanation) -> dict[str, list[int | str]]:
    """Return the columns of the data of one explanation."""
    stored = viewer_data([explanation])["documents"][0]
    return {name: value for name, value in stored.items() if isinstance(value, list)}


def test_texts_without_predictions() -> None:
    alone = replace(single(), tokens=single().tokens[:1])
    [document] = round_trip(alone)
    assert document.text == "a" and document.tokens[0].good is None
    assert viewer_data([])["documents"] == []


def test_columns_that_repeat_another_are_left_out() -> None:
    assert "drawable" not in columns(single(3, 3)) and "drawable" in columns(single(3, 2))
    assert "logprob" not in columns(single(good=-1.0, logprob=-1.0)) and "logprob" in columns(single())


def vocabulary(size: int) -> Explanation:
    """Return the explanation of a text that consists of `size` different tokens."""
    pieces = {token_id: str(token_id) for token_id in range(size)}
    tokens = tuple(ExplainedToken(token_id, piece, None) for token_id, piece in pieces.items())
    return replace(single(), tokens=tokens, pieces=pieces)


def test_more_pieces_than_16_bits_hold() -> None:
    large = vocabulary(70_000)
    first, last = round_trip(large, sample("hindi"))
    assert first.text == large.text
    assert last.text == sample("hindi").text and last.tokens[-1].listed


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


def test_ancestral_log_probabilities() -> None:
    assert round_trip(single(good=-1.0, logprob=-1.0))[0].tokens[1].logprob == -1.0


def test_size() -> None:
    """4 corpora x 50 texts x 200 tokens stay below 3.5 MB, with a table of as many tokens as a vocabulary has."""
    texts = [long_sample(200, seed) for seed in range(3)]
    assert sum(len(one.prediction.listed) for text in texts for one in text.tokens if one.prediction) > 3 * 200 * 5
    data = viewer_data([vocabulary(32_000), *texts])
    tables, (_, *documents) = data | {"documents": []}, data["documents"]
    assert len(script_json(tables)) + len(script_json(documents)) * 200 / len(texts) < 3_500_000


def test_contrast_step() -> None:
    assert [contrast_step(limit) for limit in (0.0, *CONTRAST_STEPS, 99.0)] == [0, 1, 2, 3, 4, 5, 5]
    assert [contrast_step(-limit) for limit in (0.0, *CONTRAST_STEPS, 99.0)] == [0, -1, -2, -3, -4, -5, -5]
    assert contrast_step(0.2499) == contrast_step(-0.2499) == 0
