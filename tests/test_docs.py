"""The documentation's commands and programs run, top to bottom, in the order in which a page shows them.

A page's shell blocks run in one folder and its Python blocks in one program. Models are tiny, and numbers in
`SMALLER` replace those that would take hours.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tiny_models import SENTENCES, VOCABULARY, make_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # page: replacements, all of which must occur
    "README.md": {},
    "docs/corpora.md": {},
    "docs/training.md": {},
    "docs/kernels.md": {},
    "docs/engine.md": {},
    "docs/results/icelandic.md": {},
}
# Commands that the pages show but this test does not run, by their beginning.
NOT_RUN = {
    "make ": "they are run to install and to test cdgen",
    "pip ": "they change the environment",
    "cdgen run tiny": "`make tiny` runs it",
    "cdgen prepare --preset tinybabylm": "its files are not here",
    "accelerate launch": "its arguments are left to the reader; tests/training runs it",
    "torchrun": "its arguments are left to the reader",
    "python -m pytest": "tests are run by tests",
    "CDGEN_TEST_DEVICE": "tests are run by tests",
}

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with everything that the pages expect a reader to have."""
    torch.manual_seed(0)
    for name, layers in (("good", 14), ("bad", 2)):
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "path" / "to" / name)
        make_tokenizer().save_pretrained(tmp_path / "path" / "to" / name)
    (tmp_path / "prompts.txt").write_text("The sea\nOnce upon a time\n")
    (tmp_path / "books").mkdir()
    for number in range(3):
        paragraphs = [f"CHAPTER {at}\n\n{number}.{at} {' '.join(SENTENCES * 3)}" for at in range(40)]
        (tmp_path / "books" / f"{number}.txt").write_text("\n\n".join(paragraphs))
    articles = "".join(json.dumps({"text": f"Article {at}. {SENTENCES[at % 3]}"}) + "\n" for at in range(100))
    (tmp_path / "wiki.jsonl.gz").write_bytes(gzip.compress(articles.encode()))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cdgen").write_text(f'#!/bin/sh\nexec {sys.executable} -m cdgen "$@"\n')
    (programs / "cdgen").chmod(0o755)
    return tmp_path


def shell_commands(page: str) -> list[str]:
    """Return the commands of a page's indented blocks, without comments."""
    joined = re.sub(r"\\\n *", "", (ROOT / page).read_text(encoding="utf-8"))
    lines = [line[4:] for line in joined.splitlines() if re.match(r"    \S", line)]
    found = [re.sub(r"\s{2,}#.*", "", line) for line in lines]
    return [line for line in found if re.match(r"(cdgen|make|pip|python|accelerate|torchrun|export|[A-Z_]+=)\b", line)]


def python_program(page: str) -> str:
    """Return the Python blocks of a page as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S))


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CDGEN_CACHE": str(folder / "cache"),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page(page: str, folder: Path) -> None:
    commands = [line for line in shell_commands(page) if not line.startswith(tuple(NOT_RUN))]
    script = "\n".join(["set -e", *commands])
    for number, smaller in PAGES[page].items():
        assert number in script, f"{page} has changed"
        script = script.replace(number, smaller)
    run(["bash", "-c", script], folder)


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page(page: str, folder: Path) -> None:
    if program := python_program(page):
        (folder / "program.py").write_text(program)
        run([sys.executable, "program.py"], folder)
