"""What the compilers make of the kernels, for GPUs that need not be there.

An op is called as on a GPU, its launches are recorded, and each is compiled; the numbers are ptxas's and LLVM's.
"""

import linecache
import math
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from tools.ptx_sim import Device, intercept
from tools.ptx_sim.compile import compile_kernel, specialise

__all__ = ["TARGETS", "Device", "Launch", "Resources", "Row", "compile_all", "record", "resources"]

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}


# ------------------------------------------------------------------------------------------------- what is launched


@dataclass(frozen=True)
class Launch:
    """One launch as Triton would specialise it, hashable; `types`, `constants` and `options` are sorted pairs."""

    function: triton.JITFunction
    types: tuple
    constants: tuple
    divisible: tuple
    options: tuple
    programs: int


class _TorchOps(TorchDispatchMode):
    """Counts the torch ops that would launch something: all but allocations and views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        allocates = function.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty")
        outputs = result if isinstance(result, tuple) else (result,)
        writes = any(isinstance(x, torch.Tensor) and x.numel() for x in outputs)
        self.count += writes and not (allocates or function.is_view)
        return result


class Recording(NamedTuple):
    launches: list  # of Launch
    torch_ops: int  # launched beside them


def record(op, inputs, backend="cuda"):
    """The :class:`Recording` of one call of the op, which decides as it would on that backend."""
    launches = []

    def note(function, grid, arguments, options):
        signature, constants, divisible = specialise(function, arguments)
        pairs = [tuple(sorted(x.items())) for x in (signature, constants, options)]
        launches.append(Launch(function, pairs[0], pairs[1], tuple(divisible), pairs[2], math.prod(grid)))

    with (
        intercept(note),
        mock.patch.object(torch.version, "hip", "6" if backend == "hip" else None),
        _TorchOps() as torch_ops,
    ):
        op.fused(*inputs)
    return Recording(launches, torch_ops.count)


# ------------------------------------------------------------------------------------------------- what it becomes


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int
    spill: int  # bytes of stores and loads; on AMD the number of vector registers spilt
    stack: int  # bytes a thread
    shared: int  # bytes
    loads: dict  # name of the pointer in the source -> {bytes a thread: load instructions}

    def width(self, pointers):
        """Bytes of the widest load through one of those pointers, or None."""
        return max((size for pointer in pointers for size in self.loads.get(pointer, ())), default=None)


def parse_ptxas(text):
    """(registers, spill bytes, stack bytes) from what `ptxas -v` says of one kernel."""
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    stack, stores, loads = (int(x) for x in frame.groups())
    return int(re.search(r"Used (\d+) registers", text)[1]), stores + loads, stack


def parse_amdgcn(text):
    """(registers, spilt vector registers, scratch bytes) from the metadata that ends the assembly of one kernel.

    Scalar registers that find no place move into lanes of a vector register, not to memory: they are not counted.
    """
    names = (".vgpr_count", ".vgpr_spill_count", ".private_segment_fixed_size")
    return tuple(int(re.search(rf"^\s*{re.escape(name)}:\s*(\d+)", text, re.MULTILINE)[1]) for name in names)


_AMD_BYTES = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def _load_bytes(line):
    """Bytes a thread that an instruction of PTX or AMD assembly loads from global memory, or None."""
    if found := re.search(r"\bld\.global\S*?(?:\.v(\d))?\.[bufs](\d+)\s", line):
        return int(found[1] or 1) * int(found[2]) // 8
    if found := re.search(r"\bcp\.async\.c[ag]\.shared\.global\S*\s[^,]*,[^,]*,\s*(0x[0-9a-f]+|\d+)", line):
        return int(found[1], 0)
    if found := re.search(r"\b(?:global|buffer)_load_(?:lds_)?[us]?(byte|short|dword(?:x\d)?)", line):
        return _AMD_BYTES[found[1]]
    return None


def parse_loads(assembly):
    """Resources.loads: which pointer an instruction loads through, the line of source says that it came from."""
    files, place, loads = {}, None, defaultdict(Counter)
    in_asm = settled = False  # LLVM counts the lines of an inline assembly on from its line of source: the first is it
    for line in assembly.splitlines():
        if found := re.match(r"\s*\.file\s+(\d+)\s+(.*)", line):
            files[found[1]] = "/".join(re.findall(r'"([^"]*)"', found[2]))
        elif "inline asm" in line:
            in_asm, settled = "begin inline asm" in line, False
        elif found := re.match(r"\s*\.loc\s+(\d+) (\d+)", line):
            place = place if settled else found.groups()
        else:
            settled = in_asm
            if size := _load_bytes(line):
                loads[place][size] += 1
    by_pointer = defaultdict(Counter)
    for place, widths in loads.items():  # PTX names its files at the end
        source = linecache.getline(files[place[0]], int(place[1])) if place else ""
        found = re.search(r"tl\.load\(\s*(\w+)", source)
        by_pointer[found[1] if found else "?"].update(widths)
    return {pointer: dict(widths) for pointer, widths in by_pointer.items()}


def run_ptxas(ptx, arch):
    """What ptxas says. Triton brings two of them; which one reads this PTX depends on its version."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        for tool in ("ptxas", "ptxas-blackwell"):
            command = [folder / tool, "-v", "--gpu-name", name, source.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stderr
    raise RuntimeError(f"ptxas for {name}: {done.stderr}")


def resources(launch, target):
    """The :class:`Resources` of a launch's kernel on one of TARGETS."""
    options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in launch.options}
    types, constants = dict(launch.types), dict(launch.constants)
    where = TARGETS[target]
    kernel = compile_kernel(launch.function, types, constants, where, divisible_by_16=launch.divisible, **options)
    if where.backend == "cuda":
        assembly = kernel.asm["ptx"]
        taken = parse_ptxas(run_ptxas(assembly, where.arch))
    else:
        assembly = kernel.asm["amdgcn"]
        taken = parse_amdgcn(assembly)
    return Resources(*taken, kernel.metadata.shared, parse_loads(assembly))


class Row(NamedTuple):
    """A compiled kernel, and the first of the cases that launch it."""

    kernel: str
    case: str
    streams: tuple  # names of pointers to what the op has most of
    target: str
    launches: int  # of Triton kernels in one call
    torch_ops: int  # launched beside them
    resources: Resources


def compile_all(wanted, targets=tuple(TARGETS)):
    """A :class:`Row` for every different kernel of the cases and every target."""
    jobs = {}
    backends = sorted({TARGETS[target].backend for target in targets})
    for case in wanted:
        inputs = case.make("cpu")
        for backend in backends:
            recording = record(case.op, inputs, backend)
            for launch in recording.launches:
                kernel = replace(launch, programs=0)  # the grid does not change the code
                for target in targets:
                    if TARGETS[target].backend == backend:
                        jobs.setdefault((kernel, target), (case, recording))
    with ThreadPoolExecutor(2) as pool:  # the compilers run outside Python's lock
        results = list(pool.map(lambda job: resources(*job), jobs))
    return [
        Row(kernel.function.__name__, str(case), case.op.streams, target, len(made.launches), made.torch_ops, found)
        for ((kernel, target), (case, made)), found in zip(jobs.items(), results, strict=True)
    ]
