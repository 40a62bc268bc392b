"""Stands in for a GPU: within `with Device(sm=90)`, launches of Triton kernels on CPU tensors are executed here.

So a test calls the function that users call, with all that it decides: grids, scratch memory, several launches. What
it allocates with torch.empty and its like is filled with NaN (integers: their greatest) and known to be unwritten.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from .compile import Kernel, compile_for
from .launch import Report, launch


@contextmanager
def intercept(on_launch):
    """Within it, a launch of a Triton kernel calls on_launch(function, grid, arguments by name, options) instead."""

    def run(self, *args, grid, warmup, **kwargs):
        arguments = {parameter.name: parameter.default for parameter in self.params if parameter.has_default}
        arguments |= dict(zip(self.arg_names, args, strict=False))
        arguments |= {name: kwargs.pop(name) for name in self.arg_names if name in kwargs}
        on_launch(self, tuple(grid(arguments) if callable(grid) else grid), arguments, kwargs)

    with mock.patch.object(triton.JITFunction, "run", run):
        yield


class _Fresh(TorchDispatchMode):
    """Poisons what is allocated and not written."""

    def __init__(self, note):
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty"):
            result.fill_(torch.nan if result.is_floating_point() else torch.iinfo(result.dtype).max)
            self._note(result)
        return result


@dataclass(frozen=True)
class Launch:
    kernel: Kernel
    grid: tuple
    arguments: dict
    report: Report


class Device:
    """`mutate` changes the PTX of every launch; `how` goes to launch()."""

    def __init__(self, sm, mutate=None, **how):
        self._sm, self._mutate, self._how = sm, mutate, how
        self._written = {}  # storage address -> bool [bytes], of what was allocated within
        self._alive = []  # so that no address is given twice
        self.launches = []

    def __enter__(self):
        self._stack = ExitStack()
        self._stack.enter_context(intercept(self._launch))
        self._stack.enter_context(_Fresh(self._note))
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def _note(self, tensor):
        storage = tensor.untyped_storage()
        self._written[storage.data_ptr()] = np.zeros(storage.nbytes(), np.bool_)
        self._alive.append(tensor)

    def _launch(self, function, grid, arguments, options):
        options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
        kernel = compile_for(function, arguments, self._sm, **options)
        kernel = kernel if self._mutate is None else kernel.with_ptx(self._mutate(kernel.ptx))
        given = {name: arguments[name] for name in kernel.argument_names}
        fresh = {name: x.untyped_storage().data_ptr() for name, x in given.items() if isinstance(x, torch.Tensor)}
        fresh = {name: at for name, at in fresh.items() if at in self._written and given[name].numel()}
        unwritten = {name: self._written[at] for name, at in fresh.items()}
        report = launch(kernel, grid, *given.values(), uninitialised=unwritten, **self._how)
        for name, at in fresh.items():
            self._written[at] = report.initialised(name)
        self.launches.append(Launch(kernel, grid, given, report))
