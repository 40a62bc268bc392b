"""The command `cdgen models`. Imports no torch."""

import argparse

from cdgen.cli.parser import Commands, Parser, add_command
from cdgen.errors import escaped

LS_DESCRIPTION = """\
List the checkpoints of training runs with their loss and perplexity, and mark
the best and the latest. RUN@best, RUN@latest and RUN@STEP name a checkpoint
wherever a command takes a model."""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "models",
        help="list the checkpoints of a training run",
        description="Work with the checkpoints of a training run.",
        epilog="Run 'cdgen models ls --help' for its options.",
    )
    actions = parser.add_subparsers(required=True, title="commands", metavar="COMMAND", parser_class=Parser)
    ls = add_command(
        actions,
        "ls",
        run,
        summary="list checkpoints with their loss and perplexity",
        usage="%(prog)s RUN ...",
        description=LS_DESCRIPTION,
        epilog="example:\n  cdgen models ls run mixed",
    )
    ls.add_argument_group("input").add_argument("folders", nargs="+", metavar="RUN", help="folder of a training run")


def run(args: argparse.Namespace) -> int:
    """Print one line per checkpoint; return the exit code."""
    from cdgen.storage import runs

    tables = [list(runs.table(folder)) for folder in args.folders]  # raises before anything is printed
    for folder, table in zip(args.folders, tables, strict=True):
        if len(tables) > 1:
            print(f"{escaped(folder)}:")
        for line in table:
            print(line)
    return 0
