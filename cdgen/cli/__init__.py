"""The command line: argument parsing, printing and exit codes, one file per command. No other package knows flags.

The package `experiment` plans and runs the stages of `cdgen run`.
"""

from cdgen.cli.app import main

__all__ = ["main"]
