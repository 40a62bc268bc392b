"""The first record of a run: the card, the versions, the commit, and the command line."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from typing import NamedTuple

from benchmarks.gpu.processes import ROOT
from benchmarks.gpu.records import Record

PACKAGES = ("torch", "triton", "transformers", "numpy", "accelerate", "flashinfer-python", "liger-kernel")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
PROBE = """
import json, torch
found = {"cuda": torch.version.cuda, "available": torch.cuda.is_available()}
if found["available"]:
    card = torch.cuda.get_device_properties(0)
    found |= {"name": card.name, "memory": card.total_memory, "multiprocessors": card.multi_processor_count}
    found |= {"capability": [card.major, card.minor], "l2": card.L2_cache_size}
    found["uuid"] = str(getattr(card, "uuid", ""))
    torch.ones(9, device="cuda").sum().item()
print(json.dumps(found))
"""
RECORDED_VARIABLES = ("CDGEN_", "TRITON_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCH")  # prefixes
PROBE_TIMEOUT = 90  # seconds; the first CUDA context of a cold machine takes long


class _Output(NamedTuple):
    """The output of a command."""

    stdout: str | None  # None if the command failed or does not exist
    error: str  # the last line of stderr


def _run(command: list[str], timeout: float = 20, env: dict[str, str] | None = None) -> _Output:
    """Run a command and return its output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except (OSError, subprocess.SubprocessError) as error:
        return _Output(None, str(error))
    last_line = next(iter(done.stderr.strip().splitlines()[::-1]), "")
    return _Output(None if done.returncode else done.stdout.strip(), last_line)


def _version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def query_card(uuid: str) -> dict[str, str] | None:
    """Return what nvidia-smi reports about the card with this UUID, or about the first card if `uuid` is empty."""
    printed = _run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", f"--id={uuid or 0}"]).stdout
    if not printed:
        return None
    return dict(zip(QUERY.split(","), map(str.strip, printed.split(",")), strict=False))


def machine(variables: dict[str, str]) -> Record:
    """Return the machine record. A new process asks torch, since this one imports neither torch nor Triton."""
    probe = _run([sys.executable, "-c", PROBE], PROBE_TIMEOUT, env=variables)
    found = json.loads(probe.stdout) if probe.stdout else None
    uuid = (found or {}).get("uuid", "")
    commit = _run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).stdout
    return {
        "part": "",
        "job": "",
        "kind": "machine",
        "nvidia-smi": query_card(uuid and f"GPU-{uuid.removeprefix('GPU-')}"),
        "torch": found,
        "probe": probe.error,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit or "unknown",
        "changed": bool(_run(["git", "-C", str(ROOT), "status", "--porcelain"]).stdout) if commit else None,
        "environment": {name: value for name, value in variables.items() if name.startswith(RECORDED_VARIABLES)},
        "command": shlex.join(sys.orig_argv),
    }
