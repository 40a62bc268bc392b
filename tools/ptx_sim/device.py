"""A stand-in for a GPU: within `with Device(sm=90)`, the interpreter executes Triton launches on CPU tensors.

A test can thus call the function that users call, including the grids, scratch memory and launches that it chooses.
What the function allocates with torch.empty and the like is filled with NaN (integers: with their maximum) and counts
as unwritten.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from .compile import compile_for
from .launch import Kernel, Report, launch
from .types import Array

OnLaunch = Callable[[triton.JITFunction, tuple[int, ...], dict[str, Any], dict[str, Any]], None]


@contextmanager
def intercept(on_launch: OnLaunch) -> Iterator[None]:
    """Replace launches of Triton kernels by calls of on_launch(function, grid, arguments by name, options)."""

    def run(self: triton.JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = {parameter.name: parameter.default for parameter in self.params if parameter.has_default}
        arguments |= dict(zip(self.arg_names, args, strict=False))
        arguments |= {name: kwargs.pop(name) for name in self.arg_names if name in kwargs}
        on_launch(self, tuple(grid(arguments) if callable(grid) else grid), arguments, kwargs)

    with mock.patch.object(triton.JITFunction, "run", run):
        yield


class _Fresh(TorchDispatchMode):
    """Poison what is allocated without being written."""

    def __init__(self, note: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty"):
            result.fill_(torch.nan if result.is_floating_point() else torch.iinfo(result.dtype).max)
            self._note(result)
        return result


@dataclass(frozen=True)
class Launch:
    """One launch that a Device executed."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    report: Report


class Device:
    """A context in which Triton launches on CPU tensors are executed by the interpreter.

    Args:
        sm: compute capability to compile for: 80, 90 or 100.
        mutate: function from PTX to PTX, applied to every launch; used to inject faults.
        launch_options: passed on to :func:`launch`.

    Attributes:
        launches: the launches executed so far.
    """

    def __init__(self, sm: int, mutate: Callable[[str], str] | None = None, **launch_options: Any) -> None:
        self._sm, self._mutate, self._launch_options = sm, mutate, launch_options
        self._written: dict[int, Array] = {}  # bool [bytes] per storage allocated in the context, by its address
        self._alive: list[torch.Tensor] = []  # keeps addresses from being reused
        self.launches: list[Launch] = []

    def __enter__(self) -> "Device":
        self._stack = ExitStack()
        self._stack.enter_context(intercept(self._launch))
        self._stack.enter_context(_Fresh(self._note))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._written[storage.data_ptr()] = np.zeros(storage.nbytes(), np.bool_)
        self._alive.append(tensor)

    def _launch(
        self,
        function: triton.JITFunction,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
        kernel = compile_for(function, arguments, self._sm, **options)
        kernel = kernel if self._mutate is None else kernel.with_ptx(self._mutate(kernel.ptx))
        given = {name: arguments[name] for name in kernel.argument_names}
        fresh = {name: x.untyped_storage().data_ptr() for name, x in given.items() if isinstance(x, torch.Tensor)}
        fresh = {name: at for name, at in fresh.items() if at in self._written and given[name].numel()}
        unwritten = {name: self._written[at] for name, at in fresh.items()}
        report = launch(kernel, grid, *given.values(), uninitialised=unwritten, **self._launch_options)
        for name, at in fresh.items():
            self._written[at] = report.initialised(name)
        self.launches.append(Launch(kernel, grid, given, report))
