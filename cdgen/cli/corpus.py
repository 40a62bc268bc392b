"""The command `cdgen corpus`, with its own command `verify`. It does not need torch."""

import argparse
from pathlib import Path

from cdgen.cli.parser import Commands, Parser, add_command, add_quiet
from cdgen.errors import InputError, printable
from cdgen.wording import counted

VERIFY = """\
Read every file of a corpus and check it against the manifest: each seed has its
continuations once and in order; seeds, tokens and columns fit the settings;
checksums and counts are right; and no file is left over. Each fault is printed as
one line with the file, the problem and the remedy, and the exit code is then 1.
Nothing is written."""

EPILOG = """\
example:
  cdgen corpus verify corpus early dropout"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    group = commands.add_parser("corpus", help="verify corpora", description="Work with finished corpora.")
    inner = group.add_subparsers(
        dest="corpus_command", required=True, title="commands", metavar="COMMAND", parser_class=Parser
    )
    parser = add_command(
        inner,
        "verify",
        run,
        summary="check that a corpus is complete and unaltered",
        usage="%(prog)s FOLDER ... [--quiet]",
        description=VERIFY,
        epilog=EPILOG,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder of a generated or a prepared corpus")
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Verify the corpora, and print their faults; return the exit code."""
    from cdgen.corpus.verify import verify
    from cdgen.storage.progress import choose

    for name in args.folders:
        if not name or not Path(name).is_dir():
            raise InputError(f"{name or repr(name)}: no such folder")
    count = 0
    progress = choose(args.quiet)
    try:
        for name in args.folders:
            found = verify(Path(name), progress)
            for fault in found.faults:
                print(printable(fault))
            if not args.quiet:
                state = counted(len(found.faults), "fault") if found.faults else "no faults"
                print(printable(f"{name}: {found.content}; {state}"))
            count += len(found.faults)
    finally:
        progress.close()
    return 1 if count else 0
