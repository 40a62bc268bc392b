"""Whether two models share a vocabulary, and its size without the padding of their output layers."""

from typing import TYPE_CHECKING

from cdgen.errors import InputError
from cdgen.models.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        InputError: the vocabularies differ; the message names the difference.
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
    tokens: int = max(tokenizer.get_vocab().values()) + 1
    for model, own in ((bad, bad_tokenizer), (good, good_tokenizer)):
        if model is not None and own is None and model.width < tokens:
            raise InputError(
                f"the models do not share a vocabulary: the tokenizer has {tokens} tokens, "
                f"{model.name} scores {model.width}"
            )
    return min(tokens, *widths)


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
