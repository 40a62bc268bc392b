"""Registers ops with torch and decides, in this one place, which implementation runs.

Each op is `torch.ops.cdgen.<name>` and is described by one :class:`OpSpec`; :mod:`cdgen_kernels.specs` lists them all.
Implementations are named by module and imported at the first call, so importing the package does not import Triton.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

log = logging.getLogger("cdgen")


class Implementation(NamedTuple):
    """The implementation that runs on one device type."""

    name: str  # "reference", "cpp" or "triton"
    reason: str  # why this one was chosen


class Autograd(NamedTuple):
    """The arguments of torch.library.register_autograd."""

    backward: Callable[..., Any]
    setup_context: Callable[..., None]


def call_directly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an implementation with the arguments of its op; the default calling convention."""
    return function(*arguments)


@dataclass(frozen=True)
class OpSpec:
    """One op: its signature, its implementations and how to call them.

    `reference`, `triton` and `cpp` locate the implementations: `"module:function"` in `cdgen_kernels`, or `"module"` if
    the function has the name of the op.
    """

    name: str
    schema: str  # in torch's schema language, without the name
    fake: Callable[..., Any]  # returns empty outputs of the right shapes and dtypes
    triton: str
    reference: str = "reference"
    cpp: str | None = None  # None: the C++ extension registers the op for CPU tensors itself
    convention: Callable[..., Any] = call_directly  # calls (function, *arguments) and returns the op's outputs
    autograd: Autograd | None = None  # None: the op is not differentiable


OPS: dict[str, OpSpec] = {}  # every registered op by name


def implementation(device_type: str) -> Implementation:
    """Return which implementation runs for tensors of a device type, and why.

    Args:
        device_type: `"cpu"` or `"cuda"`.
    Returns:
        (name, reason): `"reference"`, `"cpp"` or `"triton"`, and one line that explains the choice.
    """
    return _DECISIONS[device_type]


def on_device_of_first(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `call` so that the device of its first argument is current: Triton launches on the current device."""

    @functools.wraps(call)
    def guarded(*arguments: Any) -> Any:
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            return call(*arguments)

    return guarded


def kernel(name: str, device_type: str) -> Callable[..., Any] | None:
    """Return the function that runs an op on a device type; None if the C++ extension has registered it."""
    spec = OPS[name]
    location = getattr(spec, _DECISIONS[device_type][0])  # OpSpec has one field for each implementation
    if location is None:
        return None
    module, _, function_name = location.partition(":")

    @functools.cache
    def function() -> Callable[..., Any]:
        # Import at the first call: Triton alone takes a second.
        return getattr(importlib.import_module(f"cdgen_kernels.{module}"), function_name or name)  # type: ignore[no-any-return]

    def call(*arguments: Any) -> Any:
        return spec.convention(function(), *arguments)

    return on_device_of_first(call) if device_type == "cuda" else call


def register(*specs: OpSpec) -> None:
    """Define each op, its fake and its derivative, and register the chosen implementation for each device type."""
    for spec in specs:
        OPS[spec.name] = spec
        name = f"cdgen::{spec.name}"
        torch.library.define(name, spec.schema)
        torch.library.register_fake(name)(spec.fake)
        for device_type in _DECISIONS:
            if function := kernel(spec.name, device_type):
                torch.library.impl(name, device_type.upper())(function)
        if spec.autograd:
            torch.library.register_autograd(name, spec.autograd.backward, setup_context=spec.autograd.setup_context)


def _load_extension() -> tuple[bool, str]:
    """Load the C++ extension, which registers its kernels for CPU tensors; return (whether it loaded, why)."""
    if importlib.util.find_spec("cdgen_kernels._C") is None:
        return (
            False,
            "the C++ extension is not built: install cdgen again, with torch and a C++ compiler present",
        )
    try:
        importlib.import_module("cdgen_kernels._C")
    except (ImportError, OSError) as error:
        return False, f"the C++ extension does not load: {error}"
    return True, "the C++ extension is loaded"


def _decide() -> dict[str, Implementation]:
    """Choose the implementation for each device type; the environment variable CDGEN_IMPL overrides the choice."""
    requested = os.environ.get("CDGEN_IMPL") or None
    if requested not in (None, "reference", "cpp", "triton"):
        raise ValueError(f"CDGEN_IMPL={requested}: no such implementation; use reference, cpp or triton, or unset it")
    if requested == "reference":
        return dict.fromkeys(("cpu", "cuda"), Implementation("reference", "CDGEN_IMPL is set"))
    loaded, reason = _load_extension()
    if requested == "cpp" and not loaded:
        raise ValueError(f"CDGEN_IMPL=cpp: {reason}")
    if requested == "triton":
        reason += "; CDGEN_IMPL=triton does not apply to the CPU"
    cuda = Implementation("triton", "Triton is installed")
    if importlib.util.find_spec("triton") is None:
        if requested == "triton":
            raise ValueError("CDGEN_IMPL=triton: Triton is not installed")
        cuda = Implementation("reference", "Triton is not installed")
    return {"cpu": Implementation("cpp" if loaded else "reference", reason), "cuda": cuda}


_DECISIONS = _decide()
for _device_type, (_name, _reason) in _DECISIONS.items():
    log.info("%s tensors: %s implementation (%s)", _device_type, _name, _reason)
