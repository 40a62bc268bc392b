"""The command `cdgen compare`. Imports no torch."""

import argparse

from cdgen.cli.parser import Commands, add_command

DESCRIPTION = """\
Compare methods with a baseline, based on results of cdgen evaluate. A method is
all models of one label; those of different training seeds are its training
runs. Print the values of each task, the mean relative change over the tasks,
and a few sentences per method: what could be shown, and how large an effect
could have been missed."""

EPILOG = """\
Each task is compared by its first metric. The mean relative change covers the
metrics for which higher is better; perplexities are shown, but not part of it.
The best checkpoint of a training run is chosen for each task on the task's own
items. That favours a method with more checkpoints; --checkpoint latest does not.
Intervals and p-values cover the choice of items (a paired bootstrap) and, if a
method has several training runs, the variation between them.
docs/evaluation.md explains the statistics.

examples:
  cdgen compare results --baseline real
  cdgen compare results-real results-mixed --baseline real --out comparison"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "compare",
        run,
        summary="compare evaluated models with a baseline",
        check=check,
        usage="%(prog)s RESULTS ... [--baseline LABEL] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    results = parser.add_argument_group("input")
    results.add_argument("results", nargs="+", metavar="RESULTS", help="folder that cdgen evaluate has written")
    results.add_argument(
        "--baseline", metavar="LABEL", help="label of the baseline (default: real, model-real, or the only label)"
    )
    results.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="checkpoint of each training run: best, which is chosen per task, or latest (default: best)",
    )
    statistics = parser.add_argument_group("statistics")
    statistics.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples (default: 1000)"
    )
    statistics.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="X",
        help="confidence level of the intervals; an improvement counts as found if its p-value is at most 1 - X after "
        "Holm's correction for the number of methods (default: 0.95)",
    )
    statistics.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of the resamples (default: 0)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FOLDER", help="write comparison.json, comparison.md and comparison.tex")


def check(args: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        InputError: one is out of range.
    """
    from cdgen.evaluation.comparison.compare import check_arguments

    check_arguments(args.checkpoint, args.resamples, args.confidence, args.seed)


def run(args: argparse.Namespace) -> int:
    """Print the comparison, and write it if a folder is given; return the exit code."""
    from cdgen.evaluation.comparison.compare import compare
    from cdgen.evaluation.comparison.folder import write
    from cdgen.evaluation.comparison.tables import as_text

    comparison = compare(
        args.results,
        baseline=args.baseline,
        checkpoint=args.checkpoint,
        resamples=args.resamples,
        confidence=args.confidence,
        seed=args.seed,
    )
    if args.out is not None:
        write(comparison, args.out)
    print(as_text(comparison), end="")
    return 0
