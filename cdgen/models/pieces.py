"""Tokens as people read them: each token by itself, and what each token of a text adds to the text."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from cdgen.models.tokenizers import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what tokenizers return for bytes that are not a whole character
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # a byte in a SentencePiece vocabulary with byte fallback
_CONTEXT = 6  # tokens that are decoded before a new one: some tokens are decoded differently at the start of a text
_WINDOW = 24  # number of tokens that are decoded at once before the first of them are left out


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in a byte-level vocabulary (GPT-2's bytes_to_unicode, inverted).

    Printable characters of Latin-1 stand for themselves, and the characters from U+0100 on for the other bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def special_ids(tokenizer: "PreTrainedTokenizerBase | None", ids: Iterable[int]) -> set[int]:
    """Return those of the token ids that are special tokens, such as the end of text."""
    if tokenizer is None:
        return set()
    marked = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return (marked | set(tokenizer.all_special_ids)).intersection(ids)


def pieces(tokenizer: "PreTrainedTokenizerBase | None", ids: Iterable[int]) -> dict[int, str | bytes]:
    """Return how each token is shown by itself.

    Args:
        tokenizer: decodes the tokens.
        ids: token ids.
    Returns:
        For each id: the name of a special token; the bytes of a token that does not consist of whole characters; the
        text of any other token, with the space that it begins with inside a text. A token without text is shown as it
        is in the vocabulary, and one that the tokenizer does not know as "<123>", its id.
    """
    distinct = sorted(set(ids))
    if tokenizer is None:
        return {token: f"<{token}>" for token in distinct}
    special, added = special_ids(tokenizer, distinct), tokenizer.added_tokens_decoder
    return {token: _piece(tokenizer, token, token in special, token in added) for token in distinct}


def _piece(tokenizer: "PreTrainedTokenizerBase", token: int, is_special: bool, is_added: bool) -> str | bytes:
    name = tokenizer.convert_ids_to_tokens(token)
    if not name:
        return f"<{token}>"
    if is_special:
        return str(name)
    alone = decode(tokenizer, [token], False)
    if _REPLACEMENT in alone:  # a byte-level decoder also reads an added token as if its name spelled bytes
        return str(name) if is_added else _from_bytes(str(name)) or alone
    # The token is decoded after itself, since decoders drop the space before a word at the start of a text.
    return decode(tokenizer, [token, token], False)[len(alone) :] or str(name)


def _from_bytes(name: str) -> str | bytes | None:
    """Return the text or the bytes of a token whose name in the vocabulary spells bytes; None for any other token."""
    if match := _BYTE.fullmatch(name):
        found = bytes([int(match[1], 16)])
    elif all(character in _BYTES for character in name):
        found = bytes(_BYTES[character] for character in name)
    else:
        return None
    try:
        return found.decode()
    except UnicodeDecodeError:
        return found


def texts(tokenizer: "PreTrainedTokenizerBase | None", ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text of all tokens, special tokens included.

    Tokens that are parts of one character add nothing, except for the last one, which adds the character.

    Args:
        tokenizer: decodes the tokens. Without one, each token adds its id as "<123>".
        ids: the tokens of the text.
    Returns:
        As many strings as there are tokens. Joined, they are the decoded text.
    """
    if tokenizer is None:
        return [f"<{token}>" for token in ids]
    whole = decode(tokenizer, ids, False)
    # A window of tokens [first, at] is decoded at each step, so that the time is linear in their number. Its text
    # begins with `before`, which ends at `done` in the whole text.
    ends, first, before, done, longest = [0], 0, "", 0, _WINDOW
    for at in range(len(ids)):
        window = decode(tokenizer, ids[first : at + 1], False)
        length = _common(window, before, whole, done)
        ends.append(max(ends[-1], done + length))
        is_complete = len(before) + length == len(window) and not window.endswith(_REPLACEMENT)
        if is_complete and at - first >= longest:
            start, context = _context(tokenizer, ids[first : at + 1], whole[: ends[-1]])
            if start:
                first, before, done, longest = first + start, context, ends[-1], _WINDOW
            else:
                longest *= 2
    ends[-1] = len(whole)
    return [whole[start:end] for start, end in pairwise(ends)]


def _common(window: str, before: str, whole: str, done: int) -> int:
    """Return how many characters after `before` in `window` equal those from `done` on in `whole`."""
    if not window.startswith(before):
        return 0
    pairs = zip(window[len(before) :], whole[done : done + len(window)], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _context(tokenizer: "PreTrainedTokenizerBase", window: Sequence[int], text: str) -> tuple[int, str]:
    """Return where the last tokens of a window begin that have the same text alone, and their text; or 0 and "".

    Args:
        tokenizer: decodes the tokens.
        window: token ids.
        text: ends with the window's text, which does not end inside a character.
    """
    for start in range(len(window) - _CONTEXT, 0, -1):
        alone = decode(tokenizer, window[start:], False)
        if alone and text.endswith(alone):
            return start, alone
    return 0, ""
