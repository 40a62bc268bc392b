"""The command `cdgen corpus-stats`. Imports torch only if models are given."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from cdgen.cli.output_file import check_output_file, json_object, write_json_file
from cdgen.cli.parser import (
    Commands,
    add_command,
    add_device,
    add_model_options,
    add_quiet,
    add_threads,
    import_ops,
    load_ops,
)
from cdgen.errors import InputError

if TYPE_CHECKING:
    from cdgen.engine.llm import ContrastiveLM

DESCRIPTION = """\
Measure corpora side by side: their size, diversity and repetition, how much of
the training text they copy, and how GOOD and BAD score them. Corpora may be
larger than memory. docs/corpora.md defines every figure."""

EPILOG = """\
examples:
  cdgen corpus-stats corpus early dropout top_p --against corpus
  cdgen corpus-stats corpus early --good run@best --bad run@500 --sample 100 --json stats.json"""

_JSON = json_object("cdgen corpus-stats", "against", "good", "bad", "sample", "alpha", "seed", "corpora")


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "corpus-stats",
        run,
        summary="measure and compare corpora",
        usage="%(prog)s CORPUS ... [--against CORPUS] [--good MODEL [--bad MODEL]] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    corpora = parser.add_argument_group("corpora")
    corpora.add_argument(
        "corpora",
        nargs="+",
        metavar="CORPUS",
        help="folder of a prepared corpus (its train split) or of a generated one, or a .txt, .jsonl or .parquet file",
    )
    corpora.add_argument(
        "--against", metavar="CORPUS", help="training text: measure how many 8-grams and 13-grams are copied from it"
    )
    corpora.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    models = add_model_options(parser, required=False, with_cache=False)
    add_device(models)
    add_threads(models)
    models.add_argument(
        "--sample", type=int, default=200, metavar="N", help="documents of each corpus that are scored (default: 200)"
    )
    models.add_argument(
        "--alpha",
        type=float,
        default=0.1,
        metavar="X",
        help="candidates are tokens with at least X times the probability of the most probable one (default: 0.1)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", metavar="FILE", help="also write the figures to a JSON file; replaced if this command wrote it"
    )
    add_quiet(output)


def run(args: argparse.Namespace) -> int:
    """Measure the corpora and print a table; return the exit code."""
    from cdgen.evaluation.corpus_stats.contrast import check_alpha
    from cdgen.evaluation.corpus_stats.corpus_stats import corpus_stats, find_text
    from cdgen.evaluation.corpus_stats.table import lines
    from cdgen.storage.progress import choose
    from cdgen.values import INT32_MAX, INT64_MAX, integer

    options: dict[str, Any] = {
        "sample": integer("--sample", args.sample, 1, INT32_MAX),
        "alpha": check_alpha(args.alpha),
        "seed": integer("--seed", args.seed, 0, INT64_MAX),
    }
    bad = _check_models(args)
    if args.json is not None:
        check_output_file("--json", args.json, _JSON)
    corpora = [find_text(name) for name in args.corpora]
    against = None if args.against is None else find_text(args.against)
    models = _load_models(args, bad)  # last, since that takes longest
    progress = choose(args.quiet)
    try:
        found = corpus_stats(corpora, against=against, models=models, progress=progress, **options)
    finally:
        progress.close()
    if args.json is not None:
        about = {"against": args.against, "good": args.good, "bad": args.bad} | options
        write_json_file(args.json, _finite(about | {"corpora": [each.as_json() for each in found]}))
    for line in lines(found, args.against):
        print(line)
    return 0


def _check_models(args: argparse.Namespace) -> dict[str, Any]:
    """Check the options of the models, without loading them; return the arguments of ContrastiveLM that state BAD."""
    if args.good is None:
        if alone := next((name for name in ("bad", "device", "dtype") if getattr(args, name) is not None), None):
            raise InputError(f"--{alone}: needs --good too")
        return {}
    import_ops()
    from cdgen.models.bad import parse_bad
    from cdgen.models.dtypes import float_dtype
    from cdgen.models.files import locate
    from cdgen.models.loading import usable_device

    bad = parse_bad(args.bad) if args.bad else {}
    usable_device(args.device)
    if args.dtype is not None:
        float_dtype("dtype", args.dtype)
    for source in (args.good, bad.get("bad")):
        if source is not None:
            locate(source, args.trust_remote_code)
    return bad


def _load_models(args: argparse.Namespace, bad: dict[str, Any]) -> "ContrastiveLM | None":
    """Return GOOD and BAD, or None if they are not given."""
    if args.good is None:
        return None
    load_ops(args.threads, args.device)
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.evaluation.corpus_stats.contrast import check_models

    options = {"dtype": args.dtype, "device": args.device, "trust_remote_code": args.trust_remote_code}
    return check_models(ContrastiveLM(args.good, **bad, **options))


def _finite(value: Any) -> Any:
    """Return a value for JSON, which has no infinite numbers: they become null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
