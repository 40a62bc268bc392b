"""The command `cdgen run`. Imports no torch."""

import shlex
from functools import partial
from pathlib import Path

from cdgen.cli.recipe import PRESETS, read_recipe, run_recipe, stages
from cdgen.errors import InputError


def add(commands, parser):
    """Add the command to the command line's subparsers; `parser` is that of the whole line, which runs the stages."""
    command = commands.add_parser(
        "run",
        help="a whole experiment: corpus, GOOD and BAD, synthetic corpora, mixed models, perplexities",
        description="Run a recipe's stages one after another; the same command goes on where it stopped.",
    )
    command.add_argument("recipe", metavar="RECIPE", help=f"{', '.join(PRESETS)}, or a TOML file")
    command.add_argument("--out", metavar="FOLDER", help="where everything goes (default: run-RECIPE)")
    command.add_argument("--dry-run", action="store_true", help="print the commands only")
    command.set_defaults(handler=partial(run, parser))


def run(parser, args):
    """Run the recipe; returns the exit code."""
    recipe = read_recipe(args.recipe)
    out = args.out or f"run-{Path(args.recipe).stem}"
    for stage in stages(recipe, out):  # a mistake in the last is told before the first has run for hours
        try:
            parser.parse_args(stage.argv)
        except InputError as error:
            raise InputError(f"{args.recipe}: stage {stage.name}: {error}") from error
        if args.dry_run:
            print(f"cdgen {shlex.join(stage.argv)}")
    if args.dry_run:
        return 0

    def command(argv):
        parsed = parser.parse_args(argv)
        return parsed.handler(parsed)

    return run_recipe(recipe, out, command, lambda line: print(line, flush=True))
