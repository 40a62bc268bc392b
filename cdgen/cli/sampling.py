"""An option for every field of SamplingParams. Imports no torch."""

import argparse

from cdgen.engine.sampling_params import FIELDS, METHODS, SamplingParams

_DEFAULT = SamplingParams()

_SAMPLING_HELP = {
    "n": "continuations of each seed",
    "max_tokens": "greatest number of new tokens",
    "alpha": "the head keeps tokens of at least alpha times GOOD's greatest probability; 0 keeps all",
    "contrast_strength": "weight of BAD's log-probability, subtracted; 0: BAD is not run",
    "good_weight": "weight of GOOD's log-probability",
    "temperature": "divides both models' logits; 0: the best score",
    "top_k": "keep the k best scores; 0: all",
    "top_p": "keep the nucleus of this mass",
    "outside_head": "score of tokens outside the head: mask, shifted_good, or a number",
    "no_repeat_ngram_size": "no n-gram of this size twice; 0: off",
    "seed": "key of the noise",
    "stop": "a string that ends a text; may be given again",
    "stop_token_ids": "a token id that ends a text; may be given again",
    "ignore_eos": "go on past the end of text",
    "min_tokens": "no end of text before so many new tokens",
    "logprobs": "write log-probabilities of every token drawn",
    "skip_special_tokens": "leave special tokens out of texts",
}


def add_sampling(parser):
    """Options for every field of SamplingParams; what is not given is absent, so that a method's values stand."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--method", choices=METHODS, help="values to start from (default: those below, contrastive)")
    for name in FIELDS:
        flag, default = f"--{name.replace('_', '-')}", getattr(_DEFAULT, name)
        options = {
            "default": argparse.SUPPRESS,
            "dest": name,
            "help": f"{_SAMPLING_HELP[name]} (default: {_shown(default)})",
        }
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif isinstance(default, tuple):
            group.add_argument(
                flag, action="append", type=int if name == "stop_token_ids" else str, metavar="X", **options
            )
        else:
            kind = _number_or_name if name == "outside_head" else type(default)
            group.add_argument(flag, type=kind, metavar="X", **options)


def sampling_params(args):
    """SamplingParams of parsed options."""
    given = {name: getattr(args, name) for name in FIELDS if name in args}
    return SamplingParams(**given) if args.method is None else SamplingParams.for_method(args.method, **given)


def _shown(default):
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default == () else default


def _number_or_name(text):
    try:
        return float(text)
    except ValueError:
        return text
