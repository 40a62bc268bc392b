"""The documentation's commands and programs run, top to bottom, in the order in which a page shows them.

A page's commands run in one folder and its Python blocks as one program; the examples of `cdgen COMMAND --help` run in
one folder, too. Models are tiny, and smaller numbers replace those that would take hours. The programs of
examples/README.md run in tests/test_examples.py, and the recipe of docs/training.md in tests/training.
"""

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cdgen.cli import main
from tests.helpers.doc_pages import page_blocks, shell_commands
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
    "prompts.txt --out early\n": "prompts.txt --out early --max-tokens 20\n",
    "max_tokens=400": "max_tokens=20",
    "--workers 8": "--workers 2 --shard-size 8",
    "tasks=8, workers=8": "tasks=1, workers=1",
    "tokenizer --out run\n": f"tokenizer --out run {_SMALL} --save-every 2\n",
}
_TUTORIAL = {  # the sizes of docs/tutorial.md
    "enumerate(names, 1)": "enumerate(names[:3], 1)",
    "steps 150": "steps 4",
    "save-every 50": "save-every 2",
    "@50 ": "@2 ",
    "max-tokens 100": "max-tokens 20",
    'model = "tiny"\nblock_size = 128\nbatch_size = 16\nmicro_batch_size = 16': (
        'model = "tiny"\nblock_size = 128\nbatch_size = 4\nmicro_batch_size = 4'
    ),
    "vocab_size = 2000": "vocab_size = 1000",
    "steps = 150\nwarmup_steps = 20\nsave_every = 50": "steps = 4\nwarmup_steps = 1\nsave_every = 2",
    "step = 50": "step = 2",
    "n = 2\nmax_tokens = 100": "n = 1\nmax_tokens = 20",
    "seeds = [42, 43]": "seeds = [42]",
    "limit = 100": "limit = 5",
}
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/tutorial.md",
    "docs/how-to/choose-a-bad.md",
    "docs/how-to/alpha-and-ratio.md",
    "docs/how-to/own-decode-loop.md",
    "docs/python.md",
    "docs/corpora.md",
    "docs/training.md",
    "docs/datasets.md",
    "docs/evaluation.md",
    "docs/engine.md",
    "docs/scale-out.md",
    "docs/transformers.md",
    "docs/kernels.md",
    "docs/adopting.md",
    "kernels/README.md",
    "docs/report.md",
)
# Pages whose commands this test does not run.
OTHER_PAGES = {
    "docs/benchmarks.md": "benchmarks take minutes; tests/benchmarks runs them with small sizes",
    "docs/choosing.md": "its recipe is left to the reader; tests/cli/experiment runs such commands",
    "docs/cli.md": "it is the output of --help, whose examples run below",
    "docs/install.md": "it installs cdgen",
    "docs/gpu.md": "it needs a GPU; tests/benchmarks has a dry run",
    "docs/lm-eval.md": "it needs lm-eval; tests/integrations runs the command",
    "docs/testing.md": "it runs the test suite",
    "docs/results/english.md": "it takes hours; tests/test_results.py makes its tables",
    "docs/results/icelandic.md": "it takes hours; tests/test_results.py makes its tables",
    "docs/results/icelandic-small.md": "it takes half an hour; tests/test_results.py makes its tables",
    "docs/results/confirmation.md": "it takes half an hour; tests/test_results.py makes its tables",
    "docs/results/knobs.md": "it takes hours; tests/test_results.py makes its tables",
}
# Commands that the pages show but this test does not run, by their beginning.
NOT_RUN = {
    "make ": "they install cdgen, or test it",
    "pip ": "they change the environment",
    "cdgen run tiny": "`make tiny` runs it",
    "cdgen report run-tiny": "`make tiny` runs it",
    "cdgen report results-real": "it needs results of other commands; docs/report.md has a whole example",
    "hf ": "it needs an account on the hub",
    "cdgen bench": "it takes minutes; tests/cli/test_bench.py runs it with small sizes",
    "cdgen demo": "`make demo` runs it",
    "cdgen prepare --preset tinybabylm": "its files are not here",
    "accelerate launch": "its arguments are left to the reader; tests/training runs it",
    "torchrun": "its arguments are left to the reader",
    "CUDA_VISIBLE_DEVICES": "it needs several GPUs; tests/cli/experiment/test_runner.py runs two processes",
    "rsync": "it needs a second machine",
    "cdgen run recipe.toml --out experiment": "it needs the machines above; tests/cli runs such commands",
}
# What the programs of a page expect their reader to have.
PRELUDES = {
    "docs/scale-out.md": """
from pathlib import Path
Path("seeds").mkdir()
Path("seeds/0.jsonl").write_text('{"id": "a", "text": "The sea"}\\n', encoding="utf-8")
__name__ = "__main__"
""",
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
    "prepare", "tokenizer", "train", "models ls", "generate", "show", "corpus-stats", "corpus verify", "report", "run",
    "plan", "demo", "info",
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
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
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
    _write_recipe(tmp_path)
    shutil.copytree(ROOT / "examples" / "custom_generate", tmp_path / "path" / "to" / "custom_generate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def _write_recipe(folder: Path) -> None:
    """Write the recipe of docs/training.md."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"^    \[prepare\]\n(?:    .*\n)+", page, re.M)
    assert found is not None
    (folder / "recipe.toml").write_text(re.sub(r"^    ", "", found[0], flags=re.M))


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def run_commands(commands: Iterable[str], variables: dict[str, str]) -> int:
    """Run commands of `cdgen`, with the variables that a shell would set; return how many have run."""
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


@pytest.mark.parametrize("page", PAGES)
def test_a_page(page: str, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": page}
    exec(compile(PRELUDES.get(page, ""), f"prelude of {page}", "exec"), names)
    variables: dict[str, str] = {}
    for block in page_blocks((ROOT / page).read_text(encoding="utf-8")):
        text = _replaced(f"{block.text}\n", {**_TRAINING, **(_TUTORIAL if page == "docs/tutorial.md" else {})})
        if block.kind == "python":
            exec(compile(text, page, "exec"), names)
        elif block.kind == "toml":
            assert block.name, f'{page}: name the file of a TOML block, as in ```toml title="recipe.toml"'
            Path(block.name).write_text(text, encoding="utf-8")
        else:
            run_commands(text.splitlines(), variables)


def test_the_examples_of_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = []
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        commands += shell_commands(capsys.readouterr().out.partition("\nexample")[2], 2)
    # The third example of cdgen train reads a corpus that the page docs/training.md writes.
    synthetic = "cdgen generate --good path/to/good --method top_p --seeds prompts.txt --out synthetic --max-tokens 400"
    assert run_commands(_replaced("\n".join([synthetic, *commands]) + "\n", _TRAINING).splitlines(), {}) >= 12


def test_every_page_with_code_is_run_or_listed() -> None:
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "examples" / "README.md",
        ROOT / "kernels" / "README.md",
    ]
    with_code = [str(path.relative_to(ROOT)) for path in pages if page_blocks(path.read_text(encoding="utf-8"))]
    assert sorted(with_code) == sorted({*PAGES, *OTHER_PAGES} & {*with_code})
    assert {*PAGES, *OTHER_PAGES} <= {str(path.relative_to(ROOT)) for path in pages}


def test_blocks_of_a_page() -> None:
    page = 'Text\n\n    cdgen info   # says\n        output\n\n```toml title="a.toml"\nx = 1\n```\n\n```text\nno\n```\n'
    page += "\n```bash\ncdgen a \\\n    b\n```\n\n```python\ny = 2\n```\n\n    cdgen c \\\n        d\n"
    assert [(block.kind, block.text.strip(), block.name) for block in page_blocks(page)] == [
        ("shell", "cdgen info", ""),
        ("toml", "x = 1", "a.toml"),
        ("shell", "cdgen a     b", ""),
        ("python", "y = 2", ""),
        ("shell", "cdgen c d", ""),
    ]
