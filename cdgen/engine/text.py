"""Conversion between text and token ids, and detection of stop strings that span several tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of context to decode along with new ones: some tokenizers decode a token differently at the start of a text.
_CONTEXT = 6
_REPLACEMENT = "\ufffd"  # decoded from a character of which only some bytes are there


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of a prompt, with the tokenizer's start-of-text tokens but without its end of text."""
    ids: list[int] = tokenizer(text)["input_ids"]
    adds_eos = len(ids) > 0 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if adds_eos else ids


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], skip_special_tokens: bool) -> str:
    """Return the text of token ids; spaces are not cleaned up."""
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(ids, **options))


def decode_after(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Sequence[int], skip_special_tokens: bool
) -> str:
    """Return the text that the token ids `ids` add to the text of the token ids `prompt`."""
    context = list(prompt[-_CONTEXT:])
    before = decode(tokenizer, context, skip_special_tokens).rstrip(_REPLACEMENT)  # the prompt may end in a character
    both = decode(tokenizer, [*context, *ids], skip_special_tokens)
    return both[len(before) :] if both.startswith(before) else decode(tokenizer, ids, skip_special_tokens)


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
        self._ids = list(prompt[-_CONTEXT:])
        # Tokens from _start on are decoded at each step; those before _read are part of `text` already.
        self._start, self._read = 0, len(self._ids)
        self.text = ""

    def append(self, token: int) -> str | None:
        """Add a token id; return the text before the first stop string, or None if there is none yet."""
        self._ids.append(token)
        before = decode(self._tokenizer, self._ids[self._start : self._read], self._skip)
        both = decode(self._tokenizer, self._ids[self._start :], self._skip)
        if both.endswith(_REPLACEMENT) or not both.startswith(before):  # the last character is incomplete
            return None
        searched = len(self.text)
        self.text += both[len(before) :]
        self._start, self._read = self._read, len(self._ids)
        found = [at for stop in self._stop if (at := self.text.find(stop, max(0, searched - len(stop) + 1))) >= 0]
        return self.text[: min(found)] if found else None
