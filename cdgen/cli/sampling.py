"""An option for every field of SamplingParams. Imports no torch."""

import argparse
import re
from collections.abc import Collection
from typing import Any

from cdgen.cli.parser import add_switch
from cdgen.engine.sampling_params import FIELDS, METHODS, SamplingParams
from cdgen.errors import InputError

_DEFAULT = SamplingParams()

_OPTIONS = {  # metavar and help by field; a field that is True or False has no metavar
    "n": ("N", "continuations per seed"),
    "max_tokens": ("N", "maximum number of new tokens per continuation"),
    "alpha": (
        "X",
        "the candidates are the tokens with at least X times the probability of GOOD's most likely token; 0 keeps all "
        "tokens; without contrast, this is min-p sampling",
    ),
    "contrast_strength": ("X", "weight of BAD's log-probability, which is subtracted; 0 leaves BAD out"),
    "good_weight": ("X", "weight of GOOD's log-probability"),
    "temperature": ("X", "divide the logits of both models by X; 0 takes the token with the best score"),
    "top_k": ("N", "keep the N tokens with the best scores; 0 or -1 keeps all"),
    "top_p": ("X", "keep the most likely tokens that together reach probability X"),
    "outside_head": (
        "VALUE",
        "score of the tokens that are not candidates: mask (they are never sampled), shifted_good (GOOD's "
        "log-probability, shifted so that none exceeds the worst candidate), or a number",
    ),
    "no_repeat_ngram_size": ("N", "never repeat an n-gram of this size; 0 turns this off"),
    "seed": ("N", "random seed"),
    "stop": (
        "TEXT",
        r"string that ends a continuation; \n, \r, \t and \\ stand for newline, return, tab and backslash; repeat the "
        "option for several",
    ),
    "stop_token_ids": ("N", "token id that ends a continuation; repeat the option for several"),
    "ignore_eos": ("", "continue after the end-of-text token"),
    "min_tokens": ("N", "suppress end-of-text, stop tokens and stop strings until N tokens have been generated"),
    "logprobs": ("", "also write the log-probabilities of every sampled token"),
    "skip_special_tokens": ("", "leave special tokens out of the text"),
}


def add_sampling(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add an option for every field of SamplingParams, except for the fields in `without`.

    A field whose option is not given is absent after parsing.
    """
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--method",
        choices=METHODS,
        metavar="METHOD",
        help=f"decoding method, which changes the defaults below: {', '.join(METHODS)} (default: contrastive)",
    )
    for name in FIELDS:
        if name in without:
            continue
        metavar, text = _OPTIONS[name]
        flag, default = f"--{name.replace('_', '-')}", getattr(_DEFAULT, name)
        text = f"{text} (default: {_shown(default)})"
        if isinstance(default, bool):
            add_switch(group, flag, default=argparse.SUPPRESS, help=text)
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": metavar, "help": text}
        if isinstance(default, tuple):
            group.add_argument(flag, action="append", type=int if name == "stop_token_ids" else _unescaped, **options)
        else:
            kind = float if isinstance(default, float) else type(default)
            group.add_argument(flag, type=_number_or_name if name == "outside_head" else kind, **options)
        if name == "alpha":
            text = "min-p sampling: short for --alpha X --contrast-strength 0"
            group.add_argument("--min-p", type=float, **options | {"help": text})


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Return the SamplingParams of parsed options.

    Raises:
        InputError: a value is out of range, contradicts the method, or makes all continuations of a seed equal; or the
            method needs a BAD that is not given.
    """
    given = {name: getattr(args, name) for name in (*FIELDS, "min_p") if name in args}
    try:
        params = SamplingParams(**given) if args.method is None else SamplingParams.for_method(args.method, **given)
        if not (params.contrast_strength and (args.bad or "").startswith("dropout:")):
            params.check_distinct()
    except InputError as error:
        raise InputError(_with_flags(str(error))) from error
    if params.contrast_strength and not args.bad:
        raise InputError(
            f"--bad is required for the method {params.method}; "
            "give one, or choose a method without contrast, such as --method ancestral"
        )
    return params


def _with_flags(message: str) -> str:
    """Return a message with `--top-k 5` in place of `top_k = 5` and `top_k=5`."""
    names = "|".join((*FIELDS, "min_p", "method"))
    return re.sub(rf"\b({names})(?: = |=)", lambda found: f"--{found[1].replace('_', '-')} ", message)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default == () else str(default)


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _unescaped(text: str) -> str:
    """Return a text with its escapes replaced: a shell passes the two characters of '\\n' as they are."""
    escapes = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: escapes[found[1]], text)
