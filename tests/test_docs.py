"""The documentation's commands and programs run, top to bottom, in the order in which a page shows them.

A page's commands run in one folder and its Python blocks as one program; the examples of `cdgen COMMAND --help` run in
one folder, too. Models are tiny, and smaller numbers replace those that would take hours. The programs of
examples/README.md run in tests/test_examples.py, and the recipe of docs/training.md in tests/training.
"""

import gzip
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cdgen.cli import main
from tests.helpers.tiny_models import SENTENCES, VOCABULARY, make_tokenizer

ROOT = Path(__file__).resolve().parent.parent
_SMALL = "--model tiny --block-size 32 --batch-size 4 --steps 4"
_TRAINING = {  # sizes of trained models
    "paper-100x": "tiny",
    "vocab-size 2000": "vocab-size 300",
    "batch-size 32": "batch-size 4",
    "batch-size 16": "batch-size 4",
    "steps 1600": "steps 4",
    "steps 60": "steps 6",
    "steps 100": "steps 4",
    "tokenizer --out mixed\n": f"tokenizer --out mixed {_SMALL}\n",
    "save-every 80": "save-every 2",
    "save-every 20": "save-every 2",
    "warmup-steps 10": "warmup-steps 2",
    "@20 ": "@2 ",
    "@500 ": "@2 ",
    "max-tokens 400": "max-tokens 20",
    "max_tokens=400": "max_tokens=20",
    "tokenizer --out run\n": f"tokenizer --out run {_SMALL} --save-every 2\n",
}
PAGES = (
    "README.md",
    "docs/corpora.md",
    "docs/training.md",
    "docs/evaluation.md",
    "docs/engine.md",
    "docs/kernels.md",
    "docs/report.md",
    "docs/results/icelandic.md",
)
# Pages whose commands this test does not run.
OTHER_PAGES = {
    "docs/benchmarks.md": "benchmarks take minutes; tests/benchmarks runs them with small sizes",
    "docs/cli.md": "it is the output of --help, whose examples run below",
    "docs/gpu.md": "it needs a GPU; tests/benchmarks has a dry run",
    "docs/lm-eval.md": "it needs lm-eval; tests/integrations runs the command",
    "docs/testing.md": "it runs the test suite",
}
# Commands that the pages show but this test does not run, by their beginning.
NOT_RUN = {
    "make ": "they install cdgen, or test it",
    "pip ": "they change the environment",
    "cdgen run tiny": "`make tiny` runs it",
    "cdgen report run-tiny": "`make tiny` runs it",
    "cdgen report results-real": "it needs results of other commands; docs/report.md has a whole example",
    "cdgen demo": "`make demo` runs it",
    "cdgen prepare --preset tinybabylm": "its files are not here",
    "accelerate launch": "its arguments are left to the reader; tests/training runs it",
    "torchrun": "its arguments are left to the reader",
}
# What the programs of a page expect their reader to have.
PRELUDES = {
    "docs/engine.md": """
from transformers import LlamaForCausalLM
good, bad = (LlamaForCausalLM.from_pretrained(f"path/to/{name}") for name in ("good", "bad"))
""",
    "docs/kernels.md": """
import torch
batch, V = 4, 1000
good_logits, bad_logits = torch.randn(2, batch, V)
good_hidden, bad_hidden, good_output_weight, bad_output_weight = (torch.randn(n, 16) for n in (batch, batch, V, V))
""",
}
# Commands in the order in which their examples are typed: each uses what the ones before have written.
COMMANDS = (
    "prepare", "tokenizer", "train", "models ls", "generate", "show", "corpus-stats", "report", "run", "plan", "demo",
    "info",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with everything that the pages expect a reader to have, and return it."""
    torch.manual_seed(0)
    for name, layers in (("good", 14), ("bad", 2)):
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "path" / "to" / name)
        make_tokenizer().save_pretrained(tmp_path / "path" / "to" / name)
    (tmp_path / "prompts.txt").write_text("The sea\nOnce upon a time\n")
    (tmp_path / "book.txt").write_text(" ".join(SENTENCES * 20))
    (tmp_path / "books").mkdir()
    (tmp_path / "icelandic").mkdir()
    for number in range(3):
        chapters = [f"CHAPTER {at}\n\n{number}.{at} {' '.join(SENTENCES * 3)}" for at in range(40)]
        (tmp_path / "books" / f"{number}.txt").write_text("\n\n".join(chapters))
        lines = [f"{number}.{at} {SENTENCES[at % 3]}" for at in range(1000)]
        (tmp_path / "icelandic" / f"{number}.txt").write_text("\n".join(lines))
    articles = "".join(json.dumps({"text": f"Article {at}. {SENTENCES[at % 3]}"}) + "\n" for at in range(100))
    (tmp_path / "wiki.jsonl.gz").write_bytes(gzip.compress(articles.encode()))
    _write_recipes(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def _write_recipes(folder: Path) -> None:
    """Write the recipe of the Icelandic experiment with smaller numbers, and the one of docs/training.md."""
    smaller = {
        'model = "paper-100x"': 'model = "tiny"', "vocab_size = 4000": "vocab_size = 300", "steps = 1600": "steps = 4",
        "warmup_steps = 60": "warmup_steps = 1", "save_every = 80": "save_every = 2", "step = 320": "step = 2",
        "batch_size = 32": "batch_size = 4", "n = 16": "n = 2", "max_tokens = 400": "max_tokens = 20",
    }  # fmt: skip
    recipe = (ROOT / "docs" / "results" / "icelandic.toml").read_text(encoding="utf-8")
    (folder / "docs" / "results").mkdir(parents=True)
    (folder / "docs" / "results" / "icelandic.toml").write_text(_replaced(recipe, smaller, smaller))
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"^    \[prepare\]\n(?:    .*\n)+", page, re.M)
    assert found is not None
    (folder / "recipe.toml").write_text(re.sub(r"^    ", "", found[0], flags=re.M))


def _replaced(text: str, replacements: Mapping[str, str], required: Iterable[str] = ()) -> str:
    assert [old for old in required if old not in text] == [], "the documentation has changed"
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def shell_commands(text: str, indent: int) -> list[str]:
    """Return the commands in indented blocks, without comments."""
    joined = re.sub(r"\\\n *", "", text)
    lines = [line[indent:] for line in joined.splitlines() if re.match(rf" {{{indent}}}\S", line)]
    found = [re.sub(r"\s{2,}#.*", "", line) for line in lines]
    return [line for line in found if re.match(r"(cdgen|make|pip|python|accelerate|torchrun|export)\s|[A-Z_]+=", line)]


def run_commands(commands: Iterable[str]) -> int:
    """Run commands of `cdgen`, with the variables that a shell would set; return how many have run."""
    variables: dict[str, str] = {}
    count = 0
    for line in commands:
        if not line or line.startswith(tuple(NOT_RUN)):
            continue
        if found := re.fullmatch(r'([A-Z_]+)="(.*)"', line):
            variables[found[1]] = found[2]
            continue
        program, *argv = shlex.split(Template(line).substitute(variables))
        assert program == "cdgen", f"{line}: run it here, or list it in NOT_RUN"
        assert main(argv) == 0, line
        count += 1
    return count


def python_program(page: str) -> str:
    """Return the Python blocks of a page as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S))


