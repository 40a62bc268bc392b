"""Integer and bit operations: arithmetic, logic, shifts, bit fields, permutations.

Opcodes that integers and floats share are registered here and delegate floats to floating.py.
"""

import numpy as np

from .floating import float_arithmetic, fused_multiply_add
from .lanes import Lanes, Step
from .operands import Op, semantics
from .types import DTYPES, FLOATS, SIGNED, Array, Function, Mask, bits_type


def _bits(op: Op) -> int:
    return int(8 * np.dtype(DTYPES[op.typed()]).itemsize)


def _packed(function: Function, dtype: type[np.generic]) -> Function:
    """Return `function` applied to the two 16-bit halves of 32-bit registers."""
    return lambda *words: function(*[word.view(dtype) for word in words]).view(np.uint32)


_SIMPLE: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
}


@semantics(*_SIMPLE)
def simple(op: Op) -> Step:
    if op.type in FLOATS:
        return float_arithmetic(op)
    family = op.instruction.family
    if op.has("cc"):
        return with_carry(op)
    op.allow(count=2 if family in ("neg", "abs") else 3)
    function = _SIMPLE[family]
    if op.type in ("u16x2", "s16x2"):
        function = _packed(function, np.uint16 if op.type == "u16x2" else np.int16)
    return op.compute(function, *op.sources(op.typed()))


