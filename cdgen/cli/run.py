"""The command `cdgen run`. Imports torch only when a stage does."""

import argparse
from pathlib import Path

from cdgen.cli.parser import Commands, Parser, add_command
from cdgen.cli.recipe import PRESETS, Stage, read_recipe, run_stages, stages
from cdgen.errors import InputError

DESCRIPTION = """\
Run the stages of a recipe one after another: corpus, tokenizer, GOOD, BAD, one
synthetic corpus per method, and the models to compare. Each stage is a command
of cdgen. At the end, print the best checkpoint and the perplexity of each model.
Rerun the same command to resume; finished stages are skipped."""

EPILOG = """\
examples:
  cdgen run tiny
  cdgen run recipe.toml --out experiment --dry-run"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "run",
        run,
        summary="run a whole experiment from a recipe",
        usage="%(prog)s RECIPE [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    recipe = parser.add_argument_group("input")
    recipe.add_argument("recipe", metavar="RECIPE", help=f"{', '.join(PRESETS)}, or a TOML file")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FOLDER", help="folder of the experiment (default: run-RECIPE)")
    output.add_argument("--dry-run", action="store_true", help="check all stages and print their commands only")


def run(args: argparse.Namespace) -> int:
    """Check all stages of the recipe, then print them or carry them out; return the exit code."""
    parser: Parser = args.parser
    out = args.out or f"run-{Path(args.recipe).stem}"
    planned = stages(read_recipe(args.recipe), out)
    for stage in planned:  # all of them first: an error in the last stage must not surface after hours
        _check(parser, stage, args.recipe)
    if args.dry_run:
        for stage in planned:
            print(stage.command)
        return 0

    def execute(argv: list[str]) -> int:
        parsed = parser.parse_args(argv)
        return int(parsed.handler(parsed))

    return run_stages(planned, out, execute, lambda line: print(line, flush=True))


def _check(parser: Parser, stage: Stage, recipe: str) -> None:
    """Raise InputError, with the recipe's and the stage's name, if a stage's command line cannot be parsed."""
    try:
        parser.parse_args(stage.argv)
    except InputError as error:
        raise InputError(f"{recipe}: stage {stage.name}: {error}") from error
