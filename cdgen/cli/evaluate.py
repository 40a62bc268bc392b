"""The command `cdgen evaluate`. Imports torch only when it runs."""

import argparse
import contextlib
from typing import TYPE_CHECKING

from cdgen.cli.parser import (
    Commands,
    add_command,
    add_device,
    add_dtype,
    add_quiet,
    add_threads,
    add_trust_remote_code,
    import_ops,
    load_ops,
)
from cdgen.errors import escaped

if TYPE_CHECKING:
    from cdgen.evaluation.tasks import Task

DESCRIPTION = """\
Evaluate models on tasks, and write the scores of every item to a folder. Rerun
the same command after an interruption: it resumes with the first task that is
missing. 'cdgen compare' compares the results.

A TASK is NAME, NAME=PATH, or a task file (.toml). NAME is a form (perplexity,
minimal_pairs, ewok, entity_tracking, wug, reading, multiple_choice,
math_word_problems, held_out) or a known benchmark, such as blimp or gsm8k. PATH
holds the items. docs/evaluation.md describes the tasks."""

EPILOG = """\
examples:
  cdgen evaluate run@best run@20 --tasks held_out=corpus perplexity=corpus entity_tracking --out results
  cdgen evaluate real=run@best mixed=mixed@best --tasks blimp=blimp --limit 100 --out results"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        summary="evaluate models on tasks",
        check=check_request,
        usage="%(prog)s MODEL ... --tasks TASK ... --out FOLDER [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a safetensors folder, a GGUF file, a hub name, or a checkpoint of a training run, such as run@best; "
        "run@all for all its checkpoints; LABEL=MODEL sets the label by which models are compared (default: the name "
        "of the folder)",
    )
    add_dtype(models)
    add_trust_remote_code(models)
    add_device(models)
    models.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens in one forward pass, including padding; fewer need less memory (default: by device)",
    )
    add_threads(models)
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="the tasks; see above")
    tasks.add_argument(
        "--convention",
        choices=("lm-eval", "babylm"),
        default="lm-eval",
        help="how texts become scored tokens; see docs/evaluation.md (default: lm-eval)",
    )
    tasks.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="use the first N records of each file, or N documents, or make N items (default: all)",
    )
    tasks.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of tasks that make their items (default: 0)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="FOLDER", help="folder of the results")
    add_quiet(output)


def check_request(args: argparse.Namespace) -> list["Task"]:
    """Check all options and return the tasks. Models and items are not read.

    Raises:
        InputError: a value cannot be used, or there is no such task.
    """
    import_ops()
    from cdgen.evaluation.evaluate import check_request
    from cdgen.evaluation.tasks import parse_task

    tasks = [parse_task(stated, limit=args.limit, seed=args.seed) for stated in args.tasks]
    check_request(tasks, args.convention, args.batch_tokens, args.dtype, args.device)
    return tasks


def run(args: argparse.Namespace) -> int:
    """Evaluate the models, and print a table; return the exit code."""
    tasks = check_request(args)
    load_ops(args.threads, args.device)
    from cdgen.evaluation.evaluate import evaluate

    evaluation = evaluate(
        args.models,
        tasks,
        args.out,
        convention=args.convention,
        batch_tokens=args.batch_tokens,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        progress=not args.quiet,
    )
    if not args.quiet:
        with contextlib.suppress(BrokenPipeError):  # the results are written, even if nobody reads the table
            for line in str(evaluation).split("\n"):
                print(escaped(line))
    return 0
