"""A decoder of the viewer's data, independent of viewer.js."""

import base64
import math
from dataclasses import dataclass
from typing import Any


@dataclass
class DecodedCandidate:
    """A token that could have come next; log-probabilities in nats."""

    token_id: int
    good: float
    bad: float | None
    logprob: float


@dataclass
class DecodedToken:
    """A token of a text. The fields after `text` are None for a token that nothing predicts."""

    token_id: int
    piece: str | bytes
    is_special: bool
    text: str
    good: float | None = None
    bad: float | None = None
    logprob: float | None = None
    entropy: float | None = None
    candidates: int | None = None
    drawable: int | None = None
    listed: tuple[DecodedCandidate, ...] = ()
    best_id: int | None = None
    good_best_id: int | None = None


@dataclass
class DecodedDocument:
    """A text with its models and sampling parameters."""

    good: str
    bad: str | None
    params: dict[str, Any]
    prompt_length: int
    tokens: list[DecodedToken]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(token.text for token in self.tokens)


def decode(data: dict[str, Any]) -> list[DecodedDocument]:
    """Decode what `cdgen.viewer.encode.viewer_data` returned, or what JSON made of it."""
    return [_document(data, stored) for stored in data["documents"]]


def _document(data: dict[str, Any], stored: dict[str, Any]) -> DecodedDocument:
    settings = data["settings"][stored["settings"]]
    texts = {int(position): text for position, text in stored["texts"].items()}
    column = {name: _numbers(value) for name, value in stored.items() if isinstance(value, list)}
    everything = _candidates(data, column)
    tokens: list[DecodedToken] = []
    start = predicted = 0
    for position, (index, count) in enumerate(zip(column["tokens"], column["listed"], strict=True)):
        piece = data["pieces"][index]
        usual = piece if isinstance(piece, str) else ""
        shown = piece if isinstance(piece, str) else bytes.fromhex(piece[0])
        token = DecodedToken(data["ids"][index], shown, index in data["special"], texts.get(position, usual))
        if count:
            _predict(token, tuple(everything[start : start + count]), column, predicted)
            predicted += 1
        start += count
        tokens.append(token)
    return DecodedDocument(settings["good"], settings["bad"], settings["params"], stored["prompt_length"], tokens)


def _candidates(data: dict[str, Any], column: dict[str, list[int]]) -> list[DecodedCandidate]:
    good = [_nats(units) for units in column["good"]]
    bad = [_nats(units) for units in column["bad"]] if "bad" in column else [None] * len(good)
    logprob = [_nats(units) for units in column["logprob"]] if "logprob" in column else good
    ids = [data["ids"][index] for index in column["candidate"]]
    return [DecodedCandidate(*values) for values in zip(ids, good, bad, logprob, strict=True)]


def _predict(token: DecodedToken, listed: tuple[DecodedCandidate, ...], column: dict[str, list[int]], at: int) -> None:
    chosen = listed[column["chosen"][at]]
    assert chosen.token_id == token.token_id
    token.good, token.bad, token.logprob, token.listed = chosen.good, chosen.bad, chosen.logprob, listed
    token.entropy, token.candidates = column["entropy"][at] / 1000, column["candidates"][at]
    token.drawable = column.get("drawable", column["candidates"])[at]
    token.best_id = listed[column["best"][at]].token_id
    token.good_best_id = listed[column["good_best"][at]].token_id


def _numbers(packed: list[Any]) -> list[int]:
    length, bits, text = packed
    digits = "".join(f"{byte:08b}" for byte in base64.b64decode(text))
    return [int(digits[start : start + bits], 2) for start in range(0, length * bits, bits)]


def _nats(units: int) -> float:
    return (1 - units) / 1000 if units else -math.inf
