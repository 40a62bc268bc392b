"""Single PTX integer instructions on awkward values, compared with Python's integers."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.awkward_operands import COUNT, RANDOM, ints, one, signed
from tools.ptx_sim.snippet import execute

pytestmark = pytest.mark.ptx

BINARY = {
    "add.s32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32,
    "mul.hi.s32": lambda a, b: signed(a, 32) * signed(b, 32) >> 32,
    "mul.hi.u64": lambda a, b: a * b >> 64,
    "mul.hi.s64": lambda a, b: signed(a, 64) * signed(b, 64) >> 64,
    "mul.lo.s64": lambda a, b: a * b,
    "min.s32": lambda a, b: min(signed(a, 32), signed(b, 32)),
    "max.u32": max,
    "max.s64": lambda a, b: max(signed(a, 64), signed(b, 64)),
    "div.u32": lambda a, b: a // b,
    "rem.u64": lambda a, b: a % b,
    "div.s64": lambda a, b: int(Fraction(signed(a, 64), signed(b, 64))),
    "rem.s32": lambda a, b: int(math.fmod(signed(a, 32), signed(b, 32))),
    "xor.b32": lambda a, b: a ^ b,
    "and.b64": lambda a, b: a & b,
    "add.s16": lambda a, b: a + b,
    "mul.lo.s16": lambda a, b: a * b,
}


@pytest.mark.parametrize("opcode", BINARY)
def test_binary_integers(opcode: str) -> None:
    bits = int(opcode[-2:])
    a, b = ints(bits), np.maximum(ints(bits), 1)
    expected = [BINARY[opcode](x, y) % 2**bits for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert one(f"{opcode} {{d}}, {{a}}, {{b}}", a, b, out=a.dtype).tolist() == expected


def test_wide_products() -> None:
    a, b, c = ints(32), ints(32), ints(64)
    results = execute("mul.wide.s32 %d0, %a0, %a1; mad.wide.u32 %d1, %a0, %a1, %a2;", [a, b, c], [np.int64, np.uint64])
    rows = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    assert results[0].tolist() == [signed(x, 32) * signed(y, 32) for x, y, _ in rows]
    assert results[1].tolist() == [(x * y + z) % 2**64 for x, y, z in rows]


def test_long_addition_with_carries() -> None:
    a, b, c, d = (ints(32) for _ in range(4))
    low, high = execute("add.cc.u32 %d0, %a0, %a2; addc.u32 %d1, %a1, %a3;", [a, b, c, d], [np.uint32] * 2)
    whole = [x + (y << 32) for x, y in zip(low.tolist(), high.tolist(), strict=True)]
    rows = zip(a.tolist(), b.tolist(), c.tolist(), d.tolist(), strict=True)
    assert whole == [(w + (x << 32) + y + (z << 32)) % 2**64 for w, x, y, z in rows]


SHIFTS = {
    "shl.b32": lambda a, n: a << n,
    "shr.u32": lambda a, n: a >> n,
    "shr.s32": lambda a, n: signed(a, 32) >> n,
    "shr.s64": lambda a, n: signed(a, 64) >> n,
    "shl.b64": lambda a, n: a << n,
}


@pytest.mark.parametrize("opcode", SHIFTS)
def test_shifts_beyond_the_width(opcode: str) -> None:
    bits = int(opcode[-2:])
    a, n = ints(bits), RANDOM.integers(0, 80, COUNT).astype(np.uint32)
    expected = [SHIFTS[opcode](x, y) % 2**bits for x, y in zip(a.tolist(), n.tolist(), strict=True)]
    assert one(f"{opcode} {{d}}, {{a}}, {{b}}", a, n, out=a.dtype).tolist() == expected


@pytest.mark.parametrize("mode", ("wrap", "clamp"))
def test_funnel_shifts(mode: str) -> None:
    a, b, n = ints(32), ints(32), RANDOM.integers(0, 40, COUNT).astype(np.uint32)
    left = one(f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}}", a, b, n).tolist()
    right = one(f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}}", a, b, n).tolist()
    for low, high, count, to_left, to_right in zip(a.tolist(), b.tolist(), n.tolist(), left, right, strict=True):
        count = count % 32 if mode == "wrap" else min(count, 32)
        both = high << 32 | low
        assert to_left == (both << count >> 32) % 2**32 and to_right == (both >> count) % 2**32


@pytest.mark.parametrize("type_", ("u32", "s32", "u64", "s64"))
def test_field_extraction(type_: str) -> None:
    bits = int(type_[1:])
    a = ints(bits)
    position, length = (RANDOM.integers(0, bits + 9, COUNT).astype(np.uint32) for _ in "ab")
    found = one(f"bfe.{type_} {{d}}, {{a}}, {{b}}, {{c}}", a, position, length, out=a.dtype).tolist()
    for value, at, count, result in zip(a.tolist(), position.tolist(), length.tolist(), found, strict=True):
        sign = type_[0] == "s" and count > 0 and value >> min(at + count - 1, bits - 1) & 1
        field = [value >> at + i & 1 if i < count and at + i < bits else int(sign) for i in range(bits)]
        assert result == sum(bit << i for i, bit in enumerate(field))


@pytest.mark.parametrize("bits", (32, 64))
def test_field_insertion(bits: int) -> None:
    a, b = ints(bits), ints(bits)
    position, length = (RANDOM.integers(0, bits + 9, COUNT).astype(np.uint32) for _ in "ab")
    found = one(f"bfi.b{bits} {{d}}, {{a}}, {{b}}, {{c}}, {{e}}", a, b, position, length, out=a.dtype).tolist()
    rows = zip(a.tolist(), b.tolist(), position.tolist(), length.tolist(), found, strict=True)
    for field, base, at, count, result in rows:
        mask = ((1 << count) - 1 << at) % 2**bits
        assert result == base & ~mask | field << at & mask


@pytest.mark.parametrize("table", (0x96, 0xE8, 0xCA, 0x01, 0x5B))
def test_logic_of_three(table: int) -> None:
    a, b, c = ints(32), ints(32), ints(32)
    found = one(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table}", a, b, c).tolist()
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), found, strict=True):
        bit = [table >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1)) & 1 for i in range(32)]
        assert result == sum(value << i for i, value in enumerate(bit))


def test_byte_permutation() -> None:
    a, b, selector = ints(32), ints(32), ints(32)
    found = one("prmt.b32 {d}, {a}, {b}, {c}", a, b, selector).tolist()
    for x, y, s, result in zip(a.tolist(), b.tolist(), selector.tolist(), found, strict=True):
        source = (y << 32 | x).to_bytes(8, "little")
        picked = [source[s >> 4 * i & 7] for i in range(4)]
        signs = [s >> 4 * i & 8 for i in range(4)]
        expected = bytes(255 * (byte >> 7) if sign else byte for byte, sign in zip(picked, signs, strict=True))
        assert result == int.from_bytes(expected, "little")


@pytest.mark.parametrize("bits", (32, 64))
def test_bit_counts(bits: int) -> None:
    a = ints(bits)
    count, zeros = execute(f"popc.b{bits} %d0, %a0; clz.b{bits} %d1, %a0;", [a], [np.uint32] * 2)
    assert count.tolist() == [x.bit_count() for x in a.tolist()]
    assert zeros.tolist() == [bits - x.bit_length() for x in a.tolist()]
    backwards = one(f"brev.b{bits} {{d}}, {{a}}", a, out=a.dtype).tolist()
    assert backwards == [int(f"{x:0{bits}b}"[::-1], 2) for x in a.tolist()]


def test_narrow_loads_extend() -> None:
    a = ints(32)
    results = execute(
        "ld.global.s8 %d0, [%qa0]; ld.global.u8 %d1, [%qa0+3]; ld.global.s16 %d2, [%qa0+2];",
        [a],
        [np.int32, np.uint32, np.int64],
    )
    assert [r.tolist() for r in results] == [
        [signed(x & 255, 8) for x in a.tolist()],
        [x >> 24 for x in a.tolist()],
        [signed(x >> 16, 16) for x in a.tolist()],
    ]
