"""A SIMT interpreter in NumPy that executes the PTX emitted by Triton on CPU tensors, without a GPU.

It detects stray and misaligned accesses, write conflicts between CTAs, races between warps, uninitialised reads,
divergent barriers and shuffles from inactive lanes. It counts instructions, memory requests, sectors and the reads of
every byte. It says nothing about ptxas and its machine code, about time, or about the rounding of the hardware's
approximate functions and tensor cores. README.md describes it.

    kernel = compile_ptx(function, {"x": "*fp32", "n": "i32"}, {"BLOCK": 1024}, sm=90)
    report = launch(kernel, (4,), x, 1000)

    with Device(sm=90) as device:  # executes Triton launches on CPU tensors
        y = code_that_launches_kernels(x)
    device.launches[0].report
"""

from . import errors
from .compile import compile_for, compile_ptx, run
from .device import Device, intercept
from .launch import Kernel, Report, launch

__all__ = ["Device", "Kernel", "Report", "compile_for", "compile_ptx", "errors", "intercept", "launch", "run"]
