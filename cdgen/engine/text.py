"""Conversion between text and token ids, and detection of stop strings that span several tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.models.tokenizers import decode, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of context to decode along with new ones: some tokenizers decode a token differently at the start of a text.
_CONTEXT = 6
_REPLACEMENT = "\ufffd"  # what tokenizers decode an incomplete multi-byte character to


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, name: str, parse_special: bool = False) -> list[int]:
    """Return the token ids of a prompt, with the tokenizer's start-of-text tokens but without its end of text.

    Args:
        tokenizer: encodes the text.
        text: the prompt.
        name: the prompt's name for error messages.
        parse_special: read "</s>" and the like as special tokens; by default they are text, as in training.
    Raises:
        InputError: the tokenizer cannot encode the text.
    """
    ids: list[int] = encode(tokenizer, text, name, add_special=True, parse_special=parse_special)
    adds_eos = len(ids) > 0 and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if adds_eos and not (parse_special and text.endswith(tokenizer.eos_token)) else ids


def prompt_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], skip_special_tokens: bool) -> str:
    """Return the text of a prompt's token ids, without an incomplete character at its end.

    A continuation may complete that character, so it belongs to the continuation's text.
    """
    text = decode(tokenizer, ids, skip_special_tokens)
    cut = text.rstrip(_REPLACEMENT)
    if cut != text:  # the text itself may end in replacement characters: encoding it then gives the same tokens
        again = encode(tokenizer, text, "prompt")
        if list(ids[-len(again) :]) == again:
            return text
    return cut


def decode_parts(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Sequence[int], skip_special_tokens: bool
) -> tuple[str, str]:
    """Return the text of `prompt` and the text that `ids` add to it; joined, they are the text of all these tokens."""
    before = prompt_text(tokenizer, prompt, skip_special_tokens)
    whole = decode(tokenizer, [*prompt, *ids], skip_special_tokens)
    at = _common(before, whole)
    return whole[:at], whole[at:]


def decode_after(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Sequence[int], skip_special_tokens: bool
) -> str:
    """Return the text that the token ids `ids` add to the text of the token ids `prompt`."""
    return decode_parts(tokenizer, prompt, ids, skip_special_tokens)[1]


def _common(first: str, second: str) -> int:
    """Return the length of the longest common prefix."""
    differing = (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return len(first) if second.startswith(first) else next(differing, len(second))


class StopStrings:
    """Watches one growing continuation for stop strings, decoding only its newest tokens at each step.

    Args:
        tokenizer: decodes the tokens.
        prompt: token ids of the prompt.
        params: `stop` and `skip_special_tokens` are used.
    Attributes:
        text: the continuation's text so far, without an unfinished last character.
    Raises:
        InputError: there is no tokenizer.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase | None", prompt: Sequence[int], params: SamplingParams
    ) -> None:
        if tokenizer is None:
            raise InputError("stop: stop strings need a tokenizer; pass tokenizer=, or use stop_token_ids")
        self._tokenizer, self._stop, self._skip = tokenizer, params.stop, params.skip_special_tokens
        self._ids = list(prompt)
        # The tokens from _start on are decoded at each step. _before is the part of their text that was read before.
        self._start = self._context()
        unfinished = len(decode(tokenizer, prompt, self._skip)) - len(prompt_text(tokenizer, prompt, self._skip))
        window = self._window()
        self._before = window[: len(window) - unfinished]
        self.text = ""

    def append(self, token: int) -> str | None:
        """Add a token id; return the text before the first stop string, or None if there is none yet."""
        self._ids.append(token)
        window = self._window()
        read = window.rstrip(_REPLACEMENT)  # the next token may complete the last character
        common = _common(self._before, read)
        if common < len(self._before) and read != window:
            return None  # byte fallback also decodes the characters before an incomplete one to replacements
        unchanged = max(0, len(self.text) - len(self._before) + common)
        self.text, self._before = self.text[:unchanged] + read[common:], read
        if read == window and len(self._ids) - self._start > 2 * _CONTEXT:
            self._start = self._context()
            self._before = self._window()
        starts = [(stop, max(0, unchanged - len(stop) + 1)) for stop in self._stop]
        found = [at for stop, start in starts if (at := self.text.find(stop, start)) >= 0]
        return self.text[: min(found)] if found else None

    def _window(self) -> str:
        return decode(self._tokenizer, self._ids[self._start :], self._skip)

    def _context(self) -> int:
        """Return the index of a token near the end that begins a character and has text after it."""
        size = _CONTEXT
        while size < len(self._ids):
            text = decode(self._tokenizer, self._ids[-size:], self._skip)
            if text and not text.startswith(_REPLACEMENT):
                return len(self._ids) - size
            size *= 2
        return 0
