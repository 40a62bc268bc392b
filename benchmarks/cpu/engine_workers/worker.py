"""Run an engine in a process of its own, under any interpreter: lines of JSON over its standard input and output.

This module uses the standard library alone, since the other engines' environments have neither cdgen nor torch.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Generate = Callable[[list[list[int]], int, bool], list[list[int]]]  # prompts, new tokens, greedy -> new tokens


class Settings(NamedTuple):
    """The settings of a worker.

    Attributes:
        model: path of the model. dtype: float32 or bfloat16, of weights and cache. threads: of the engine.
        sequences: greatest number of sequences of one request. length: greatest length, prompt and new tokens together.
    """

    model: str
    dtype: str
    threads: int
    sequences: int
    length: int


class Worker:
    """An engine's process, which runs NAME_worker.py of this folder.

    Args:
        python: interpreter of the engine's environment. path: folders of modules beside those of the environment.
    Attributes:
        about: the engine's version and settings, in words.
    Raises:
        RuntimeError: the process has ended. The message has the end of its log.
    """

    def __init__(self, name: str, python: str, settings: Settings, path: Sequence[str] = ()) -> None:
        self._name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is open as long as the process runs
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(f"{name}_worker.py")), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"OMP_NUM_THREADS": str(settings.threads), "PYTHONPATH": os.pathsep.join(path)},
            text=True,
        )
        self.about: str = self._answer()

    def generate(self, prompts: list[list[int]], max_tokens: int, greedy: bool = False) -> list[list[int]]:
        """Return `max_tokens` new tokens of each prompt: sampled at temperature 1, or the most probable ones."""
        tokens: list[list[int]] = self.ask(prompts, max_tokens, greedy)
        return tokens

    def ask(self, *request: Any) -> Any:
        """Send a request and return its answer; JSON must be able to hold both."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if the process has ended, there is no answer either
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._log.seek(0)
        raise RuntimeError(f"{self._name} ended with exit code {code}: {self._log.read()[-2000:]}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # no requests follow
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def serve(start: Callable[[Settings], tuple[str, Callable[..., Any]]]) -> None:
    """Answer requests until the standard input ends; called in the worker's process.

    Args:
        start: loads the engine; returns its version and settings in words, and the function that answers requests. For
            :meth:`Worker.generate` it is a :data:`Generate`.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what engines print must not mix with the answers
        about, answer = start(Settings(*json.loads(sys.argv[1])))
        print(json.dumps(about), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(*json.loads(line))), file=answers, flush=True)
