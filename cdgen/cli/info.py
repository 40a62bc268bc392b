"""The command `cdgen info`. Imports no torch until it runs."""

from cdgen.cli.parser import load_ops


def add(commands):
    """Add the command to the command line's subparsers."""
    commands.add_parser("info", help="what would run here, and why").set_defaults(handler=run)


def run(args):
    """Print versions, devices, and which implementation of the ops would run, and why; returns the exit code."""
    load_ops()
    from cdgen.environment import report

    print(report())
    return 0
