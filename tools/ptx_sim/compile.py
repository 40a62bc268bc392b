"""Compiles a Triton function to PTX for a GPU that need not be there."""

from dataclasses import dataclass, replace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import launch


@dataclass(frozen=True)
class Kernel:
    """PTX and what a launch of it needs."""

    ptx: str
    name: str
    argument_names: tuple  # of the Triton function, constexprs left out
    shared_bytes: int
    sm: int

    def with_ptx(self, ptx):
        return replace(self, ptx=ptx)


def _check_compilable(function):
    if not isinstance(function, triton.JITFunction):
        raise TypeError(f"{function} is no triton.jit function; was TRITON_INTERPRET set when it was decorated?")


def compile_kernel(
    function, signature, constexprs, target, num_warps=4, divisible_by_16=(), fp_fusion=False, **options
):
    """Compiles `function` (a triton.jit function) for a triton GPUTarget; returns Triton's compiled kernel.

    `signature` maps the arguments that remain at run time to Triton types ("*bf16", "i32", "fp32"), `constexprs` the
    others to values. `divisible_by_16` names pointers and integers that Triton may assume to be multiples of 16, as
    its own launcher would find them; vector loads depend on it. `fp_fusion` lets the compiler contract a * b + c: it
    is always passed on, since Triton's default differs between versions. Further options (num_stages, maxnreg) go to
    Triton.
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


def compile_ptx(function, signature, constexprs, sm, *how, **options):
    """:func:`compile_kernel` for compute capability sm: 80, 90 or 100; returns a :class:`Kernel` to launch."""
    compiled = compile_kernel(function, signature, constexprs, GPUTarget("cuda", sm, 32), *how, **options)
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


def specialise(function, arguments):
    """(signature, constexprs, divisible_by_16) of given arguments, by name, as Triton's launcher finds them.

    Unlike the launcher it does not specialise for integers equal to 1.
    """
    _check_compilable(function)
    if wrong := set(function.arg_names) ^ set(arguments):
        raise TypeError(f"arguments {sorted(wrong)} are missing, or not the function's")
    signature, fixed, divisible = {}, {}, []
    for parameter in function.params:
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr:
            fixed[name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            place = value.storage_offset() * value.element_size()
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            place = value
        else:
            signature[name], place = "fp32", 1
        if place % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
            divisible.append(name)
    return signature, fixed, divisible


def compile_for(function, arguments, sm, num_warps=4, fp_fusion=False, **options):
    """compile_ptx for given arguments, by name."""
    signature, fixed, divisible = specialise(function, arguments)
    return compile_ptx(function, signature, fixed, sm, num_warps, divisible, fp_fusion, **options)


def run(function, grid, arguments, sm, num_warps=4, fp_fusion=False, options=None, **how):
    """Compiles for the arguments (by name, constexprs included) and launches; `how` goes to launch."""
    kernel = compile_for(function, arguments, sm, num_warps, fp_fusion, **(options or {}))
    return launch(kernel, grid, *(arguments[name] for name in kernel.argument_names), **how)
