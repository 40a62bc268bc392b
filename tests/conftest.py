"""Tiny models with a tiny tokenizer, made on the spot, and the one real model where its package is installed."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.tiny_models import SENTENCES, TEST_DEVICE, VOCABULARY, make_llama, make_tokenizer

pytest_plugins = [
    "tests.helpers.engines",
    "tests.helpers.fake_cuda",
    "tests.helpers.gpu_engines",
]  # fixtures that several files share

# The suite tests the CPU: on a machine with a GPU, models would otherwise be loaded there and run by other code.
# CDGEN_TEST_DEVICE=cuda is for the tests in tests/gpu.
if TEST_DEVICE != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
torch.set_num_threads(1)  # models this small are slower with more, and the figures do not depend on the machine


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def good():
    return make_llama(0)


@pytest.fixture(scope="session")
def bad():
    return make_llama(1, layers=1, width=32)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, good, bad, tokenizer):
    """Saved models by name: good, bad, other (another vocabulary), wide (padded output layer), bare (no tokenizer)."""
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
def smollm2():
    """The folder of SmolLM2-135M-Instruct, converted on first use into the user's cache."""
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
    """Runs `cdgen` in processes of its own, forked from one that has done the slow imports."""

    def __init__(self, folder):
        self._output, self._running = folder / "output.txt", False
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, *argv, limit=0, **environment):
        """Start a run, with files of at most `limit` bytes; returns its process id."""
        if self._running:  # a test that failed did not wait for its run
            self.wait()
        self._running = True
        request = [list(map(str, argv)), str(self._output), limit, environment]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self):
        """(exit code, what the run printed); the code is -9 after kill -9."""
        code = int(self._server.stdout.readline())
        self._running = False
        return code, self._output.read_text()

    def __call__(self, *argv, **options):
        self.start(*argv, **options)
        return self.wait()

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()


@pytest.fixture(scope="session")
def cdgen_command(tmp_path_factory):
    command = CommandLine(tmp_path_factory.mktemp("command"))
    yield command
    command.close()


@pytest.fixture(scope="session")
def seeds_file(tmp_path_factory):
    """Fifty short prompts, a line each."""
    path = tmp_path_factory.mktemp("seeds") / "seeds.txt"
    words = SENTENCES[1].split()
    path.write_text("".join(f"{' '.join(words[i % 7 : i % 7 + 2 + i % 4])} {i}\n" for i in range(50)))
    return path
