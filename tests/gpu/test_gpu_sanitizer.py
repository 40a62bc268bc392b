"""A decode under compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ONE_DECODE = Path(__file__).with_name("one_decode.py")


def test_no_access_outside_what_was_allocated(setup) -> None:
    """Run a decode without graphs under memcheck, with a separate allocation for every tensor."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    here = [str(ONE_DECODE.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(here)}
    command = [sys.executable, str(ONE_DECODE)]
    if setup.device.type == "cuda":
        if not Path(tool).exists():
            pytest.skip("compute-sanitizer is not installed")
        # Libraries probe the driver with calls that fail. Such a call does not access memory.
        options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
        command = [tool, *options, *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 continuations" in done.stdout
