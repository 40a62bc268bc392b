"""The two conventions for turning texts into token ids, and for choosing which of these tokens are scored.

They differ in what precedes a text, and in where its scored part begins.

`babylm` follows the evaluation pipeline of the BabyLM Challenge 2025. Context and continuation are encoded as one text.
A token is scored if its last character lies in the continuation, so a token that spans the border is scored as a whole.
The first token of a text has nothing before it and is not scored, unless the tokenizer adds a start-of-text token.

`lm-eval` follows the class HFLM of EleutherAI's lm-evaluation-harness. White space at the end of the context moves to
the continuation; the ids of the continuation are those of the whole text except the first n, where n is the number of
ids of the context. An empty context becomes the start-of-text token, or the end-of-text token if the tokenizer has no
other, so the first token of a text is scored too.

Both use the tokenizer's own rule for adding special tokens. Unlike those two programs, cdgen encodes "</s>" in a text
as plain text.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from cdgen.errors import InputError
from cdgen.models.tokenizers import encode, encode_with_offsets
from cdgen.values import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ConventionName = Literal["babylm", "lm-eval"]
CONVENTIONS: tuple[ConventionName, ...] = get_args(ConventionName)


class Query(NamedTuple):
    """A continuation to score after a context. Spaces between them are part of the strings."""

    context: str
    continuation: str


class Tokens(NamedTuple):
    """Token ids of a text. Those from `first` on are scored: `ids[first:]`, with `first` at least 1."""

    ids: list[int]
    first: int


class TextTokens(NamedTuple):
    """The token ids of a text, and the characters of each scored token.

    Attributes:
        tokens: the token ids, and which of them are scored.
        offsets: start and end of each scored token in the text; (0, 0) for an added special token.
    """

    tokens: Tokens
    offsets: list[tuple[int, int]]


class Convention:
    """One of the conventions, for one tokenizer.

    Args:
        name: "babylm" or "lm-eval".
        tokenizer: encodes the texts.
    Raises:
        InputError: there is no such convention, or the tokenizer has no token that it needs.
    """

    def __init__(self, name: ConventionName, tokenizer: "PreTrainedTokenizerBase") -> None:
        if name not in CONVENTIONS:
            raise InputError(f"convention = {shown(name)}: use {' or '.join(map(repr, CONVENTIONS))}")
        self.name, self._tokenizer = name, tokenizer
        self._start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if name == "lm-eval" and self._start is None:
            raise InputError(
                "convention = 'lm-eval': the tokenizer has neither a start-of-text nor an end-of-text token, one of "
                "which stands for an empty context; use convention='babylm'"
            )

    def queries(self, queries: Sequence[Query]) -> list[Tokens]:
        """Return the token ids of queries.

        Raises:
            InputError: a text cannot be encoded, or no token of a continuation is scored.
        """
        encoded = self._babylm(queries) if self.name == "babylm" else self._lm_eval(queries)
        for query, tokens in zip(queries, encoded, strict=True):
            if tokens.first >= len(tokens.ids):
                text = query.context + query.continuation
                raise InputError(
                    f"the continuation {shown(query.continuation)} of the text {shown(text)} has no token to score in "
                    f"the convention {self.name!r}"
                )
        return encoded

    def texts(self, texts: Sequence[str]) -> list[TextTokens]:
        """Return the token ids of texts of any length. A text may have no scored token.

        Raises:
            InputError: a text cannot be encoded, or the tokenizer gives no character offsets.
        """
        found = []
        for ids, offsets in encode_with_offsets(self._tokenizer, texts, "a text"):
            if self.name == "lm-eval":
                tokens = self._with_start(ids, 0)
                found.append(TextTokens(tokens, offsets[len(offsets) + 1 - len(tokens.ids) :]))
            else:
                tokens = _after(ids, offsets, 0)
                found.append(TextTokens(tokens, offsets[tokens.first : len(tokens.ids)]))
        return found

    def _babylm(self, queries: Sequence[Query]) -> list[Tokens]:
        texts = [query.context + query.continuation for query in queries]
        encoded = encode_with_offsets(self._tokenizer, texts, "a text")
        starts = [len(query.context) for query in queries]
        return [_after(ids, offsets, start) for (ids, offsets), start in zip(encoded, starts, strict=True)]

    def _lm_eval(self, queries: Sequence[Query]) -> list[Tokens]:
        contexts = [query.context.rstrip() for query in queries]
        wholes = [query.context + query.continuation for query in queries]
        known = dict.fromkeys(context for context in contexts if context)
        lengths = {"": 0} | {
            context: len(ids) for context, ids in zip(known, self._encode(list(known), special=True), strict=True)
        }
        found = []
        for special in (True, False):
            chosen = [at for at, context in enumerate(contexts) if bool(context) == special]
            encoded = self._encode([wholes[at] for at in chosen], special=special)
            found += [
                (at, self._with_start(ids, lengths[contexts[at]])) for at, ids in zip(chosen, encoded, strict=True)
            ]
        return [tokens for _, tokens in sorted(found)]

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        ids: list[list[int]] = encode(self._tokenizer, texts, "a text", add_special=special) if texts else []
        return ids

    def _with_start(self, ids: list[int], first: int) -> Tokens:
        """Return ids, scored from `first` on; if `first` is 0, they are preceded by a start-of-text token."""
        if first:
            return Tokens(ids, first)
        return Tokens(ids if ids[:1] == [self._start] else [self._start, *ids], 1)


def _after(ids: list[int], offsets: list[tuple[int, int]], start: int) -> Tokens:
    """Return tokens; those that end after the character `start` are scored, except the first of the text."""
    scored = [at for at, (_, end) in enumerate(offsets) if at and end > start]
    return Tokens(ids[: scored[-1] + 1], scored[0]) if scored else Tokens(ids, max(1, len(ids)))


def windows(tokens: Tokens, limit: int) -> Iterator[Tokens]:
    """Divide a text into windows of at most `limit` tokens, not counting the last of a window, which is not read.

    Each token is scored in one window. A window begins with the last token of the window before. The last window of
    several begins earlier, such that it is as long as the others. This is how lm-evaluation-harness divides texts.
    """
    done = tokens.first
    while done < len(tokens.ids):
        end = min(done + limit, len(tokens.ids))
        start = max(0, end - limit - 1)
        yield Tokens(tokens.ids[start:end], done - start)
        done = end
