"""Compile a Triton function to PTX for a GPU that need not be present."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Kernel, Report, launch


def _check_compilable(function: triton.JITFunction) -> None:
    if not isinstance(function, triton.JITFunction):
        raise TypeError(f"{function} is not a triton.jit function; was TRITON_INTERPRET set when it was decorated?")


def compile_kernel(
    function: triton.JITFunction,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    target: GPUTarget,
    num_warps: int = 4,
    divisible_by_16: Sequence[str] = (),
    fp_fusion: bool = False,
    **options: Any,
) -> Any:
    """Compile a triton.jit function for a GPUTarget and return Triton's compiled kernel.

    Args:
        function: the triton.jit function.
        signature: Triton types ("*bf16", "i32", "fp32") of the run-time arguments, by name.
        constexprs: values of the other arguments, by name.
        target: the GPU to compile for.
        num_warps: warps per CTA.
        divisible_by_16: names of the pointers and integers that Triton may assume to be multiples of 16, as its own
            launcher would; vector loads depend on it.
        fp_fusion: whether the compiler may contract a * b + c. Always passed on, since Triton's default differs
            between versions.
        options: further options of Triton (num_stages, maxnreg).

    Raises:
        TypeError: `function` is not a triton.jit function, or an argument is not in exactly one of signature and
            constexprs.
    """
    _check_compilable(function)
    names = function.arg_names
    if missing := set(names) ^ set(signature) ^ set(constexprs):
        raise TypeError(f"arguments {sorted(missing)} are not in exactly one of signature and constexprs")
    types = {name: signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible_by_16}
    return triton.compile(
        ASTSource(function, types, constexprs, attributes),
        target=target,
        options={"num_warps": num_warps, "enable_fp_fusion": fp_fusion, **options},
    )


def compile_ptx(
    function: triton.JITFunction,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    sm: int,
    *positional: Any,
    **options: Any,
) -> Kernel:
    """Call :func:`compile_kernel` for compute capability `sm` (80, 90 or 100) and return a Kernel to launch."""
    compiled = compile_kernel(function, signature, constexprs, GPUTarget("cuda", sm, 32), *positional, **options)
    return Kernel(
        ptx=compiled.asm["ptx"],
        name=compiled.metadata.name,
        argument_names=tuple(name for name in function.arg_names if name in signature),
        shared_bytes=compiled.metadata.shared,
        sm=sm,
    )


_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint64: "u64",
    torch.uint32: "u32",
    torch.uint16: "u16",
    torch.uint8: "u8",
    torch.bool: "i1",
}


class Specialisation(NamedTuple):
    """The arguments of :func:`compile_kernel` that follow from a launch's arguments."""

    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible_by_16: list[str]


def specialise(function: triton.JITFunction, arguments: Mapping[str, Any]) -> Specialisation:
    """Derive signature, constexprs and divisibility from arguments given by name, as Triton's launcher does.

    Unlike the launcher, it does not specialise for integers equal to 1.
    """
    _check_compilable(function)
    if wrong := set(function.arg_names) ^ set(arguments):
        raise TypeError(f"arguments {sorted(wrong)} are missing, or are not arguments of the function")
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    divisible: list[str] = []
    for parameter in function.params:
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr:
            fixed[name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            alignment = value.storage_offset() * value.element_size()
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            alignment = value
        else:
            signature[name], alignment = "fp32", 1
        if alignment % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
            divisible.append(name)
    return Specialisation(signature, fixed, divisible)


def compile_for(
    function: triton.JITFunction,
    arguments: Mapping[str, Any],
    sm: int,
    num_warps: int = 4,
    fp_fusion: bool = False,
    **options: Any,
) -> Kernel:
    """Compile for arguments given by name, constexprs included."""
    signature, fixed, divisible = specialise(function, arguments)
    return compile_ptx(function, signature, fixed, sm, num_warps, divisible, fp_fusion, **options)


def run(
    function: triton.JITFunction,
    grid: Sequence[int],
    arguments: Mapping[str, Any],
    sm: int,
    num_warps: int = 4,
    fp_fusion: bool = False,
    options: Mapping[str, Any] | None = None,
    **launch_options: Any,
) -> Report:
    """Compile for arguments given by name (constexprs included) and launch."""
    kernel = compile_for(function, arguments, sm, num_warps, fp_fusion, **(options or {}))
    return launch(kernel, grid, *(arguments[name] for name in kernel.argument_names), **launch_options)
