"""What GOOD and BAD predicted at each token of a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

# How a token id is shown: its text; or its bytes, if they are only a part of a character.
Piece: TypeAlias = str | bytes

_SHOWN_CHARACTERS = 60  # maximum length of the text in a repr


class Candidate(NamedTuple):
    """A token that could have come next. All values are natural log-probabilities."""

    token_id: int
    good: float  # under GOOD, without temperature
    bad: float | None  # under BAD, likewise; None without BAD
    logprob: float  # log-probability in the distribution that tokens are drawn from; -inf if the token cannot be drawn


@dataclass(frozen=True)
class Prediction:
    """What both models predicted at one position, before they saw the token there.

    Attributes:
        good: log-probability of the token under GOOD, in nats, without temperature.
        bad: its log-probability under BAD, likewise; None without BAD.
        logprob: its log-probability in the distribution from which tokens are drawn; -inf if it cannot be drawn. With
            temperature 0, that of temperature 1.
        entropy: entropy of GOOD's distribution, in nats, without temperature.
        candidates: number of tokens x with p_GOOD(x) >= alpha * max p_GOOD, with temperature, biases and penalties, and
            without tokens that are banned.
        drawable: number of tokens that can be drawn: the candidates that `top_k` and `top_p` keep, and other tokens
            if `outside_head` lets them be drawn. With temperature 0, that of temperature 1.
        listed: the tokens that are most likely to be drawn, in descending order of `logprob`; then the token itself and
            GOOD's most probable token, if they are not among them.
        best_id: the token with the best score, which greedy decoding takes from the same candidates; it is the first of
            `listed`. If no token can be drawn, since all are banned, it is `good_best_id`.
        good_best_id: GOOD's most probable token, whether it is banned or not.
    """

    good: float
    bad: float | None
    logprob: float
    entropy: float
    candidates: int
    drawable: int
    listed: tuple[Candidate, ...]
    best_id: int
    good_best_id: int

    @property
    def contrast(self) -> float | None:
        """log p_GOOD - log p_BAD of the token, in nats; None without BAD."""
        return None if self.bad is None else self.good - self.bad


@dataclass(frozen=True)
class ExplainedToken:
    """A token of a text.

    Attributes:
        token_id: the token.
        text: what the token adds to the text. Tokens that are parts of one character add nothing, except for the last
            one, which adds the character. Without a tokenizer, it is the id as "<123>".
        prediction: None for the first token, which nothing predicts.
    """

    token_id: int
    text: str
    prediction: Prediction | None


@dataclass(frozen=True)
class Explanation:
    """A text under GOOD and BAD, token by token.

    Attributes:
        tokens: the tokens, at least one; an added start-of-text token comes first.
        prompt_length: number of tokens at the beginning that belong to the prompt, which may be all of them.
        pieces: how each token id among `tokens` and what is listed for them is shown by itself: its text, with the
            space that it begins with inside a text; the bytes of a token that does not consist of whole characters;
            the name of a special token; "<123>" if nothing but the id is known. No piece is empty.
        special_ids: those of these ids that are special tokens, such as the end of text.
        good: name of GOOD.
        bad: name of BAD, or how it was made from GOOD; None without BAD.
        params: the sampling parameters that decide the distribution, and `method`, as JSON values by name; `seed` is
            among them if BAD is noisy.
    """

    tokens: tuple[ExplainedToken, ...]
    prompt_length: int
    pieces: Mapping[int, Piece]
    special_ids: frozenset[int]
    good: str
    bad: str | None
    params: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The whole text, special tokens included."""
        return "".join(token.text for token in self.tokens)

    def to_html(self, title: str = "Explanation") -> str:
        """Return a self-contained HTML page in which each token can be selected.

        Args:
            title: title of the page.
        """
        from cdgen.viewer.page import page

        return page(self, title)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        from cdgen.viewer.page import frame

        return frame(self)

    def __repr__(self) -> str:
        text = self.text
        shown = repr(text) if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]!r}..."
        return (
            f"Explanation(text={shown}, tokens=<{len(self.tokens):,}>, prompt_length={self.prompt_length}, "
            f"good={self.good!r}, bad={self.bad!r}, method={self.params['method']!r})"
        )
