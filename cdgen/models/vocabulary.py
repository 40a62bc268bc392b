"""Whether two models share a vocabulary, and how much of their output layers it is."""

from cdgen.errors import InputError


def shared_vocab_size(good, bad, good_tokenizer, bad_tokenizer):
    """Number of token ids both models score alike, padding of their output layers left out.

    Args:
        good, bad: :class:`LanguageModel`; `bad` None where there is none.
        good_tokenizer, bad_tokenizer: their tokenizers, or None.
    Raises:
        InputError: the vocabularies differ; the message names the difference.
    """
    widths = [good.width] if bad is None else [good.width, bad.width]
    if good_tokenizer is not None and bad_tokenizer is not None:
        _check_same_tokens(_scored_tokens(good, good_tokenizer), _scored_tokens(bad, bad_tokenizer))
    tokenizer = good_tokenizer or bad_tokenizer
    if tokenizer is None:
        if len(set(widths)) > 1:
            raise InputError(
                f"the models do not share a vocabulary: GOOD scores {widths[0]} tokens, BAD {widths[1]}; "
                "where this is padding only, give tokenizer="
            )
        return widths[0]
    tokens = max(tokenizer.get_vocab().values()) + 1
    without = [bad] * (bad is not None and bad_tokenizer is None) + [good] * (good_tokenizer is None)
    for model in without:
        if model.width < tokens:
            raise InputError(
                f"the models do not share a vocabulary: the tokenizer has {tokens} tokens, "
                f"{model.name} scores {model.width}"
            )
    return min(tokens, *widths)


def _scored_tokens(model, tokenizer):
    """Tokens by id, without those the tokenizer knows but the model has no logit for."""
    return {index: token for token, index in tokenizer.get_vocab().items() if index < model.width}


def _check_same_tokens(good, bad):
    if good == bad:
        return
    if len(good) != len(bad):
        raise InputError(f"the models do not share a vocabulary: GOOD has {len(good)} tokens, BAD has {len(bad)}")
    first = min(index for index in good.keys() | bad.keys() if good.get(index) != bad.get(index))
    raise InputError(
        f"the models do not share a vocabulary: id {first} is {good.get(first)!r} to GOOD and {bad.get(first)!r} to BAD"
    )
