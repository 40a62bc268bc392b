"""The command line's options, one for every field of SamplingParams and every setting of a corpus. Imports no torch."""

import argparse

from cdgen.errors import InputError
from cdgen.params import FIELDS, METHODS, SamplingParams

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


def _add_models(parser):
    models = parser.add_argument_group("models")
    models.add_argument("--good", required=True, help="a folder, a GGUF file, or a hub name")
    models.add_argument(
        "--bad", help="the same, or dropout:0.3, or layers:12 (GOOD itself, changed); none for plain sampling"
    )
    models.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 (default: float32 on the CPU; on a GPU the checkpoint's 16-bit dtype, "
        "otherwise bfloat16)",
    )
    models.add_argument("--kv-cache-dtype", metavar="DTYPE", help="dtype of the cache (default: that of the models)")
    models.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint")
    return models


def add_plan(parser):
    """Options of `cdgen plan`."""
    _add_models(parser)
    job = parser.add_argument_group("what is to be written, and where")
    job.add_argument("--gpu", required=True, choices=("a100", "h100", "h200", "b200", "cpu"), help="cpu: this one")
    job.add_argument("--tokens", type=float, default=100e6, metavar="N", help="new tokens in all (default: 100e6)")
    job.add_argument("--prompt-tokens", type=int, default=20, metavar="N", help="of a prompt (default: 20)")
    job.add_argument("--max-tokens", type=int, default=400, metavar="N", help="new tokens of a text (default: 400)")
    job.add_argument("--n", type=int, default=8, metavar="N", help="texts of each prompt (default: 8)")
    job.add_argument("--batch-size", type=int, default=512, metavar="N", help="texts at most at once (default: 512)")
    job.add_argument("--memory-gb", type=float, metavar="X", help="to use, 10^9 bytes (default: 90 %% of all)")
    job.add_argument(
        "--run", action=argparse.BooleanOptionalAction, default=True, help="with --gpu cpu: a short real run beside it"
    )


def add_generate(parser):
    models = _add_models(parser)
    models.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    models.add_argument(
        "--kv-cache-gb",
        type=float,
        metavar="X",
        help="cache budget of both models, in GB (default: enough for the batch, on a GPU at most 90 %% of the free "
        "memory)",
    )
    seeds = parser.add_argument_group("seeds")
    seeds.add_argument(
        "--seeds",
        required=True,
        nargs="+",
        metavar="PATH",
        help=".txt (a prompt a line), .jsonl, .jsonl.gz, .parquet, datasets folder",
    )
    seeds.add_argument(
        "--seed-field", default="text", metavar="NAME", help="of records: the field with the text (default: text)"
    )
    seeds.add_argument(
        "--prefix-tokens",
        type=int,
        metavar="N",
        help="keep a seed's first N tokens (default: 20 with --chunk-words, else all)",
    )
    seeds.add_argument(
        "--chunk-words",
        type=int,
        metavar="N",
        help="cut documents into chunks of N words or more; a .txt is one document",
    )
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument("--out", required=True, metavar="FOLDER", help="where the corpus goes")
    corpus.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="documents of a shard (default: 1000)"
    )
    corpus.add_argument(
        "--format", choices=("parquet", "jsonl.gz"), default="parquet", help="of the shards (default: parquet)"
    )
    corpus.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts decoded together (default: 64)")
    corpus.add_argument(
        "--split-documents", action="store_true", help="also write the texts cut at start and end of text"
    )
    corpus.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what is in the folder (default), or write it anew",
    )
    corpus.add_argument("--quiet", action="store_true", help="no progress")


def _shown(default):
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default == () else default


def _number_or_name(text):
    try:
        return float(text)
    except ValueError:
        return text


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage and exit, so that every error is one line alike."""

    def error(self, message):
        raise InputError(f"{message}; see {self.prog} --help")
