"""Run the examples as a newcomer would."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("name", ["own_decode_loop.py", "compare_methods.py"])
@pytest.mark.slow
def test_an_example_prints_a_continuation(name: str, folders: dict[str, str]) -> None:
    prompt = "Once upon a time"
    command = [sys.executable, str(EXAMPLES / name), *(str(folders[role]) for role in ("good", "bad")), prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert prompt in done.stdout and len(done.stdout) > len(prompt) + 20


def test_every_example_is_listed_and_tested() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["compare_methods.py", "own_decode_loop.py"]
    assert all(path.name in readme for path in EXAMPLES.glob("*.py"))
