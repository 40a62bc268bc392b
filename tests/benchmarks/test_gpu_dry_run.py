"""Run the tests in tests/gpu on the CPU, with imitated CUDA graphs, so that they do not break unnoticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "gpu"


@pytest.mark.slow
def test_gpu_tests_pass_in_a_dry_run() -> None:
    # Without a GPU, float16 takes the same way as bfloat16.
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-p", "no:cacheprovider", "-k", "not torch.float16"]
    done = subprocess.run(
        command, env=os.environ | {"CDGEN_TEST_DEVICE": "cpu"}, cwd=FOLDER.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert passed >= 28, done.stdout[-3000:]
