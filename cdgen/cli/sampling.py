"""An option for every field of SamplingParams. Imports no torch."""

import argparse
import re
from collections.abc import Callable, Collection
from typing import Any

from cdgen.cli.parser import add_switch
from cdgen.engine.sampling_params import FIELDS, METHODS, SamplingParams
from cdgen.errors import InputError

_DEFAULT = SamplingParams()

PYTHON_ONLY = ("top_logprobs",)  # fields without an option: a corpus has no columns for it

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
    "repetition_penalty": (
        "X",
        "for tokens that occur in the prompt or the continuation, divide GOOD's logits by X if they are positive, and "
        "multiply them by X otherwise; values above 1 make repetition less likely",
    ),
    "presence_penalty": ("X", "subtract X from GOOD's logits of tokens that the continuation contains; -2 to 2"),
    "frequency_penalty": (
        "X",
        "subtract X from GOOD's logit of a token for each time that the continuation contains it; -2 to 2",
    ),
    "logit_bias": ("ID=X", "add X to GOOD's logit of the token with this id; repeat the option for several"),
    "bad_words": (
        "TEXT",
        "string that the continuations must not contain, with escapes as for --stop; repeat the option for several",
    ),
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
    """Add an option for every field of SamplingParams that the command line has, without the fields in `without`.

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
        if name in (*without, *PYTHON_ONLY):
            continue
        metavar, text = _OPTIONS[name]
        flag, default = f"--{name.replace('_', '-')}", getattr(_DEFAULT, name)
        text = f"{text} (default: {_shown(default)})"
        if isinstance(default, bool):
            add_switch(group, flag, default=argparse.SUPPRESS, help=text)
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": metavar, "help": text}
        if isinstance(default, tuple):
            group.add_argument(flag, action="append", type=_ITEMS[name], **options)
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


def _token_and_number(text: str) -> tuple[int, float]:
    """Return the two numbers of ID=X."""
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a token id and a number, such as 42=-1.5") from None


_ITEMS: dict[str, Callable[[str], Any]] = {  # how one item of a list is read
    "logit_bias": _token_and_number,
    "bad_words": _unescaped,
    "stop": _unescaped,
    "stop_token_ids": int,
}
