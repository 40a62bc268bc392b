"""The command `cdgen run`. Imports torch only when a stage does."""

import argparse
from functools import cache
from pathlib import Path

from cdgen.cli.experiment.recipe import PRESETS, read_recipe, stages
from cdgen.cli.experiment.runner import matching, run_stages
from cdgen.cli.experiment.schedule import Schedule
from cdgen.cli.experiment.stage_checks import check_results, check_stages, check_texts
from cdgen.cli.experiment.stage_list import stage_list
from cdgen.cli.parser import Commands, Parser, add_command
from cdgen.errors import escaped
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder

DESCRIPTION = """\
Run the stages of a recipe one after another: corpus, tokenizer, GOOD, BAD, one
synthetic corpus per method, the models to compare, their evaluation, and the
comparison, which says how much each method helped. Each stage is a command of
cdgen. Rerun the same command to resume; finished stages are skipped. Start it
several times to share the stages between GPUs or machines."""

EPILOG = """\
examples:
  cdgen run tiny
  cdgen run recipe.toml --out experiment --dry-run
  cdgen run recipe.toml --out experiment --only 'model-*-seed42'
  cdgen run recipe.toml --out experiment --list"""


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
    recipe.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="run only the stages whose names match a shell pattern, and the unfinished stages that they need",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FOLDER", help="folder of the experiment (default: run-RECIPE)")
    output.add_argument("--dry-run", action="store_true", help="check all stages and print their commands only")
    output.add_argument("--list", action="store_true", help="list the stages, their states, and the time that is left")


def run(args: argparse.Namespace) -> int:
    """Check all stages of the recipe, then list, print or run them; return the exit code."""
    parser: Parser = args.parser
    name = Path(args.recipe).stem
    out = Path(f"run-{name}") if args.out is None else OutputFolder(args.out).path
    if out == Path():  # digests of commands leave out the folder's path, so there must be one
        out = Path.cwd()
    recipe = read_recipe(args.recipe)
    planned = stages(recipe, out)
    names = matching(planned, args.only)
    if args.list:
        for line in stage_list(planned, names, out, parser.parse_args):
            print(escaped(line))
        return 0
    manifests.check_no_other_kind(out, manifests.EXPERIMENT)
    check_stages(planned, recipe, args.recipe, parser.parse_args)
    if args.dry_run:
        for stage in Schedule(planned, out, names).pending() if args.only else planned:
            print(escaped(stage.command))
        return 0

    check_once = cache(lambda: check_texts(planned, args.recipe, parser.parse_args))

    def execute(argv: list[str]) -> int:
        if argv[0] == "train":
            check_once()
        if argv[0] == "compare":
            check_results(planned, parser.parse_args)
        parsed = parser.parse_args(argv)
        return int(parsed.handler(parsed))

    return run_stages(planned, out, name, execute, lambda line: print(escaped(line), flush=True), names)
