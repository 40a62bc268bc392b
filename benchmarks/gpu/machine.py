"""The first record of a run: the card, the versions, the commit and the command line."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys

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
    torch.ones(9, device="cuda").sum().item()
print(json.dumps(found))
"""
PATIENCE = 90  # seconds for the first CUDA context of a cold machine


def _printed(command: list[str], timeout: float = 20, **options: object) -> str | None:
    """What a command prints, or None if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def smi() -> dict[str, str] | None:
    """What nvidia-smi says of the card now."""
    printed = _printed(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"])
    if not printed:
        return None
    return dict(zip(QUERY.split(","), map(str.strip, printed.split(",")), strict=False))


def machine(variables: dict[str, str]) -> Record:
    """The machine record. torch is asked in a process of its own, since the parent imports neither torch nor Triton."""
    printed = _printed([sys.executable, "-c", PROBE], PATIENCE, env=variables)
    return {
        "part": "",
        "job": "",
        "kind": "machine",
        "nvidia-smi": smi(),
        "torch": json.loads(printed) if printed else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _printed(["git", "-C", str(ROOT), "rev-parse", "HEAD"]) or "unknown",
        "changed": bool(_printed(["git", "-C", str(ROOT), "status", "--porcelain"])),
        "command": shlex.join(sys.orig_argv),
    }
