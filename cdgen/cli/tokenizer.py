"""The command `cdgen tokenizer`. Imports neither torch nor tokenizers until it runs."""


def add(commands):
    """Add `cdgen tokenizer` to the command line's subparsers."""
    parser = commands.add_parser(
        "tokenizer", help="train a tokenizer", description="Train byte-level BPE on a corpus's train split."
    )
    parser.add_argument("corpus", metavar="CORPUS", help="a folder that cdgen prepare wrote, or a file of texts")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the tokenizer goes")
    parser.add_argument("--vocab-size", type=int, default=32000, metavar="N", help="entries (default: 32000)")
    parser.add_argument("--overwrite", action="store_true", help="replace another tokenizer in the folder")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


def run(args):
    """Train the tokenizer and say how large it is; returns the exit code."""
    from cdgen.prepare.tokenizer import train_tokenizer
    from cdgen.storage.byte_progress import choose

    progress = choose(args.quiet)
    try:
        entries, written = train_tokenizer(
            args.corpus, args.out, vocab_size=args.vocab_size, overwrite=args.overwrite, progress=progress
        )
    finally:
        progress.close()
    if not args.quiet:
        state = "written" if written else "complete already, nothing to do"
        print(f"{args.out}: {state}; {entries} entries")
    return 0