def _high(a: Array, b: Array) -> Array:
    """Return the upper half of the product; for 64 bits, from products of 32-bit halves."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.int64 if np.issubdtype(a.dtype, np.signedinteger) else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(bits)).astype(a.dtype)
    mask = np.uint64(0xFFFFFFFF)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x_low, x_high, y_low, y_high = x & mask, x >> np.uint64(32), y & mask, y >> np.uint64(32)
    middle = x_high * y_low + (x_low * y_low >> np.uint64(32))
    middle_low = (middle & mask) + x_low * y_high
    high = x_high * y_high + (middle >> np.uint64(32)) + (middle_low >> np.uint64(32))
    if a.dtype == np.int64:
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def _wide(a: Array, b: Array) -> Array:
    signed = np.issubdtype(a.dtype, np.signedinteger)
    wide = np.dtype(f"{'i' if signed else 'u'}{2 * a.dtype.itemsize}")
    return a.astype(wide) * b.astype(wide)


_PRODUCTS: dict[str, Function] = {"lo": np.multiply, "hi": _high, "wide": _wide}


@semantics("mul")
def multiply(op: Op) -> Step:
    if op.type in FLOATS:
        return float_arithmetic(op)
    op.allow("lo", "hi", "wide", count=3)
    return op.compute(_PRODUCTS[op.qualifiers[0]], *op.sources(op.typed()))


@semantics("mad")
def multiply_add(op: Op) -> Step:
    if op.type in FLOATS:
        return fused_multiply_add(op)
    if op.has("cc"):
        return with_carry(op)
    op.allow("lo", "hi", "wide", count=4)
    kind = op.qualifiers[0]
    product = _PRODUCTS[kind]
    addend_type = f"{op.typed()[0]}{2 * _bits(op)}" if kind == "wide" else op.typed()
    a, b = op.sources(op.typed(), 1, 3)
    return op.compute(lambda x, y, z: product(x, y) + z, a, b, op.source(3, addend_type))


@semantics("addc", "subc", "madc")
def with_carry(op: Op) -> Step:
    """Compile 32-bit multi-word arithmetic: .cc writes the carry, the ...c opcodes read it. For sub it is a borrow."""
    family = op.instruction.family
    product = _PRODUCTS[op.one_of(("lo", "hi"))] if family.startswith("mad") else None
    op.allow("cc", "lo", "hi", count=4 if product else 3)
    if op.typed() not in ("u32", "s32"):
        raise op.unknown(f"type .{op.type}")
    takes, leaves, write = family.endswith("c"), op.has("cc"), op.target()
    readers = op.sources(op.type)

    def step(lanes: Lanes, mask: Mask) -> None:
        values = [read(lanes) for read in readers]
        if product:
            values[:2] = [product(*values[:2])]
        a, b = (value.view(np.uint32).astype(np.int64) for value in values)
        carry = lanes.carry if takes else 0
        total = a - b - carry if family.startswith("sub") else a + b + carry
        write(lanes, total.astype(np.uint32), mask)
        if leaves:
            spilled = (total >> 32 != 0).astype(np.int64)
            lanes.carry = spilled if mask is None else np.where(mask, spilled, lanes.carry)

    return step


@semantics("div")
def divide(op: Op) -> Step:
    if op.type in FLOATS:
        return float_arithmetic(op)
    op.allow(count=3)
    return op.compute(_quotient, *op.sources(op.typed()))


@semantics("rem")
def remainder(op: Op) -> Step:
    op.allow(count=3)
    return op.compute(lambda a, b: a - _quotient(a, b) * b, *op.sources(op.typed()))


def _quotient(a: Array, b: Array) -> Array:
    """Divide, truncating towards zero. Division by zero gives all ones, as on the hardware."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    floor = a // safe
    quotient = floor + ((a - floor * safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, ~b.dtype.type(0), quotient)


@semantics("and", "or", "xor", "not")
def logic(op: Op) -> Step:
    op.allow(count=2 if op.instruction.family == "not" else 3)
    functions: dict[str, Function] = {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "not": np.invert,
    }
    return op.compute(functions[op.instruction.family], *op.sources(op.typed()))


@semantics("lop3")
def logic_of_three(op: Op) -> Step:
    op.allow(count=5)
    table = int(op.operands[4], 0)

    def function(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            if table >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return op.compute(function, *op.sources(op.typed(), 1, 4))


@semantics("shl", "shr")
def shift(op: Op) -> Step:
    op.allow(count=3)
    bits, left = _bits(op), op.instruction.family == "shl"
    last = bits - 1

    def function(values: Array, amount: Array) -> Array:
        dtype = values.dtype.type
        kept = np.minimum(amount, last).astype(values.dtype)
        if left:
            return np.where(amount > last, dtype(0), values << kept)
        shifted = values >> kept
        return shifted if np.issubdtype(dtype, np.signedinteger) else np.where(amount > last, dtype(0), shifted)

    return op.compute(function, op.source(1, op.typed()), op.source(2, "u32"))


@semantics("shf")
def funnel_shift(op: Op) -> Step:
    """Compile shf: the upper (left) or lower (right) word of {b, a} shifted by c."""
    op.allow("l", "r", "wrap", "clamp", count=4)
    left, wraps = op.has("l"), op.has("wrap")

    def function(low: Array, high: Array, amount: Array) -> Array:
        both = high.astype(np.uint64) << np.uint64(32) | low
        amount = (amount & np.uint32(31) if wraps else np.minimum(amount, 32)).astype(np.uint64)
        return (both << amount >> np.uint64(32) if left else both >> amount).astype(np.uint32)

    return op.compute(function, *op.sources(op.typed()))


@semantics("bfe")
def extract_field(op: Op) -> Step:
    op.allow(count=4)
    bits = _bits(op)
    signed = op.typed().startswith("s")

    def function(values: Array, position: Array, length: Array) -> Array:
        position, length = (x.astype(np.int64) & 255 for x in (position, length))
        wide = values.view(SIGNED[values.dtype.itemsize]) if signed else values
        # An arithmetic shift supplies the sign bits of a field that extends beyond the value's top.
        moved = wide >> np.minimum(position, bits - 1).astype(wide.dtype)
        if not signed:
            moved = np.where(position >= bits, wide.dtype.type(0), moved)
        spare = np.clip(bits - length, 0, bits - 1).astype(wide.dtype)
        return np.where(length == 0, wide.dtype.type(0), moved << spare >> spare)

    return op.compute(function, op.source(1, op.type), op.source(2, "u32"), op.source(3, "u32"))


@semantics("bfi")
def insert_field(op: Op) -> Step:
    op.allow(count=5)
    bits = _bits(op)

    def function(field: Array, base: Array, position: Array, length: Array) -> Array:
        dtype = base.dtype.type
        position, length = (x.astype(np.int64) & 255 for x in (position, length))
        ones = np.where(length >= bits, ~dtype(0), (dtype(1) << np.minimum(length, bits - 1).astype(dtype)) - dtype(1))
        place = np.minimum(position, bits - 1).astype(dtype)
        mask = np.where(position >= bits, dtype(0), ones << place)
        return base & ~mask | field << place & mask

    bits_name = bits_type(op.type)
    return op.compute(function, *op.sources(bits_name, 1, 3), op.source(3, "u32"), op.source(4, "u32"))


@semantics("prmt")
def permute_bytes(op: Op) -> Step:
    op.allow(count=4)

    def function(a: Array, b: Array, selector: Array) -> Array:
        source = np.stack([a, b], 1).view(np.uint8)  # [lanes, 8]
        nibbles = selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32) & np.uint32(15)
        picked = np.take_along_axis(source, (nibbles & 7).astype(np.int64), 1)
        signs = np.where(picked & 0x80, np.uint8(0xFF), np.uint8(0))
        return np.where(nibbles & 8, signs, picked).view(np.uint32)[:, 0]

    return op.compute(function, *op.sources(op.typed()))


@semantics("popc")
def count_ones(op: Op) -> Step:
    op.allow(count=2)
    return op.compute(lambda values: np.bitwise_count(values).astype(np.uint32), *op.sources(op.typed()))


@semantics("clz")
def count_leading_zeros(op: Op) -> Step:
    op.allow(count=2)
    bits = _bits(op)

    def function(values: Array) -> Array:
        for distance in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
            values = values | values >> values.dtype.type(distance)
        return np.uint32(bits) - np.bitwise_count(values)

    return op.compute(function, *op.sources(op.typed()))


@semantics("brev")
def reverse_bits(op: Op) -> Step:
    op.allow(count=2)

    def function(values: Array) -> Array:
        width = values.dtype.itemsize
        each = np.unpackbits(values.view(np.uint8).reshape(-1, width), axis=1, bitorder="little")
        return np.packbits(each, axis=1)[:, ::-1].copy().view(values.dtype)[:, 0]

    return op.compute(function, *op.sources(op.typed()))
