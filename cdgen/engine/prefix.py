"""The first token ids of a text, without encoding the rest of it."""

from collections.abc import Callable

from cdgen.errors import InputError

_MARGIN = 64  # tokens at the end of a cut text that may differ from those of the whole text
_CHARACTERS = 16  # characters per token of the first cut, more than almost any text has


def first_ids(encode: Callable[[str], list[int]], text: str, count: int) -> list[int]:
    """Return `encode(text)[:count]`, but encode no more of a long text than is needed.

    A cut is trusted if a cut twice as long has the same `count` token ids, and at least 64 more follow them.

    Args:
        encode: function text -> token ids, whose ids depend on the text in their neighbourhood only.
        text: the text.
        count: number of token ids, at least 1.
    """
    size = _CHARACTERS * (count + _MARGIN)
    shorter: list[int] = []
    while 2 * size < len(text):
        ids = encode(_cut(text, size))
        if len(shorter) >= count + _MARGIN and ids[:count] == shorter[:count]:
            return ids[:count]
        shorter, size = ids, 2 * size
    return encode(text)[:count]


def check_length(ids: list[int], name: str, longest: int | None) -> None:
    """Raise InputError if a prompt has more than `longest` token ids.

    Args:
        ids: the prompt's token ids; the first `longest + 1` suffice.
        name: the prompt's name for the message.
        longest: greatest number of token ids; None for any number.
    """
    if longest is not None and len(ids) > longest:
        raise InputError(
            f"{name}: has more tokens than the {longest} that the models' positions leave for a prompt; "
            "shorten it, or lower max_tokens"
        )


def _cut(text: str, size: int) -> str:
    """Return about the first `size` characters of a text, cut before a space if there is one in the second half."""
    start = text[:size]
    words = start.rsplit(None, 1)
    return words[0] if len(words) == 2 and 2 * len(words[0]) > size else start
