"""Executes the PTX that Triton emits, on CPU tensors, with no GPU: a SIMT interpreter in numpy for tests.

It finds stray and misaligned accesses, write conflicts between CTAs, races between warps, uninitialised reads,
divergent barriers and shuffles from inactive lanes, and it counts instructions, memory requests, sectors and the
reads of every byte. It says nothing about ptxas and the machine code it makes, about time, or about the rounding of
the hardware's approximate functions and tensor cores.

    kernel = compile_ptx(function, {"x": "*fp32", "n": "i32"}, {"BLOCK": 1024}, sm=90)
    report = launch(kernel, (4,), x, 1000)

    with Device(sm=90) as device:  # Triton launches on CPU tensors are executed here
        y = code_that_launches_kernels(x)
    device.launches[0].report
"""

from . import errors
from .compile import Kernel, compile_for, compile_ptx, run
from .device import Device, intercept
from .launch import Report, launch

__all__ = ["Device", "Kernel", "Report", "compile_for", "compile_ptx", "errors", "intercept", "launch", "run"]
