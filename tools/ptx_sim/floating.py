"""Floating-point arithmetic: f32, f64, f16, bf16, and f16, bf16 and f32 packed in pairs.

Every operation rounds once, as IEEE 754 and the PTX manual require. The approximate ones (ex2.approx, lg2.approx,
div.full and so on) are correctly rounded too: the errors of the hardware's approximations are not modelled.
"""

import numpy as np

from .lanes import Step
from .operands import Op, semantics
from .rounding import INTEGRAL, decode, encode, fma_f32, fma_f64, odd_sum, round_to
from .types import FLOATS, Array, Function

_TINY = np.float32(np.finfo(np.float32).tiny)


def flush(values: Array) -> Array:
    """Replace subnormal float32 numbers by zeros of their sign, as .ftz does."""
    subnormal = np.abs(values) < _TINY
    return np.where(subnormal, np.copysign(np.float32(0), values), values) if subnormal.any() else values


def _zeros_ordered(pick: Function, prefers_negative: bool) -> Function:
    """Return fmax or fmin with -0 ordered below +0."""

    def function(a: Array, b: Array) -> Array:
        negative = np.signbit(a) if prefers_negative else ~np.signbit(a)
        return np.where((a == 0) & (b == 0), np.where(negative, a, b), pick(a, b))

    return function


_MAX, _MIN = _zeros_ordered(np.fmax, False), _zeros_ordered(np.fmin, True)
_MAX_NAN, _MIN_NAN = _zeros_ordered(np.maximum, False), _zeros_ordered(np.minimum, True)

_EXACT_SIGN: dict[str, Function] = {"neg": np.negative, "abs": np.abs}
_ROUNDED: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
# The same in float64 with rounding to odd, so that a second rounding to a narrower format gives the result of a single
# one. Quotients and roots of narrower numbers are never so close to a tie that float64 misses it.
_ODD: dict[str, Function] = {
    "add": odd_sum,
    "sub": lambda a, b: odd_sum(a, -b),
    "mul": np.multiply,
    "div": np.divide,
    "fma": lambda a, b, c: odd_sum(a * b, c),
}
_FUNCTIONS: dict[str, Function] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
_ROUNDINGS = tuple(INTEGRAL)


def _extremum(op: Op) -> Function:
    """Return max or min of two or three numbers.

    With .xorsign.abs, it is the extremum of the absolute values, with the product of the signs as its sign.
    """
    table = {("max", False): _MAX, ("max", True): _MAX_NAN, ("min", False): _MIN, ("min", True): _MIN_NAN}
    two = table[op.instruction.family, op.has("NaN")]
    if op.has("xorsign"):

        def signed(a: Array, b: Array) -> Array:
            size = two(np.abs(a), np.abs(b))
            return np.where(np.signbit(a) != np.signbit(b), -size, size)

        return signed
    return lambda first, *rest: two(first, rest[0] if len(rest) == 1 else two(*rest))


def float_arithmetic(op: Op) -> Step:
    """Compile add, sub, mul, div, min, max, neg or abs of a float type; integer.py delegates these."""
    family = op.instruction.family
    if family in ("max", "min"):
        op.allow("ftz", "NaN", "xorsign", "abs", count=(3, 4))
        return _on_format(op, _extremum(op), _extremum(op))
    if family in _EXACT_SIGN:
        op.allow("ftz", count=2)
        return _on_format(op, _EXACT_SIGN[family], _EXACT_SIGN[family])
    if family in ("add", "sub") and op.type in ("f16", "bf16") and op.has("f32"):
        return _widened(op)
    op.allow("ftz", "full", "approx", *_ROUNDINGS, count=3)
    return _on_format(op, _ROUNDED[family], _ODD[family])


def _widened(op: Op) -> Step:
    """Compile add.f32.bf16 and the like (sm_100): the first operand is converted to f32, which is exact."""
    op.allow("f32", *_ROUNDINGS, count=3)
    family, name = op.instruction.family, op.type
    in_float32 = _in_float32(_ROUNDED[family], _ODD[family], op.one_of(_ROUNDINGS, "rn"), False, False)

    def function(narrow: Array, wide: Array) -> Array:
        return in_float32(decode(narrow.view(np.uint16), name).astype(np.float32), wide)

    return op.compute(function, op.source(1, name), op.source(2, "f32"))


@semantics("fma")
def fused_multiply_add(op: Op) -> Step:
    op.allow("ftz", *_ROUNDINGS, count=4)
    return _on_format(op, fma_f64 if op.type == "f64" else fma_f32, _ODD["fma"])


@semantics(*_FUNCTIONS)
def function_of_one(op: Op) -> Step:
    op.allow("ftz", "approx", *_ROUNDINGS, count=2)
    function = _FUNCTIONS[op.instruction.family]
    if op.type == "f32":  # through float64, since NumPy's float32 functions are approximations
        return _on_format(op, lambda x: function(x.astype(np.float64)).astype(np.float32), function)
    return _on_format(op, function, function)


@semantics("copysign")
def copy_sign(op: Op) -> Step:
    op.allow(count=3)

    def function(sign: Array, value: Array) -> Array:
        return np.copysign(value, sign)

    return _on_format(op, function, function)


@semantics("testp")
def has_property(op: Op) -> Step:
    op.allow("finite", "infinite", "number", "notanumber", count=2)
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "notanumber": np.isnan,
        "number": lambda x: ~np.isnan(x),
    }
    return op.compute(tests[op.qualifiers[0]], op.source(1, op.typed()))


def _on_format(op: Op, native: Function, exact: Function) -> Step:
    """Return the step that applies `native` in float32 or float64, or `exact` in float64 followed by one rounding."""
    if op.typed() not in FLOATS:
        raise op.unknown(f"type .{op.type}")
    mode = op.one_of(_ROUNDINGS, "rn")
    readers = op.sources(op.type)
    if op.type in ("f32", "f32x2"):
        return op.compute(_in_float32(native, exact, mode, op.has("ftz"), op.type == "f32x2"), *readers)
    if op.has("ftz") and "bf16" in op.type:
        raise op.unknown("qualifier .ftz")
    if op.type == "f64":
        if mode != "rn" and op.instruction.family in _ROUNDED | {"fma": None}:
            raise op.unknown(f"rounding .{mode} of f64")
        return op.compute(native, *readers)
    name = op.type.removesuffix("x2")

    def halves(*words: Array) -> Array:
        values = [decode(word.view(np.uint16), name) for word in words]
        result = exact(*values)
        if op.has("ftz"):
            result = np.where(np.abs(result) < 2.0**-14, np.copysign(0.0, result), result)
        return encode(result, name, mode).view(words[0].dtype)

    return op.compute(halves, *readers)


def _in_float32(native: Function, exact: Function, mode: str, ftz: bool, packed: bool) -> Function:
    def function(*operands: Array) -> Array:
        values = [value.view(np.float32) if packed else value for value in operands]
        if ftz:
            values = [flush(value) for value in values]
        if mode == "rn":
            result = native(*values)
        else:
            result = round_to(exact(*[value.astype(np.float64) for value in values]), "f32", mode).astype(np.float32)
        if ftz:
            result = flush(result)
        return result.view(np.uint64) if packed else result

    return function
