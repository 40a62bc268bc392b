"""Translate what lm-evaluation-harness passes to a model type into cdgen's parameters. Needs no lm-eval."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.values import INT32_MAX, integer, real, shown, switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DISTRIBUTION = ("alpha", "contrast_strength", "good_weight", "temperature", "top_k", "top_p", "outside_head")
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval takes the first
# Options of generation with the names and meaning of SamplingParams, as lm-eval passes them to vLLM.
_SAME = (
    "top_k", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words",
)  # fmt: skip
_GENERATION = ("until", "do_sample", "temperature", *_SAME, *_NEW_TOKENS)
_UNSTATED_NEW_TOKENS = 256  # what lm-eval assumes


def pair_params(bad: str | None, method: str | None, values: Mapping[str, Any]) -> SamplingParams | None:
    """Return the contrastive distribution that model arguments describe, or None if there is no BAD.

    Args:
        bad: the argument `bad`.
        method: the argument `method`.
        values: the remaining arguments, by name.
    Raises:
        InputError: an argument is unknown, out of range, or has no meaning without `bad`.
    """
    unknown = next((name for name in values if name not in DISTRIBUTION), None)
    if unknown is not None:
        raise InputError(
            f"{unknown}: is not an argument of the model type cdgen; use pretrained, bad, method, tokenizer, dtype, "
            f"device, batch_size, batch_tokens, trust_remote_code, {', '.join(DISTRIBUTION)}"
        )
    if bad is None:
        needless = next(iter([*(["method"] if method is not None else []), *values]), None)
        if needless is not None:
            raise InputError(f"{needless}: applies only to the contrastive distribution of two models; add bad=MODEL")
        return None
    if method is not None:
        return SamplingParams.for_method(method, **values)
    return SamplingParams(**{"outside_head": "shifted_good", **values})


def max_num_seqs(batch_size: Any) -> int | None:
    """Return the number of sequences to decode at the same time for lm-eval's batch size, or None for the default.

    Raises:
        InputError: it is neither a positive number nor "auto".
    """
    text = str(batch_size)
    if text == "1" or text.startswith("auto"):
        return None
    if not text.isdecimal() or int(text) == 0:
        raise InputError(f"batch_size = {shown(batch_size)}: must be a positive number or 'auto'")
    return int(text)


def stop_strings(until: Any, eos_token: str | None) -> list[str]:
    """Return the strings that end a continuation: those of a task, and the end-of-text token's.

    Raises:
        InputError: `until` is neither a string nor a list of strings.
    """
    strings = [until] if isinstance(until, str) else list(until or ())
    if not all(isinstance(string, str) for string in strings):
        raise InputError(f"until = {shown(until)}: must be a string or a list of strings")
    return [string for string in dict.fromkeys([*strings, eos_token]) if string]


def split_stops(
    strings: Iterable[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Divide stop strings into ordinary strings and the ids of special tokens, which decoded text does not show."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    listed = list(strings)
    return (
        tuple(string for string in listed if string not in special),
        tuple(special[string] for string in listed if string in special),
    )


def generation_params(
    options: Mapping[str, Any], base: SamplingParams, stop: tuple[str, ...], stop_token_ids: tuple[int, ...]
) -> SamplingParams:
    """Return the sampling parameters for a task's `generation_kwargs`.

    Args:
        options: the `generation_kwargs`. Without `do_sample`, a temperature above 0 means sampling, as in lm-eval.
        base: parameters that the options change.
        stop: strings that end a continuation.
        stop_token_ids: tokens that end a continuation.
    Raises:
        InputError: an option is not supported, or out of range.
    """
    unknown = next((name for name in options if name not in _GENERATION), None)
    if unknown is not None:
        raise InputError(f"generation_kwargs: {unknown} is not supported; use {', '.join(_GENERATION)}")
    stated = {name: value for name, value in options.items() if value is not None}
    temperature = real("temperature", stated.get("temperature", 0.0))
    samples = switch("do_sample", stated.get("do_sample", temperature > 0))
    new_tokens = next((name for name in _NEW_TOKENS if name in stated), None)
    return replace(
        base,
        max_tokens=integer(new_tokens, stated[new_tokens], 1, INT32_MAX) if new_tokens else _UNSTATED_NEW_TOKENS,
        temperature=stated.get("temperature", base.temperature) if samples else 0.0,
        stop=stop,
        stop_token_ids=stop_token_ids,
        **{name: stated[name] for name in _SAME if name in stated},
    )
