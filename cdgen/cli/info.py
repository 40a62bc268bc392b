"""The command `cdgen info`. Imports torch only when it runs."""

import argparse

from cdgen.cli.parser import Commands, add_command, load_ops
from cdgen.errors import escaped

DESCRIPTION = """\
Print versions, devices, which implementation of the ops is used on each device
and why, and the cache folder."""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    add_command(
        commands,
        "info",
        run,
        summary="show versions, devices and the implementation in use",
        usage="%(prog)s",
        description=DESCRIPTION,
    )


def run(args: argparse.Namespace) -> int:
    """Print what is installed and what would be used; return the exit code."""
    load_ops()
    from cdgen.environment import report

    for line in report().splitlines():
        print(escaped(line))
    return 0
