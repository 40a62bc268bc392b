"""Explanations as compact JSON data, which viewer.js reads: tables that all texts share, and columns of small integers.

Log-probabilities and entropies are stored in thousandths of a nat, so the probabilities shown are exact to 0.05 percent
of their value. A token takes about 50 to 90 bytes, most of them for the tokens that could have come next.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdgen.viewer.explanation import Candidate, Explanation, Piece, Prediction

# Absolute contrasts in nats from which on a token has each of the colours, from the palest to the strongest.
CONTRAST_STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)
UNITS_PER_NAT = 1000
NEVER = 0  # stored for a log-probability of -inf; others are stored as their absolute value plus 1
LOWEST = 16_000.0  # greatest absolute log-probability that is stored, in nats; data.js reads at most 24 bits


def contrast_step(contrast: float) -> int:
    """Return the step of a contrast on the colour scale.

    Args:
        contrast: log p_GOOD - log p_BAD, in nats.

    Returns:
        -5 (BAD's probability is far greater) to 5 (GOOD's is); 0 is uncoloured.
    """
    step = sum(abs(contrast) >= limit for limit in CONTRAST_STEPS)
    return step if contrast > 0 else -step


def viewer_data(explanations: "Sequence[Explanation]") -> dict[str, Any]:
    """Encode explanations for the viewer.

    Args:
        explanations: the texts, in the order in which `cdgenViewer.read` returns them.

    Returns:
        JSON values. `ids` and `pieces` are the tokens that occur, `special` indexes them, and `settings` are the models
        and sampling parameters. Each of `documents` has columns: `[integers, bits of each, base64]`.
    """
    pieces: dict[tuple[int, Piece, bool], int] = {}
    settings: list[dict[str, Any]] = []
    documents = [_document(explanation, pieces, settings) for explanation in explanations]
    return {
        "steps": list(CONTRAST_STEPS),
        "ids": [token_id for token_id, _, _ in pieces],
        "pieces": [piece if isinstance(piece, str) else [piece.hex(" ")] for _, piece, _ in pieces],
        "special": [index for (_, _, is_special), index in pieces.items() if is_special],
        "settings": settings,
        "documents": documents,
    }


def _document(
    explanation: "Explanation", pieces: "dict[tuple[int, Piece, bool], int]", settings: list[dict[str, Any]]
) -> dict[str, Any]:
    """Encode a text. Tokens and settings that are new are added to the tables."""

    def index_of(token_id: int) -> int:
        key = (token_id, explanation.pieces[token_id], token_id in explanation.special_ids)
        return pieces.setdefault(key, len(pieces))

    setting = {"good": explanation.good, "bad": explanation.bad, "params": dict(explanation.params)}
    if setting not in settings:
        settings.append(setting)
    predictions = [token.prediction for token in explanation.tokens]
    listed = [[] if one is None else [candidate.token_id for candidate in one.listed] for one in predictions]
    known = [(one, ids) for one, ids in zip(predictions, listed, strict=True) if one is not None]
    texts = {
        position: token.text
        for position, token in enumerate(explanation.tokens)
        if token.text != _usual_text(explanation.pieces[token.token_id])
    }
    followers = zip(explanation.tokens, listed, strict=True)
    columns = {
        "tokens": [index_of(token.token_id) for token in explanation.tokens],
        "listed": [len(ids) for ids in listed],
        "chosen": [ids.index(token.token_id) for token, ids in followers if ids],
        "best": [ids.index(one.best_id) for one, ids in known],
        "good_best": [ids.index(one.good_best_id) for one, ids in known],
        "entropy": [round(UNITS_PER_NAT * one.entropy) for one, _ in known],
        "candidates": [one.candidates for one, _ in known],
        **_drawable([one for one, _ in known]),
        "candidate": [index_of(token_id) for ids in listed for token_id in ids],
        **_log_probabilities([candidate for one, _ in known for candidate in one.listed], explanation.bad is not None),
    }
    return {
        "settings": settings.index(setting),
        "prompt_length": explanation.prompt_length,
        "texts": texts,
        **{name: _packed(values) for name, values in columns.items()},
    }


def _drawable(predictions: "Sequence[Prediction]") -> dict[str, list[int]]:
    """Return the column of the numbers of tokens that can be drawn, left out if these are the candidates."""
    numbers = [one.drawable for one in predictions]
    return {} if numbers == [one.candidates for one in predictions] else {"drawable": numbers}


def _log_probabilities(listed: "Sequence[Candidate]", has_bad: bool) -> dict[str, list[int]]:
    """Return the columns of log-probabilities. `logprob` is left out if it equals `good`, as in ancestral sampling."""
    columns = {"good": [_units(one.good) for one in listed]}
    if has_bad:
        columns["bad"] = [_units(one.bad) for one in listed if one.bad is not None]
    logprobs = [_units(one.logprob) for one in listed]
    return columns if logprobs == columns["good"] else {**columns, "logprob": logprobs}


def _usual_text(piece: "Piece") -> str:
    """Return what a token adds to the text unless `texts` says otherwise."""
    return piece if isinstance(piece, str) else ""


def _units(logprob: float) -> int:
    """Return a log-probability as a small integer."""
    return NEVER if logprob == -math.inf else 1 + round(UNITS_PER_NAT * max(0.0, min(LOWEST, -logprob)))


def _packed(values: Iterable[int]) -> list[int | str]:
    """Return integers as their number, the fewest bits that hold the greatest one, and base64."""
    values = list(values)
    bits = max(1, max(values, default=0).bit_length())
    digits = "".join(f"{value:0{bits}b}" for value in values)
    size = (len(digits) + 7) // 8
    packed = int(digits.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")
    return [len(values), bits, base64.b64encode(packed).decode("ascii")]
