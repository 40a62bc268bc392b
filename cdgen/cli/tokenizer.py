"""The command `cdgen tokenizer`. Imports no torch, and tokenizers only when it runs."""

import argparse

from cdgen.cli.parser import Commands, add_command, add_quiet
from cdgen.errors import escaped

EPILOG = """\
example:
  cdgen tokenizer corpus --vocab-size 8000 --out tokenizer"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "tokenizer",
        run,
        summary="train a tokenizer on a corpus",
        check=requested_size,
        usage="%(prog)s CORPUS --out FOLDER [options]",
        description="Train a byte-level BPE tokenizer on the training split of a corpus.",
        epilog=EPILOG,
    )
    text = parser.add_argument_group("input")
    text.add_argument("corpus", metavar="CORPUS", help="a folder that cdgen prepare wrote, or a file of texts")
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="FOLDER", help="folder of the tokenizer")
    output.add_argument(
        "--vocab-size", type=int, default=32000, metavar="N", help="number of tokens in the vocabulary (default: 32000)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace another tokenizer in the folder")
    add_quiet(output)


def requested_size(args: argparse.Namespace) -> int:
    """Return the size of the vocabulary.

    Raises:
        InputError: it is too small or too large.
    """
    from cdgen.prepare.tokenizer import checked_size

    return checked_size(args.vocab_size)


def run(args: argparse.Namespace) -> int:
    """Train the tokenizer and print its size; return the exit code."""
    from cdgen.prepare.tokenizer import train_tokenizer

    trained = train_tokenizer(
        args.corpus, args.out, vocab_size=args.vocab_size, overwrite=args.overwrite, progress=not args.quiet
    )
    if not args.quiet:
        state = "written" if trained.written else "already complete, nothing to do"
        print(f"{escaped(args.out)}: {state}; vocabulary of {trained.vocab_size} tokens")
    return 0
