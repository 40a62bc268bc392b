"""Fixtures that many tests share: tiny models with a tiny tokenizer, a real model, and the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests must not use the network; read when transformers is imported

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.helpers.tiny_models import SENTENCES, TEST_DEVICE, VOCABULARY, make_llama, make_tokenizer

pytest_plugins = [
    "tests.helpers.browser",
    "tests.helpers.engines",
    "tests.helpers.experiment",
    "tests.helpers.fake_cuda",
    "tests.helpers.gpu_engines",
]

# The suite tests the CPU. On a machine with a GPU, models would otherwise be loaded there and run by other code.
# CDGEN_TEST_DEVICE=cuda is for the tests in tests/gpu.
if TEST_DEVICE != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)  # faster for models this small, and the same on every machine


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def good() -> LlamaForCausalLM:
    return make_llama(0)


@pytest.fixture(scope="session")
def bad() -> LlamaForCausalLM:
    return make_llama(1, layers=1, width=32)


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    good: LlamaForCausalLM,
    bad: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, Path]:
    """Save models and return their folders by name.

    They are good, bad, other (another vocabulary), wide (padded output layer) and bare (no tokenizer).
    """
    root = tmp_path_factory.mktemp("models")
    other = make_tokenizer([sentence.upper() for sentence in SENTENCES])
    saved = {
        "good": (good, tokenizer),
        "bad": (bad, tokenizer),
        "other": (make_llama(2), other),
        "wide": (make_llama(3, vocab_size=VOCABULARY + 20), tokenizer),
        "bare": (bad, None),
    }
    for name, (model, tok) in saved.items():
        model.save_pretrained(root / name)
        if tok is not None:
            tok.save_pretrained(root / name)
    return {name: root / name for name in saved}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, which the first use converts into the user's cache folder."""
    from cdgen.errors import InputError
    from cdgen.models.smollm2 import smollm2_folder

    try:
        return smollm2_folder()
    except InputError as error:
        pytest.skip(str(error))


SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import transformers.models.auto.modeling_auto, transformers.models.llama.modeling_llama, pyarrow.parquet
import cdgen.cli, cdgen.corpus.writer, cdgen.storage.folder, cdgen.storage.progress, cdgen.corpus.seeds
for line in sys.stdin:
    argv, output, limit, environment = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.stdin.close()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        os.environ.update(environment)
        if limit:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            code = cdgen.cli.main(argv)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class CommandLine:
    """Runs `cdgen` in separate processes, forked from one that has done the slow imports."""

    def __init__(self, folder: Path) -> None:
        self._output, self._running = folder / "output.txt", False
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, *argv: Any, limit: int = 0, **environment: str) -> int:
        """Start a command whose files may have at most `limit` bytes (0: any size); return its process id."""
        if self._running:  # a test that failed did not wait for its command
            self.wait()
        self._running = True
        request = [list(map(str, argv)), str(self._output), limit, environment]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> tuple[int, str]:
        """Return (exit code, printed text) of the command; the code is -9 after kill -9."""
        code = int(self._server.stdout.readline())
        self._running = False
        return code, self._output.read_text()

    def __call__(self, *argv: Any, **options: Any) -> tuple[int, str]:
        """Run a command; return (exit code, printed text)."""
        self.start(*argv, **options)
        return self.wait()

    def close(self) -> None:
        """End the server process."""
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()


@pytest.fixture(scope="session")
def cdgen_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Return the command line as a function."""
    command = CommandLine(tmp_path_factory.mktemp("command"))
    yield command
    command.close()


@pytest.fixture(scope="session")
def seeds_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write fifty short prompts, one per line; return the path."""
    path = tmp_path_factory.mktemp("seeds") / "seeds.txt"
    words = SENTENCES[1].split()
    path.write_text("".join(f"{' '.join(words[i % 7 : i % 7 + 2 + i % 4])} {i}\n" for i in range(50)))
    return path
