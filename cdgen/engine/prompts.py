"""Prompts as users give them: strings, token ids in lists, arrays or tensors, and what tokenizers return."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from cdgen.engine.prefix import check_length, first_ids
from cdgen.engine.text import encode_prompt, prompt_text
from cdgen.errors import InputError, first_line

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedTokenizerBase

    # A string, or token ids; the mapping has `input_ids`, as the encodings of transformers have.
    Prompt: TypeAlias = str | Sequence[int] | npt.NDArray[Any] | torch.Tensor | Mapping[str, Any]

_USE = "give a string or a list of token ids"
# Iterables that are lists neither of prompts nor of token ids.
_NOT_ITEMS = (str, bytes, bytearray, memoryview, Mapping, set, frozenset)
_LONG_TEXT = 1_000_000  # characters of a prompt that takes a second to encode


def list_prompts(prompts: Any) -> list[str | list[int]]:
    """Return prompts, or a single prompt, as a list whose items are strings or token ids.

    Args:
        prompts: a prompt; an iterable of prompts; or the tokens of several prompts, as an array or tensor [B, T] or a
            mapping such as a transformers BatchEncoding, whose padding is removed if it has an `attention_mask`.
    Raises:
        InputError: a prompt is neither text nor token ids; the message gives its index.
    """
    if isinstance(prompts, str):
        return [prompts]
    items = _rows(prompts, "prompts")
    if items and not any(_is_nested(item) for item in items):
        return [_ids(items, "prompt 0")]
    return [_prompt(item, f"prompt {index}") for index, item in enumerate(items)]


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase | None",
    bos_token_id: int | None,
    prompt: "Prompt",
    name: str,
    parse_special: bool = False,
    longest: int | None = None,
) -> list[int]:
    """Return the token ids of a prompt; see :meth:`cdgen.ContrastiveLM.prompt_ids` for arguments and errors.

    A huge text of more than `longest` tokens is refused before all of it is encoded.
    """
    prompt = _prompt(prompt, name)
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError(f"{name}: is a string, but there is no tokenizer; pass tokenizer=, or token ids")
        encode = partial(encode_prompt, tokenizer, name=name, parse_special=parse_special)
        if longest is not None and len(prompt) > _LONG_TEXT:
            check_length(first_ids(encode, prompt, longest + 1), name, longest)
        prompt = encode(prompt)
    if not prompt:
        if bos_token_id is None:
            raise InputError(f"{name}: is empty, and the tokenizer has no start-of-text token to begin with")
        return [bos_token_id]
    return prompt


def text_of(tokenizer: "PreTrainedTokenizerBase | None", prompt: str | list[int], ids: list[int]) -> str | None:
    """Return the text of a prompt that :func:`list_prompts` returned; None for token ids without a tokenizer."""
    if isinstance(prompt, str):
        return prompt
    return None if tokenizer is None else prompt_text(tokenizer, ids, skip_special_tokens=False)


def _prompt(prompt: "Prompt", name: str) -> str | list[int]:
    """Return one prompt as a string or a list of token ids."""
    if isinstance(prompt, str):
        return str(prompt)  # numpy has a string type of its own
    items = _rows(prompt, name)
    if len(items) == 1 and (isinstance(prompt, Mapping) or hasattr(prompt, "ndim")) and _is_nested(items[0]):
        items = _rows(items[0], name)  # the only row of a batch
    return _ids(items, name)


def _rows(value: Any, name: str) -> list[Any]:
    """Return the items of a list, an array, a tensor or a mapping with `input_ids`."""
    if isinstance(value, Mapping):
        if "input_ids" not in value:
            raise InputError(
                f"{name}: is a {type(value).__name__} without input_ids; {_USE} (for chat messages: lm.chat(messages))"
            )
        rows = _rows(value["input_ids"], f"{name}: input_ids")
        if any(isinstance(row, str) for row in rows):
            raise InputError(f"{name}: input_ids holds strings; {_USE}")
        mask = value.get("attention_mask")
        return rows if mask is None else _without_padding(rows, _rows(mask, f"{name}: attention_mask"), name)
    if hasattr(value, "tolist") and not isinstance(value, _NOT_ITEMS):  # numpy arrays, tensors
        try:
            value = value.tolist()
        except RuntimeError as error:  # sparse tensors, and those on the device "meta"
            raise InputError(f"{name}: cannot be read: {first_line(error)}") from error
    is_table = getattr(value, "ndim", 1) > 1  # iterates over the names of its columns
    if isinstance(value, _NOT_ITEMS) or not isinstance(value, Iterable) or is_table:
        raise InputError(f"{name}: is of type {type(value).__name__}; {_USE}")
    return list(value)


def _without_padding(rows: list[Any], mask: list[Any], name: str) -> list[Any]:
    """Return the token ids of one or several prompts, without those that the mask hides."""
    if len(rows) == len(mask):
        if not any(_is_nested(item) for item in (*rows, *mask)):
            shown = [int(bool(item)) for item in mask]
            first, count = (shown.index(1), sum(shown)) if any(shown) else (0, 0)
            if not all(shown[first : first + count]):
                raise InputError(f"{name}: attention_mask hides tokens between others; only padding can be left out")
            return rows[first : first + count]
        if all(_is_nested(item) for item in (*rows, *mask)):
            pairs = zip(rows, mask, strict=True)
            return [_without_padding(_rows(ids, name), _rows(shown, name), name) for ids, shown in pairs]
    raise InputError(f"{name}: attention_mask has another shape than input_ids")


def _is_nested(item: Any) -> bool:
    """Return whether an item of a list is a prompt of its own, and not a token id."""
    return isinstance(item, Iterable) and getattr(item, "ndim", 1) > 0


def _ids(items: Iterable[Any], name: str) -> list[int]:
    """Return token ids as integers."""
    ids = []
    for at, item in enumerate(items):
        plain = item.tolist() if hasattr(item, "tolist") else item
        try:
            ids.append(operator.index(plain))
        except TypeError:
            plain = None
        if plain is None or isinstance(plain, bool):
            hint = " (for chat messages: lm.chat(messages))" if isinstance(item, Mapping) else ""
            kind = type(item).__name__
            raise InputError(f"{name}: token {at} is {item!r}, of type {kind}; token ids are integers{hint}")
    return ids
