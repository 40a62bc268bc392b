"""The environment that cdgen runs in: versions, devices, the implementation of the ops, and the cache folder."""

import importlib.util
import os
import platform
from pathlib import Path

import torch
import transformers

from cdgen import __version__
from cdgen_kernels import implementation


def cache_folder() -> Path:
    """Return the folder for converted models and tokenized texts: CDGEN_CACHE, or cdgen in the user's cache folder."""
    own = os.environ.get("CDGEN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdgen"


def versions() -> dict[str, str]:
    """Return the versions, by name, of everything that affects results."""
    return {
        "cdgen": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def report() -> str:
    """Return a report of the environment, one fact per line."""
    lines = [f"{name} {version}" for name, version in versions().items()]
    lines.append(f"cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        devices = ["cpu", "cuda"]
    if len(devices) == 1:
        lines.append("cuda: none")
    for device in devices:
        name, reason = implementation(device)
        lines.append(f"ops for {device}: {name} ({reason})")
    lines.append(f"triton: {'installed' if importlib.util.find_spec('triton') else 'not installed'}")
    lines.append(f"cache folder: {cache_folder()}")
    return "\n".join(lines)
