"""From text to token ids and back, and stop strings that may lie across tokens."""

from cdgen.errors import InputError

_CONTEXT = 6  # tokens of context: a tokenizer may write a token otherwise at the start of a text


def encode(tokenizer, text):
    """Token ids of a prompt, with the special tokens the tokenizer puts in front but not the end of text it may add."""
    ids = tokenizer(text)["input_ids"]
    adds_eos = len(ids) > 0 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if adds_eos else ids


def decode(tokenizer, ids, skip_special_tokens):
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def decode_after(tokenizer, prompt, ids, skip_special_tokens):
    """Text that `ids` add to the text of `prompt` (both lists of ids)."""
    context = prompt[-_CONTEXT:]
    # the replacement character stands for one cut in two by the prompt's end
    before = decode(tokenizer, context, skip_special_tokens).rstrip("\ufffd")
    both = decode(tokenizer, context + ids, skip_special_tokens)
    return both[len(before) :] if both.startswith(before) else decode(tokenizer, ids, skip_special_tokens)


class StopStrings:
    """Watches one growing continuation for stop strings, decoding only its newest tokens at each step."""

    def __init__(self, tokenizer, prompt, params):
        if tokenizer is None:
            raise InputError("stop: stop strings need a tokenizer; give tokenizer=, or stop_token_ids")
        self._tokenizer, self._stop, self._skip = tokenizer, params.stop, params.skip_special_tokens
        self._ids = list(prompt[-_CONTEXT:])
        # tokens from _start are decoded again; those before _read are in text
        self._start, self._read = 0, len(self._ids)
        self.text = ""

    def append(self, token):
        """Add a token id; returns the text before the first stop string, or None while there is none."""
        self._ids.append(token)
        before = decode(self._tokenizer, self._ids[self._start : self._read], self._skip)
        both = decode(self._tokenizer, self._ids[self._start :], self._skip)
        if both.endswith("\ufffd") or not both.startswith(before):  # the rest of a character is still to come
            return None
        searched = len(self.text)
        self.text += both[len(before) :]
        self._start, self._read = self._read, len(self._ids)
        found = [at for stop in self._stop if (at := self.text.find(stop, max(0, searched - len(stop) + 1))) >= 0]
        return self.text[: min(found)] if found else None
