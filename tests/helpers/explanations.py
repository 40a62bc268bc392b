"""Explanations made without models: texts in several scripts, with consistent and reproducible probabilities."""

import math
import random
import re
from collections.abc import Sequence

from cdgen.viewer.explanation import Candidate, ExplainedToken, Explanation, Piece, Prediction

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & \0 \u202egnp.exe\u2066 <!-- \u2028 `${1}`"
)
START, END = "<|start|>", "<|end|>"
_SPECIAL = (START, END)
# Each text is a list of tokens. Bytes are tokens that are a part of a character.
TEXTS: dict[str, list[Piece]] = {
    "english": [
        *re.findall(
            r" ?\w+|[^\w]", "The little fox waited by the river until the moon came up. Then it crossed the bridge,"
        ),
        *re.findall(r" ?\w+|[^\w]", ' looked back once, and said: "Nobody will believe that I was here."'),
    ],
    "arabic": re.findall(r" ?\w{1,2}|[^\w]", "كان القمر جميلا في تلك الليلة، وجلست الطفلة قرب النافذة تقرأ كتابا."),
    "hebrew": re.findall(r" ?\w{1,3}|[^\w]", "הילדה ישבה ליד החלון וקראה ספר ישן. בלילה ירד גשם (12 טיפות)."),
    # Vowel signs are tokens of their own, as in byte-pair vocabularies with few Hindi words.
    "hindi": re.findall(r" ?[^\W\u0900-\u0903\u093a-\u094f]+|.", "हिन्दी में लिखी हुई एक छोटी कहानी, जिसे बच्चे पढ़ते हैं।"),
    "emoji": [
        "Snow",
        b" \xe2\x98",
        b"\x83",
        " and",
        " a",
        " rocket",
        b" \xf0\x9f",
        b"\x9a",
        b"\x80",
        "!",
        " ",
        "\u0301",
        "e",
        "\u0301",
    ],
    "lines": [
        START,
        "First",
        " line",
        "\n",
        "second",
        " line",
        "\n\n",
        "\t",
        "tab",
        "  ",
        "two",
        "\r\n",
        "end",
        ".",
        END,
        START,
        "Next",
    ],
    "hostile": re.findall(r"</?\w+>?|\w+|[^\w]", HOSTILE),
}
_OTHERS = [
    *re.findall(" [a-z]+", " the a of and to it was in he that her you not they with this but had"),
    *("\n", ",", "."),
]
_LISTED = 10
ALPHA = 0.1


def explained(
    pieces: Sequence[Piece], prompt_length: int = 5, seed: int = 0, bad: str | None = "tiny/step-500"
) -> Explanation:
    """Return an explanation of the text that consists of the given tokens, with random but consistent probabilities.

    Args:
        pieces: the tokens of the text.
        prompt_length: number of tokens that belong to the prompt.
        seed: key of the random probabilities.
        bad: name of BAD; None for an explanation without BAD.
    """
    generator = random.Random(seed)
    ids = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *_OTHERS, b"\xe0\xa4", " \u0301"]))}
    tokens: list[ExplainedToken] = []
    pending = b""
    for position, piece in enumerate(pieces):
        pending, text = _added(pending, piece)
        prediction = _predicted(ids[piece], list(ids.values()), generator, bad is not None) if position else None
        tokens.append(ExplainedToken(ids[piece], text, prediction))
    listed = {one.token_id for token in tokens if token.prediction for one in token.prediction.listed}
    shown = listed | {token.token_id for token in tokens}
    return Explanation(
        tokens=tuple(tokens),
        prompt_length=min(prompt_length, len(pieces)),
        pieces={number: piece for piece, number in ids.items() if number in shown},
        special_ids=frozenset(ids[piece] for piece in _SPECIAL if ids.get(piece) in shown),
        good="tiny/step-2500",
        bad=bad,
        params={"method": "contrastive", "alpha": ALPHA, "contrast_strength": 1.0, "temperature": 1.0},
    )


def sample(name: str, prompt_length: int = 5, bad: str | None = "tiny/step-500") -> Explanation:
    """Return the explanation of one of `TEXTS`."""
    return explained(TEXTS[name], prompt_length, seed=len(name), bad=bad)


def long_sample(tokens: int, seed: int = 0) -> Explanation:
    """Return the explanation of an English text with `tokens` tokens."""
    story = [*TEXTS["english"], "\n"]
    return explained((story * (tokens // len(story) + 1))[:tokens], 20, seed)


def _added(pending: bytes, piece: Piece) -> tuple[bytes, str]:
    """Return the bytes of a character that is not complete yet, and what a token adds to the text."""
    if isinstance(piece, str):
        return b"", piece
    try:
        return b"", (pending + piece).decode()
    except UnicodeDecodeError:
        return pending + piece, ""


def _predicted(token: int, ids: list[int], generator: random.Random, contrasted: bool) -> Prediction:
    """Return a prediction for which the token is a likely one, and now and then no candidate at all."""
    spread = generator.choice([0.6, 1.5, 3.0])
    good = {number: generator.gauss(0, spread) for number in ids}
    good[token] += generator.choice([3.0, 3.0, 3.0, 5.0, 0.5, -6.0]) * spread**0.5
    bad = {number: value * 0.6 + generator.gauss(0, 0.8 * spread**0.5) for number, value in good.items()}
    good, bad = _log_softmax(good), _log_softmax(bad)
    threshold = max(good.values()) + math.log(ALPHA)
    candidates = [number for number in ids if good[number] >= threshold]
    drawn = _log_softmax({number: good[number] - contrasted * bad[number] for number in candidates})
    ranked = sorted(candidates, key=lambda number: -drawn[number])
    good_best = max(ids, key=lambda number: good[number])
    listed = list(dict.fromkeys([*ranked[:_LISTED], token, good_best]))
    return Prediction(
        good=good[token],
        bad=bad[token] if contrasted else None,
        logprob=drawn.get(token, -math.inf),
        entropy=-sum(math.exp(value) * value for value in good.values()),
        candidates=len(candidates),
        drawable=len(candidates),
        listed=tuple(
            Candidate(one, good[one], bad[one] if contrasted else None, drawn.get(one, -math.inf)) for one in listed
        ),
        best_id=ranked[0],
        good_best_id=good_best,
    )


def _log_softmax(scores: dict[int, float]) -> dict[int, float]:
    most = max(scores.values())
    total = most + math.log(sum(math.exp(value - most) for value in scores.values()))
    return {number: value - total for number, value in scores.items()}