@pytest.mark.parametrize("page", PAGES)
def test_a_page(page: str, folder: Path) -> None:
    commands = shell_commands((ROOT / page).read_text(encoding="utf-8"), 4)
    run_commands(_replaced("\n".join(commands) + "\n", _TRAINING).splitlines())
    program = _replaced(python_program(page), _TRAINING)
    names: dict[str, Any] = {}
    exec(compile(PRELUDES.get(page, "") + program, page, "exec"), names)


def test_the_examples_of_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = []
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        commands += shell_commands(capsys.readouterr().out.partition("\nexample")[2], 2)
    # The third example of cdgen train reads a corpus that the page docs/training.md writes.
    synthetic = "cdgen generate --good path/to/good --method top_p --seeds prompts.txt --out synthetic --max-tokens 400"
    assert run_commands(_replaced("\n".join([synthetic, *commands]) + "\n", _TRAINING).splitlines()) >= 12


def test_every_page_with_commands_is_run_or_listed() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
    with_code = [
        str(path.relative_to(ROOT))
        for path in pages
        if shell_commands(path.read_text(encoding="utf-8"), 4) or "```python" in path.read_text(encoding="utf-8")
    ]
    assert sorted(with_code) == sorted({*PAGES, *OTHER_PAGES} & {*with_code})
    assert {*OTHER_PAGES} <= {str(path.relative_to(ROOT)) for path in pages}
