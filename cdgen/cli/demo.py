"""The command `cdgen demo`: SmolLM2-135M-Instruct against itself with attention dropout, beside plain sampling."""

import itertools
import time
from pathlib import Path

from cdgen.cli.parser import load_ops

PROMPTS = Path(__file__).with_name("demo_prompts.txt")
DROPOUT = 0.3


def add(commands):
    """Add the command to the command line's subparsers."""
    demo = commands.add_parser("demo", help="write two small corpora with SmolLM2-135M and compare them")
    demo.add_argument(
        "--out", default="demo-corpus", metavar="FOLDER", help="where the corpora go (default: demo-corpus)"
    )
    demo.add_argument("--max-tokens", type=int, default=60, metavar="N", help="new tokens of each text (default: 60)")
    demo.add_argument("--show", type=int, default=4, metavar="N", help="documents to print (default: 4)")
    demo.set_defaults(handler=run)


def run(args):
    """Two corpora of the built-in prompts, side by side."""
    load_ops()
    return demo(args.out, args.max_tokens, args.show)


def demo(out, max_tokens, show):
    """Write `out`/contrastive and `out`/ancestral from the built-in prompts, and print some of both side by side."""
    from rich.console import Console

    from cdgen.corpus.seeds import read_seeds
    from cdgen.corpus.writer import write_corpus
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.engine.sampling_params import SamplingParams
    from cdgen.models.smollm2 import NAME, smollm2_folder
    from cdgen.storage.folder import OutputFolder
    from cdgen.storage.progress import choose

    console = Console()
    out = Path(out)
    methods = {
        name: SamplingParams.for_method(name, max_tokens=max_tokens, ignore_eos=False)
        for name in ("ancestral", "contrastive")
    }
    with console.status("loading"):
        lm = ContrastiveLM(smollm2_folder(console.print), dropout=DROPOUT)
    seeds, _ = read_seeds([PROMPTS], lm.prompt_ids)
    console.print(
        f"GOOD: {NAME}. BAD: GOOD with attention dropout {DROPOUT}. {len(seeds)} prompts, {max_tokens} new tokens each."
    )
    speeds = {}
    for name, params in methods.items():
        progress = choose(quiet=not console.is_terminal)
        start = time.monotonic()
        with OutputFolder(out / name) as folder:
            try:
                manifest, written = write_corpus(lm, seeds, folder, params, format="jsonl.gz", progress=progress)
            finally:
                progress.close()
        speeds[name] = manifest["counts"]["new_tokens"] / (time.monotonic() - start) if written else None
    _print_pairs(console, out, show)
    for name, speed in speeds.items():
        rate = f"{speed:.0f} tokens/s" if speed else "complete already"
        console.print(f"{name}: {rate}; {out / name}", soft_wrap=True)
    return 0


def _print_pairs(console, out, show):
    from rich.table import Table

    table = Table("GOOD alone (ancestral)", "contrastive", show_lines=True)
    for plain, contrastive in itertools.islice(
        zip(_rows(out / "ancestral"), _rows(out / "contrastive"), strict=True), show
    ):
        table.add_row(plain["text"], contrastive["text"])
    console.print(table)


def _rows(folder):
    import gzip
    import json

    for path in sorted(folder.glob("shard-*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            yield json.loads(line)
