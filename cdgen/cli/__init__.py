"""The command line: argument parsing, printing and exit codes, one file per command. Nothing else knows flags."""

from cdgen.cli.app import main

__all__ = ["main"]
