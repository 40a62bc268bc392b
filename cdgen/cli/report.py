"""The command `cdgen report`. Imports torch, jinja2 and matplotlib only when it runs."""

import argparse
from importlib.util import find_spec

from cdgen.cli.output_file import HTML, check_output_file, write_output_file
from cdgen.cli.parser import Commands, add_command, add_device, add_dtype, add_quiet, add_threads, load_ops
from cdgen.errors import InputError, escaped

_PACKAGES = ("jinja2", "matplotlib")
_NAME = "report.html"

DESCRIPTION = """\
Write one HTML page about an experiment of cdgen run: what came out, the models,
the corpora side by side, and documents to read, token by token under GOOD and
BAD. The page needs no network. The experiment may be unfinished, or still
running. Corpora, training runs, results and comparisons can be given instead
of an experiment, or in addition to it; the page shows what there is."""

EPILOG = """\
examples:
  cdgen report run-tiny
  cdgen report corpus early dropout --out corpora.html
  cdgen report results-real results-mixed"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "report",
        run,
        summary="write a page about an experiment, or about corpora and results",
        usage="%(prog)s PATH ... [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    inputs = parser.add_argument_group("input")
    inputs.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of an experiment; or a corpus, a training run, or the output folder of cdgen evaluate or of cdgen "
        "compare",
    )
    models = parser.add_argument_group("models that score the corpora and the documents")
    add_dtype(models)
    add_device(models)
    add_threads(models)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        metavar="FILE",
        help=f"the page, which is replaced if it exists (default: {_NAME} in the folder of the experiment; without an "
        "experiment, in the current folder)",
    )
    add_quiet(output)


def run(args: argparse.Namespace) -> int:
    """Read the folders, and write the page; return the exit code."""
    if any(find_spec(name) is None for name in _PACKAGES):
        raise InputError('report: needs jinja2 and matplotlib; in a clone of cdgen: pip install ".[report]"')
    load_ops(args.threads, args.device)
    from cdgen.report.find import find, read
    from cdgen.report.html.page import render
    from cdgen.storage.progress import choose

    out = args.out
    if out is None:
        experiment = find(args.paths, lambda _: None).experiment
        out = str(experiment.folder / _NAME) if experiment else _NAME
    check_output_file("--out", out, HTML)
    progress = choose(args.quiet)
    try:
        report = read(args.paths, device=args.device, dtype=args.dtype, progress=progress)
    finally:
        progress.close()
    written = write_output_file(out, render(report).encode())
    print(f"{escaped(out)}: {written.stat().st_size / 1e6:.1f} MB")
    return 0
