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
    found["uuid"] = str(getattr(card, "uuid", ""))
    torch.ones(9, device="cuda").sum().item()
print(json.dumps(found))
"""
MATTERING = ("CDGEN_", "TRITON_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCH")  # variables that are recorded
PATIENCE = 90  # seconds for the first CUDA context of a cold machine


def _run(command: list[str], timeout: float = 20, **options: object) -> tuple[str | None, str]:
    """(what a command prints, or None if it fails or is not there; the last line of its complaint)"""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    complaint = next(iter(done.stderr.strip().splitlines()[::-1]), "")
    return (None if done.returncode else done.stdout.strip()), complaint


def _printed(command: list[str]) -> str | None:
    return _run(command)[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def smi(card: str) -> dict[str, str] | None:
    """What nvidia-smi says now of the card with this UUID, or of the first one if it is empty."""
    printed = _printed(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", f"--id={card or 0}"])
    if not printed:
        return None
    return dict(zip(QUERY.split(","), map(str.strip, printed.split(",")), strict=False))


def machine(variables: dict[str, str]) -> Record:
    """The machine record. torch is asked in a process of its own, since the parent imports neither torch nor Triton."""
    printed, complaint = _run([sys.executable, "-c", PROBE], PATIENCE, env=variables)
    found = json.loads(printed) if printed else None
    uuid = (found or {}).get("uuid", "")
    commit = _printed(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    return {
        "part": "",
        "job": "",
        "kind": "machine",
        "nvidia-smi": smi(uuid and f"GPU-{uuid.removeprefix('GPU-')}"),
        "torch": found,
        "probe": complaint,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit or "unknown",
        "changed": bool(_printed(["git", "-C", str(ROOT), "status", "--porcelain"])) if commit else None,
        "environment": {name: value for name, value in variables.items() if name.startswith(MATTERING)},
        "command": shlex.join(sys.orig_argv),
    }
