"""Compile the kernels without a GPU, and read registers, spills, shared memory and load widths.

An op is called as on a GPU, its launches are recorded, and each is compiled. The numbers come from ptxas and LLVM.
"""

import ast
import contextlib
import linecache
import math
import re
import subprocess
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from benchmarks.ops.cases import Case
from benchmarks.ops.op import Inputs, Op
from cdgen_kernels.triton import arrivals
from tools.ptx_sim import Device, intercept
from tools.ptx_sim.compile import compile_kernel, specialise

__all__ = ["TARGETS", "Device", "Launch", "Resources", "Row", "compile_all", "record", "resources"]

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}


# ---------------------------------------------------------------------------------------------------------- launches


@dataclass(frozen=True)
class Launch:
    """One launch as Triton would specialise it. Hashable."""

    function: triton.JITFunction
    types: tuple[tuple[str, str], ...]  # sorted (argument, Triton type)
    constants: tuple[tuple[str, Any], ...]  # sorted (argument, value)
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    options: tuple[tuple[str, Any], ...]  # sorted (option, value)
    programs: int


class _TorchOps(TorchDispatchMode):
    """Counts the torch ops that would launch a kernel: all but allocations and views."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        allocates = function.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty")
        outputs = result if isinstance(result, tuple) else (result,)
        writes = any(isinstance(x, torch.Tensor) and x.numel() for x in outputs)
        self.count += writes and not (allocates or function.is_view)
        return result


class Recording(NamedTuple):
    """What one call of an op launches."""

    launches: list[Launch]
    torch_ops: int  # kernels of torch, launched in addition


def record(op: Op, inputs: Inputs, backend: str = "cuda") -> Recording:
    """Call the op and record its launches; it decides as it would on that backend."""
    launches: list[Launch] = []
    for count in (0, 1):  # they are allocated once, not in each call
        arrivals.counters(torch.device("cpu"), count)

    def note(
        function: triton.JITFunction, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]
    ) -> None:
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


# --------------------------------------------------------------------------------------------------------- resources


@dataclass(frozen=True)
class Resources:
    """The resources that a compiled kernel takes."""

    registers: int
    spill: int  # bytes of stores and loads; on AMD the number of spilled vector registers
    stack: int  # bytes per thread
    shared: int  # bytes
    loads: dict[str, dict[int, int]]  # name of the pointer in the source -> {bytes per thread: load instructions}

    def width(self, pointers: Iterable[str]) -> int | None:
        """Return the bytes per thread of the widest load through one of those pointers, or None."""
        return max((size for pointer in pointers for size in self.loads.get(pointer, ())), default=None)


def _numbers(pattern: str, text: str) -> list[int]:
    """Return the groups of the first match as integers."""
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise LookupError(f"the compiler's output has no match for {pattern}")
    return [int(x) for x in found.groups()]


def parse_ptxas(text: str) -> tuple[int, int, int]:
    """Return (registers, spill bytes, stack bytes) from the output of `ptxas -v` for one kernel."""
    stack, stores, loads = _numbers(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    (registers,) = _numbers(r"Used (\d+) registers", text)
    return registers, stores + loads, stack


def parse_amdgcn(text: str) -> tuple[int, int, int]:
    """Return (registers, spilled vector registers, scratch bytes) from the metadata at the end of a kernel's assembly.

    Scalar registers spill into lanes of a vector register, not to memory, so they are not counted.
    """
    names = (".vgpr_count", ".vgpr_spill_count", ".private_segment_fixed_size")
    registers, spill, scratch = (_numbers(rf"^\s*{re.escape(name)}:\s*(\d+)", text)[0] for name in names)
    return registers, spill, scratch


_AMD_BYTES = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def _load_bytes(line: str) -> int | None:
    """Return the bytes per thread that an instruction of PTX or AMD assembly loads from global memory, or None."""
    if found := re.search(r"\bld\.global\S*?(?:\.v(\d))?\.[bufs](\d+)\s", line):
        return int(found[1] or 1) * int(found[2]) // 8
    if found := re.search(r"\bcp\.async\.c[ag]\.shared\.global\S*\s[^,]*,[^,]*,\s*(0x[0-9a-f]+|\d+)", line):
        return int(found[1], 0)
    if found := re.search(r"\b(?:global|buffer)_load_(?:lds_)?[us]?(byte|short|dword(?:x\d)?)", line):
        return _AMD_BYTES[found[1]]
    return None


def parse_loads(assembly: str) -> dict[str, dict[int, int]]:
    """Return `Resources.loads`. The name of a pointer is read from the line of source that an instruction refers to."""
    files: dict[str, str] = {}
    place: tuple[str, ...] | None = None
    loads: dict[tuple[str, ...] | None, Counter[int]] = defaultdict(Counter)
    in_asm = settled = False  # LLVM counts lines of inline assembly as lines of source: only the first number is right
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
    by_pointer: dict[str, Counter[int]] = defaultdict(Counter)
    for place, widths in loads.items():  # PTX names its files at the end
        source = linecache.getline(files[place[0]], int(place[1])) if place else ""
        found = re.search(r"tl\.load\(\s*(?:\w+\.)*(\w+)", source)
        by_pointer[found[1] if found else "?"].update(widths)
    return {pointer: dict(widths) for pointer, widths in by_pointer.items()}


def run_ptxas(ptx: str, arch: int) -> str:
    """Return the output of `ptxas -v`. Triton ships two of them; which one reads this PTX depends on its version."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        for tool in ("ptxas", "ptxas-blackwell"):
            command = [str(folder / tool), "-v", "--gpu-name", name, source.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stderr
    raise RuntimeError(f"ptxas for {name}: {done.stderr}")


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Ignore Triton's cache: assembly in it names lines of source files that may have moved, or are gone."""
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile = True
        yield


def resources(launch: Launch, target: str) -> Resources:
    """Compile the kernel of a launch for one of TARGETS, in :func:`compiled_anew`; return its :class:`Resources`."""
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
    """A compiled kernel, and the first case that launches it."""

    kernel: str
    case: str
    streams: tuple[str, ...]  # names of the pointers through which the op reads most
    target: str
    launches: int  # Triton kernels per call
    torch_ops: int  # kernels of torch per call
    resources: Resources


_parse, _parsing = ast.parse, threading.Lock()


def _parse_alone(*arguments: Any, **options: Any) -> ast.AST:
    """Parse in one thread at a time: CPython 3.11 counts the recursion of all threads together, and then raises."""
    with _parsing:
        return _parse(*arguments, **options)


def compile_all(wanted: Iterable[Case], targets: Sequence[str] = tuple(TARGETS)) -> list[Row]:
    """Compile every distinct kernel of the cases for every target."""
    jobs: dict[tuple[Launch, str], tuple[Case, Recording]] = {}
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
    # The compilers run outside Python's lock.
    with compiled_anew(), mock.patch.object(ast, "parse", _parse_alone), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: resources(*job), jobs))
    return [
        Row(kernel.function.__name__, str(case), case.op.streams, target, len(made.launches), made.torch_ops, found)
        for ((kernel, target), (case, made)), found in zip(jobs.items(), results, strict=True)
    ]
