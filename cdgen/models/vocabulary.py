"""Whether models and tokenizers have one vocabulary, and its size without the padding of output layers."""

import logging
from typing import TYPE_CHECKING

from cdgen.errors import InputError
from cdgen.models.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("cdgen")


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the greatest token id plus one: there may be fewer tokens, if some ids are unused."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def shared_vocab_size(
    good: LanguageModel,
    bad: LanguageModel | None,
    good_tokenizer: "PreTrainedTokenizerBase | None",
    bad_tokenizer: "PreTrainedTokenizerBase | None",
) -> int:
    """Return the number of token ids that both models share, without the padding of their output layers.

    Args:
        good: GOOD.
        bad: BAD, or None.
        good_tokenizer: GOOD's tokenizer, or None.
        bad_tokenizer: BAD's tokenizer, or None.
    Raises:
        InputError: the vocabularies differ, or a model's tokenizer is larger than the model; the message names the
            difference.
    """
    widths = [good.width] if bad is None else [good.width, bad.width]
    if bad is not None and good_tokenizer is not None and bad_tokenizer is not None:
        _check_same_tokens(_scored_tokens(good, good_tokenizer), _scored_tokens(bad, bad_tokenizer))
    tokenizer = good_tokenizer or bad_tokenizer
    if tokenizer is None:
        if len(set(widths)) > 1:
            raise InputError(
                f"the models do not share a vocabulary: GOOD scores {widths[0]} tokens, BAD {widths[1]}; "
                "if the difference is padding, pass tokenizer="
            )
        return widths[0]
    tokens = vocabulary_size(tokenizer)
    for model, own in ((bad, bad_tokenizer), (good, good_tokenizer)):
        if model is not None:
            _check_fits(model, own or tokenizer)
    if 2 * tokens <= good.width:
        log.warning("%s: scores %d tokens, but its tokenizer has only %d", good.name, good.width, tokens)
    return min(tokens, *widths)


def _check_fits(model: LanguageModel, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise InputError if a model has no logit for a token of its tokenizer, unless it was added later, as padding."""
    added = tokenizer.get_added_vocab()
    missing = [index for token, index in tokenizer.get_vocab().items() if index >= model.width and token not in added]
    if missing:
        raise InputError(
            f"{model.name}: its tokenizer has {max(missing) + 1} tokens, but the model scores {model.width}; "
            "they do not belong together"
        )


def _scored_tokens(model: LanguageModel, tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return the tokens by id, without those for which the model has no logit."""
    return {index: token for token, index in tokenizer.get_vocab().items() if index < model.width}


def _check_same_tokens(good: dict[int, str], bad: dict[int, str]) -> None:
    if good == bad:
        return
    if len(good) != len(bad):
        raise InputError(f"the models do not share a vocabulary: GOOD has {len(good)} tokens, BAD has {len(bad)}")
    first = min(index for index in good.keys() | bad.keys() if good.get(index) != bad.get(index))
    raise InputError(
        f"the models do not share a vocabulary: id {first} is {good.get(first)!r} to GOOD and {bad.get(first)!r} to BAD"
    )
