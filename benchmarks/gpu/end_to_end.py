"""The part `end_to_end`: run the tests in tests/gpu on this device, divided among processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from benchmarks.gpu import pytest_records
from benchmarks.gpu.context import Context
from benchmarks.gpu.processes import ROOT

TESTS = ROOT / "tests" / "gpu"
SANITIZER = TESTS / "test_gpu_sanitizer.py"  # takes longest, so it has a process of its own
SHARDS = 4
NO_TESTS = 5  # exit status of pytest if it collected no tests
SLOW = 20  # seconds after which pytest prints the traceback of a running test


def pytest_job(context: Context, paths: tuple[str, ...], shard: int = 0, shards: int = 1) -> None:
    """Run every `shards`-th test, starting with number `shard`."""
    variables = {
        "CDGEN_TEST_DEVICE": context.device.type,
        "NVIDIA_TF32_OVERRIDE": "0",  # exact float32 products; takes effect only before libraries are loaded
        pytest_records.OUT: str(context.out),
        pytest_records.JOB: f"{context.part} {context.job}",
        pytest_records.SHARD: f"{shard} {shards}",
    }
    command = [sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["-p", "benchmarks.gpu.pytest_records", "--rootdir", str(ROOT), "-o", f"faulthandler_timeout={SLOW}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False)
    if done.returncode not in (0, 1, NO_TESTS):  # 1: a test failed and has been recorded
        raise SystemExit(done.returncode)


JOBS: dict[str, Callable[[Context], None]] = {
    **{
        f"shard_{shard + 1}": partial(
            pytest_job, paths=(str(TESTS), f"--ignore={SANITIZER}"), shard=shard, shards=SHARDS
        )
        for shard in range(SHARDS)
    },
    "sanitizer": partial(pytest_job, paths=(str(SANITIZER),)),
}
