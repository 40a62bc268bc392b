"""The name of the machine that a stage runs on. This module does not import torch, which not every stage needs."""

import contextlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cdgen.wording import counted

_WITH_MODELS = ("train", "generate", "evaluate")


def machine(argv: Sequence[str]) -> str:
    """Return the GPU that a command uses, or else the CPU and the number of threads.

    Args:
        argv: arguments of `cdgen`. The command has run in this process.
    """
    torch = sys.modules.get("torch")
    if torch is not None and argv[0] in _WITH_MODELS and "cpu" not in argv and torch.cuda.is_available():
        device = next((each for each in argv if re.fullmatch(r"cuda:\d+", each)), None)
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads() if torch is not None else os.cpu_count() or 1
    return f"{_processor()}, {counted(threads, 'thread')}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "unknown processor"
