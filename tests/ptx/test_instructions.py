"""Single PTX instructions against Python integers and exact fractions, on values chosen to be awkward."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from ptx.errors import Uninitialised, UnknownOpcode
from ptx.snippet import execute

RANDOM = np.random.default_rng(0)
COUNT = 384  # values to a test, each in a thread of its own


def ints(bits, count=COUNT):
    """Random patterns, and among them the ends of the range."""
    values = RANDOM.integers(0, 2**bits, count, dtype=np.uint64)
    ends = [0, 1, 2, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1]
    values[: len(ends)] = ends
    return RANDOM.permutation(values).astype(f"u{bits // 8}")


def signed(value, bits):
    return value - 2**bits if value >> bits - 1 else value


def one(text, *inputs, out=np.uint32):
    """The result of one instruction written with {d}, {a}, {b}, {c}, {e}."""
    names = dict(zip("abce", ("%a0", "%a1", "%a2", "%a3"), strict=True), d="%d0")
    return execute(text.format(**names) + ";", inputs, [out])[0]


# ---- integers

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
def test_binary_integers(opcode):
    bits = int(opcode[-2:])
    a, b = ints(bits), np.maximum(ints(bits), 1)
    expected = [BINARY[opcode](x, y) % 2**bits for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert one(f"{opcode} {{d}}, {{a}}, {{b}}", a, b, out=a.dtype).tolist() == expected


def test_wide_products():
    a, b, c = ints(32), ints(32), ints(64)
    results = execute("mul.wide.s32 %d0, %a0, %a1; mad.wide.u32 %d1, %a0, %a1, %a2;", [a, b, c], [np.int64, np.uint64])
    rows = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    assert results[0].tolist() == [signed(x, 32) * signed(y, 32) for x, y, _ in rows]
    assert results[1].tolist() == [(x * y + z) % 2**64 for x, y, z in rows]


def test_long_addition_with_carries():
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
def test_shifts_beyond_the_width(opcode):
    bits = int(opcode[-2:])
    a, n = ints(bits), RANDOM.integers(0, 80, COUNT).astype(np.uint32)
    expected = [SHIFTS[opcode](x, y) % 2**bits for x, y in zip(a.tolist(), n.tolist(), strict=True)]
    assert one(f"{opcode} {{d}}, {{a}}, {{b}}", a, n, out=a.dtype).tolist() == expected


@pytest.mark.parametrize("mode", ("wrap", "clamp"))
def test_funnel_shifts(mode):
    a, b, n = ints(32), ints(32), RANDOM.integers(0, 40, COUNT).astype(np.uint32)
    left = one(f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}}", a, b, n).tolist()
    right = one(f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}}", a, b, n).tolist()
    for low, high, count, to_left, to_right in zip(a.tolist(), b.tolist(), n.tolist(), left, right, strict=True):
        count = count % 32 if mode == "wrap" else min(count, 32)
        both = high << 32 | low
        assert to_left == (both << count >> 32) % 2**32 and to_right == (both >> count) % 2**32


@pytest.mark.parametrize("type_", ("u32", "s32", "u64", "s64"))
def test_field_extraction(type_):
    bits = int(type_[1:])
    a = ints(bits)
    position, length = (RANDOM.integers(0, bits + 9, COUNT).astype(np.uint32) for _ in "ab")
    found = one(f"bfe.{type_} {{d}}, {{a}}, {{b}}, {{c}}", a, position, length, out=a.dtype).tolist()
    for value, at, count, result in zip(a.tolist(), position.tolist(), length.tolist(), found, strict=True):
        sign = type_[0] == "s" and count > 0 and value >> min(at + count - 1, bits - 1) & 1
        field = [value >> at + i & 1 if i < count and at + i < bits else int(sign) for i in range(bits)]
        assert result == sum(bit << i for i, bit in enumerate(field))


@pytest.mark.parametrize("bits", (32, 64))
def test_field_insertion(bits):
    a, b = ints(bits), ints(bits)
    position, length = (RANDOM.integers(0, bits + 9, COUNT).astype(np.uint32) for _ in "ab")
    found = one(f"bfi.b{bits} {{d}}, {{a}}, {{b}}, {{c}}, {{e}}", a, b, position, length, out=a.dtype).tolist()
    rows = zip(a.tolist(), b.tolist(), position.tolist(), length.tolist(), found, strict=True)
    for field, base, at, count, result in rows:
        mask = ((1 << count) - 1 << at) % 2**bits
        assert result == base & ~mask | field << at & mask


@pytest.mark.parametrize("table", (0x96, 0xE8, 0xCA, 0x01, 0x5B))
def test_logic_of_three(table):
    a, b, c = ints(32), ints(32), ints(32)
    found = one(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table}", a, b, c).tolist()
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), found, strict=True):
        bit = [table >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1)) & 1 for i in range(32)]
        assert result == sum(value << i for i, value in enumerate(bit))


def test_byte_permutation():
    a, b, selector = ints(32), ints(32), ints(32)
    found = one("prmt.b32 {d}, {a}, {b}, {c}", a, b, selector).tolist()
    for x, y, s, result in zip(a.tolist(), b.tolist(), selector.tolist(), found, strict=True):
        source = (y << 32 | x).to_bytes(8, "little")
        picked = [source[s >> 4 * i & 7] for i in range(4)]
        signs = [s >> 4 * i & 8 for i in range(4)]
        expected = bytes(255 * (byte >> 7) if sign else byte for byte, sign in zip(picked, signs, strict=True))
        assert result == int.from_bytes(expected, "little")


@pytest.mark.parametrize("bits", (32, 64))
def test_bit_counts(bits):
    a = ints(bits)
    count, zeros = execute(f"popc.b{bits} %d0, %a0; clz.b{bits} %d1, %a0;", [a], [np.uint32] * 2)
    assert count.tolist() == [x.bit_count() for x in a.tolist()]
    assert zeros.tolist() == [bits - x.bit_length() for x in a.tolist()]
    backwards = one(f"brev.b{bits} {{d}}, {{a}}", a, out=a.dtype).tolist()
    assert backwards == [int(f"{x:0{bits}b}"[::-1], 2) for x in a.tolist()]


def test_narrow_loads_extend():
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


# ---- floating point, against exact fractions

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.5,
    3.0,
    1e-40,
    -1e-40,
    1e-45,
    65504.0,
    65520.0,
    3.4e38,
    -3.4e38,
    1e-5,
    6e-8,
    2.0**-25,
]
SPECIAL += [math.inf, -math.inf, math.nan, 1 + 2.0**-8, 1 + 2.0**-9, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.5, -2.5, 0.5]
PRECISION = {"f16": (11, -14), "bf16": (8, -126), "tf32": (11, -126), "f32": (24, -126), "f64": (53, -1022)}
LARGEST = {"f16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127, "tf32": (2 - 2.0**-10) * 2.0**127}
LARGEST |= {"f32": (2 - 2.0**-23) * 2.0**127, "f64": math.inf}


def rounded(exact, name, mode="rn"):
    """A fraction rounded to a format: the definition, in integers."""
    precision, lowest = PRECISION[name]
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    ratio = exact / unit
    whole = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}
    whole["rna"] = lambda x: int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))
    result = float(whole[mode](ratio) * unit)
    if abs(result) > LARGEST[name]:
        towards_zero = mode == "rz" or (mode == "rm" and result > 0) or (mode == "rp" and result < 0)
        return math.copysign(LARGEST[name] if towards_zero else math.inf, result)
    return result


def floats(count=COUNT):
    """float32 numbers over the whole range of exponents, and the special ones among them."""
    bits = RANDOM.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    near_one = RANDOM.standard_normal(count).astype(np.float32)
    values = np.where(RANDOM.random(count) < 0.5, bits.view(np.float32), near_one)
    values[: len(SPECIAL)] = SPECIAL
    return RANDOM.permutation(values)


def same(found, expected):
    with np.errstate(invalid="ignore"):  # signalling NaNs
        np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(expected, np.float64))


def exactly(function, name, mode, *operands):
    """Applies a function of fractions, elementwise; where an operand is not finite, the same in float64."""
    results = []
    with np.errstate(all="ignore"):
        for row in zip(*(operand.astype(np.float64) for operand in operands), strict=True):
            if all(np.isfinite(row)):
                results.append(rounded(function(*map(Fraction, row)), name, mode))
            else:
                results.append(function(*row))
    return results


@pytest.mark.parametrize("mode", ("rn", "rz", "rm", "rp"))
def test_float32_rounding(mode):
    a, b, c = floats(), floats(), floats()
    with np.errstate(all="ignore"):  # operands that cancel
        b[:128] = -a[:128] * np.float32(1 + 2.0**-20)
        c[128:256] = -a[128:256] * b[128:256]
    add = one(f"add.{mode}.f32 {{d}}, {{a}}, {{b}}", a, b, out=np.float32)
    multiply = one(f"mul.{mode}.f32 {{d}}, {{a}}, {{b}}", a, b, out=np.float32)
    fused = one(f"fma.{mode}.f32 {{d}}, {{a}}, {{b}}, {{c}}", a, b, c, out=np.float32)
    same(one(f"mad.{mode}.f32 {{d}}, {{a}}, {{b}}, {{c}}", a, b, c, out=np.float32), fused)
    same(add, exactly(lambda x, y: x + y, "f32", mode, a, b))
    same(multiply, exactly(lambda x, y: x * y, "f32", mode, a, b))
    same(fused, exactly(lambda x, y, z: x * y + z, "f32", mode, a, b, c))


def test_float32_fma_next_to_a_tie():
    """1 + 2^-24 is a tie in float32; what is added beyond float64's reach must still decide it."""
    tie = np.float32(2.0**-12)
    for sign, expected in ((1, 1 + 2.0**-23), (-1, 1.0)):
        a = np.full(32, tie, np.float32)
        c = np.full(32, 1.0, np.float32)
        b = a * np.float32(1 + sign * 2.0**-23)  # the product is 2^-24 (1 +- 2^-23)
        same(one("fma.rn.f32 {d}, {a}, {b}, {c}", a, b, c, out=np.float32), [expected] * 32)


def test_float64_fma():
    a, b, c = (RANDOM.standard_normal(COUNT) for _ in "abc")
    c[:128] = -a[:128] * b[:128]
    found = one("fma.rn.f64 {d}, {a}, {b}, {c}", a, b, c, out=np.float64)
    same(found, exactly(lambda x, y, z: x * y + z, "f64", "rn", a, b, c))


def halves(name, count=COUNT):
    bits = RANDOM.integers(0, 2**16, count).astype(np.uint16)
    return bits, (bits.view(np.float16) if name == "f16" else (bits.astype(np.uint32) << 16).view(np.float32))


def as_float(bits, name):
    return bits.view(np.float16) if name == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("name", ("f16", "bf16"))
def test_arithmetic_of_16_bits(name):
    (a, x), (b, y), (c, z) = halves(name), halves(name), halves(name)
    for opcode, function, operands in (
        ("add", lambda p, q: p + q, ((a, x), (b, y))),
        ("mul", lambda p, q: p * q, ((a, x), (b, y))),
        ("fma.rn", lambda p, q, r: p * q + r, ((a, x), (b, y), (c, z))),
    ):
        text = f"{opcode}.{name} {{d}}, " + ", ".join("{" + letter + "}" for letter in "abc"[: len(operands)])
        found = one(text, *[bits for bits, _ in operands], out=np.uint16)
        same(as_float(found, name), exactly(function, name, "rn", *[values for _, values in operands]))
    packed = [np.stack([one_, other], 1).view(np.uint32)[:, 0] for one_, other in ((a, b), (b, c), (c, a))]
    found = one(f"fma.rn.{name}x2 {{d}}, {{a}}, {{b}}, {{c}}", *packed).view(np.uint16).reshape(-1, 2)
    fused = lambda p, q, r: p * q + r  # noqa: E731
    same(as_float(found[:, 0].copy(), name), exactly(fused, name, "rn", x, y, z))
    same(as_float(found[:, 1].copy(), name), exactly(fused, name, "rn", y, z, x))


def test_packed_float32():
    values = [RANDOM.standard_normal((512, 2)).astype(np.float32) for _ in "abc"]
    a, b, c = (value.view(np.uint64)[:, 0] for value in values)
    total = one("add.rn.f32x2 {d}, {a}, {b}", a, b, out=np.uint64).view(np.float32).reshape(-1, 2)
    same(total, values[0] + values[1])
    fused = one("fma.rn.ftz.f32x2 {d}, {a}, {b}, {c}", a, b, c, out=np.uint64).view(np.float32)
    flat = [value.reshape(-1) for value in values]
    same(fused, exactly(lambda x, y, z: x * y + z, "f32", "rn", *flat))


@pytest.mark.parametrize("to, modes", (("f16", ("rn", "rz", "rm", "rp")), ("bf16", ("rn", "rz")), ("tf32", ("rna",))))
def test_conversion_from_float32(to, modes):
    a = floats()
    for mode in modes:
        width = np.uint32 if to == "tf32" else np.uint16
        found = one(f"cvt.{mode}.{to}.f32 {{d}}, {{a}}", a, out=width)
        values = found.view(np.float32) if to == "tf32" else as_float(found, to)
        same(values, exactly(lambda x: x, to, mode, a))
        if to != "tf32":
            pair = one(f"cvt.{mode}.{to}x2.f32 {{d}}, {{a}}, {{b}}", a, a[::-1]).view(np.uint16).reshape(-1, 2)
            same(as_float(pair[:, 1].copy(), to), values)
            same(as_float(pair[:, 0].copy(), to), values[::-1])


@pytest.mark.parametrize("to", ("s32", "u32", "s64", "u8", "s16"))
@pytest.mark.parametrize("mode", ("rni", "rzi", "rmi", "rpi"))
def test_conversion_to_integers_saturates(to, mode):
    a, bits = floats(), int(to[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if to[0] == "s" else (0, 2**bits - 1)
    width = max(bits, 32)
    found = one(f"cvt.{mode}.{to}.f32 {{d}}, {{a}}", a, out=f"{'i' if to[0] == 's' else 'u'}{width // 8}")
    whole = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    for x, result in zip(a.tolist(), found.tolist(), strict=True):
        if math.isnan(x):
            assert result == (0 if bits < 64 else low)
        else:
            assert result == (max(low, min(high, whole(x))) if math.isfinite(x) else (high if x > 0 else low))


@pytest.mark.parametrize("from_", ("s32", "u32", "s64", "u64"))
@pytest.mark.parametrize("mode", ("rn", "rz", "rp"))
def test_conversion_of_integers(from_, mode):
    bits = int(from_[1:])
    a = ints(bits)
    a[:3] = 2 ** (bits - 2) + 2 ** (bits - 26), 2 ** (bits - 2) + 2 ** (bits - 26) + 1, 2 ** (bits - 2) + 1  # near ties
    values = [Fraction(signed(x, bits) if from_[0] == "s" else x) for x in a.tolist()]
    found = one(f"cvt.{mode}.f32.{from_} {{d}}, {{a}}", a, out=np.float32)
    same(found, [rounded(value, "f32", mode) for value in values])
    narrow = one(f"cvt.{mode}.bf16.{from_} {{d}}, {{a}}", a, out=np.uint16)
    same(as_float(narrow, "bf16"), [rounded(value, "bf16", mode) for value in values])


def test_flushing_and_saturation():
    a = floats()
    tiny = 2.0**-126
    flat = np.where(np.abs(a) < tiny, np.copysign(0, a), a)
    same(one("add.ftz.f32 {d}, {a}, 0f00000000", a, out=np.float32), flat)
    same(one("cvt.ftz.sat.f32.f32 {d}, {a}", a, out=np.float32), np.nan_to_num(np.clip(flat, 0, 1), nan=0))


def test_extremes_and_special_numbers():
    pairs = np.array(list(itertools.product([0.0, -0.0, 1.0, math.nan], repeat=2)), np.float32)
    a, b = (np.ascontiguousarray(pairs.repeat(2, 0)[:, i]) for i in (0, 1))
    names = ("max", "max.NaN", "min", "min.NaN")
    high, high_nan, low, low_nan = (one(f"{name}.f32 {{d}}, {{a}}, {{b}}", a, b, out=np.float32) for name in names)
    for x, y, *results in zip(a, b, high, high_nan, low, low_nan, strict=True):
        nans = np.isnan([x, y]).sum()
        assert [bool(np.isnan(r)) for r in results] == [nans == 2, nans > 0, nans == 2, nans > 0]
        if nans == 0 and x == y == 0:
            assert np.signbit(results[0]) == (np.signbit(x) and np.signbit(y))
            assert np.signbit(results[2]) == (np.signbit(x) or np.signbit(y))
    product_sign = one(
        "min.xorsign.abs.f32 {d}, {a}, {b}", np.float32([-3, 2] * 16), np.float32([5, -1] * 16), out=np.float32
    )
    same(product_sign, [-3, -1] * 16)
    x = np.array([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 4.0] * 4, np.float32)
    same(one("ex2.approx.f32 {d}, {a}", x, out=np.float32)[:8], [1, 1, 2, 0.5, math.inf, 0, math.nan, 16])
    same(
        one("lg2.approx.f32 {d}, {a}", x, out=np.float32)[:8],
        [-math.inf, -math.inf, 0, math.nan, math.inf, math.nan, math.nan, 2],
    )
    same(one("rcp.approx.f32 {d}, {a}", x, out=np.float32)[:8], [math.inf, -math.inf, 1, -1, 0, 0, math.nan, 0.25])
    same(one("rsqrt.approx.f32 {d}, {a}", x, out=np.float32)[7], 0.5)


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("name", [*COMPARISONS, *(f"{name}u" for name in COMPARISONS), "num", "nan"])
def test_comparisons_of_floats(name):
    pairs = np.array(list(itertools.product([0.0, -0.0, 1.0, math.nan], repeat=2)), np.float32).repeat(2, 0)
    a, b = pairs[:, 0], pairs[:, 1]
    body = f"setp.{name}.f32 %p1|%p2, %a0, %a1; selp.b32 %d0, 1, 0, %p1; selp.b32 %d1, 1, 0, %p2;"
    found, opposite = execute(body, [a, b], [np.uint32] * 2)
    for x, y, result in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        unordered = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            expected = unordered == (name == "nan")
        else:
            ordered = not unordered and eval(f"x {COMPARISONS[name.removesuffix('u')]} y", dict(x=x, y=y))
            expected = ordered or (name.endswith("u") and unordered)
        assert result == expected
    assert (found + opposite == 1).all()


def test_predicates_combine():
    a, b = ints(32, 64), ints(32, 64)
    body = """
    setp.lt.s32 %p1, %a0, %a1;
    setp.lo.and.u32 %p2, %a0, %a1, %p1;
    setp.hi.xor.u32 %p3, %a0, %a1, !%p1;
    not.pred %p4, %p2;
    selp.b32 %d0, 1, 0, %p2; selp.b32 %d1, 1, 0, %p3; selp.b32 %d2, 1, 0, %p4;"""
    both, either, neither = execute(body, [a, b], [np.uint32] * 3)
    less, below = a.view(np.int32) < b.view(np.int32), a < b
    assert (both == (below & less)).all() and (neither == ~(below & less)).all() and (either == ((a > b) ^ ~less)).all()


# ---- warps


@pytest.mark.parametrize("mode", ("up", "down", "bfly", "idx"))
@pytest.mark.parametrize("width", (32, 8))
def test_shuffles(mode, width):
    a, by = ints(32, 64), 3
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"shfl.sync.{mode}.b32 %d0|%p1, %a0, {by}, {clamp}, -1; selp.b32 %d1, 1, 0, %p1;"
    found, in_range = execute(body, [a], [np.uint32] * 2)
    for thread in range(64):
        warp, lane = divmod(thread, 32)
        first = lane // width * width
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first + by}[mode]
        inside = first <= source < first + width
        assert found[thread] == a[32 * warp + (source if inside else lane)] and in_range[thread] == inside


def test_votes_and_matches():
    a = RANDOM.integers(0, 4, 64).astype(np.uint32)
    body = """
    setp.eq.u32 %p1, %a0, 2;
    vote.sync.ballot.b32 %d0, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1; selp.b32 %d1, 1, 0, %p2;
    match.any.sync.b32 %d2, %a0, -1;
    activemask.b32 %d3;"""
    ballot, any_, match, active = execute(body, [a], [np.uint32] * 4)
    for thread in range(64):
        lanes = a[thread // 32 * 32 :][:32].tolist()
        assert ballot[thread] == sum((value == 2) << i for i, value in enumerate(lanes))
        assert any_[thread] == (2 in lanes) and active[thread] == 2**32 - 1
        assert match[thread] == sum((value == a[thread]) << i for i, value in enumerate(lanes))


def test_part_of_a_warp():
    """Lanes below 8 go one way; what they and the others see of each other is only themselves."""
    a = ints(32, 64)
    body = """
    and.b32 %r1, %r0, 31;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra $few;
    activemask.b32 %d0; redux.sync.min.u32 %d1, %a0, 0xffffff00;
    bra.uni $together;
$few:
    activemask.b32 %d0; redux.sync.max.s32 %d1, %a0, 255;
$together:
    redux.sync.add.s32 %d2, %a0, -1;"""
    active, extreme, total = execute(body, [a], [np.uint32] * 3)
    for first in (0, 32):
        few, many = a[first : first + 8], a[first + 8 : first + 32]
        assert (active[first : first + 8] == 255).all() and (active[first + 8 : first + 32] == 0xFFFFFF00).all()
        assert (extreme[first : first + 8].view(np.int32) == few.view(np.int32).max()).all()
        assert (extreme[first + 8 : first + 32] == many.min()).all()
        assert (total[first : first + 32] == a[first : first + 32].sum() % 2**32).all()


# ---- memory


def test_cache_hints_and_vectors():
    a = ints(32, 64)
    body = """
    createpolicy.fractional.L2::evict_last.b64 %q1, 1.0;
    and.b32 %r1, %r0, 1; mul.wide.u32 %q2, %r1, 4; sub.u64 %q3, %qa0, %q2;
    ld.global.nc.L1::evict_last.L2::cache_hint.v2.b32 {%r2, %r3}, [%q3], %q1;
    mov.b64 %q4, {%r3, %r2};
    mov.b64 {%d0, _}, %q4;"""
    (found,) = execute(body, [a], [np.uint32])
    assert found.tolist() == a.reshape(-1, 2)[:, 1].repeat(2).tolist()


@pytest.mark.parametrize("by", ("cta", "warp"))
def test_shared_memory_by_both_addresses(by):
    """The threads reverse their values through shared memory; the second half reads by generic addresses."""
    a = ints(32, 64)
    body = """
    mov.b32 %r1, global_smem; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
    st.shared.b32 [%r3], %a0;
    bar.sync 0;
    sub.u32 %r4, 252, %r2;
    cvt.u64.u32 %q1, %r4; cvta.shared.u64 %q2, %q1;
    setp.lt.u32 %p1, %r0, 32;
    @%p1 ld.shared.b32 %d0, [%r4];
    @!%p1 ld.b32 %d0, [%q2];"""
    (found,) = execute(body, [a], [np.uint32], by=by)
    assert (found == a[::-1]).all()


def test_shared_atomics():
    a = ints(32, 64)
    body = """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 st.shared.v4.b32 [global_smem], {5, 0, 0, 7};
    bar.sync 0;
    atom.shared.inc.u32 %d0, [global_smem], 9;
    red.shared.max.u32 [global_smem+4], %a0;
    atom.shared.cas.b32 %d1, [global_smem+12], 7, %r0;
    bar.sync 0;
    ld.shared.b32 %d2, [global_smem+4];"""
    ticket, seen, most = execute(body, [a], [np.uint32] * 3)
    assert sorted(ticket.tolist()) == sorted((5 + i) % 10 for i in range(64))
    assert (seen == 7).sum() == 1 and len(set(seen.tolist())) == 2  # one wins, and the others see the winner
    assert (most == a.max()).all()


def test_asynchronous_copies_and_their_groups():
    a, b = ints(32, 64), ints(32, 64)
    body = """
    shl.b32 %r1, %r0, 2; add.u32 %r2, %r1, 256;
    cp.async.ca.shared.global [%r1], [%qa0], 4;
    cp.async.commit_group;
    and.b32 %r3, %r1, 4;
    cp.async.ca.shared.global [%r2], [%qa1], 4, %r3;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %d0, [%r1];
    cp.async.wait_group 0;
    ld.shared.b32 %d1, [%r2];"""
    first, second = execute(body, [a, b], [np.uint32] * 2)
    assert (first == a).all()
    assert (second == np.where(np.arange(64) % 2, b, 0)).all()  # a source size of zero fills with zeros


def test_stack():
    a = ints(32, 64)
    body = """
    .local .align 8 .b8 __local_depot0[16];
    mov.b64 %q1, __local_depot0; cvta.local.u64 %q2, %q1;
    st.local.b32 [%q1+8], %a0;
    ld.b32 %d0, [%q2+8];"""
    assert (execute(body, [a], [np.uint32])[0] == a).all()


# ---- what is not known


@pytest.mark.parametrize(
    "body",
    (
        "frobnicate.b32 %r1, %r0;",
        "add.sat.s32 %r1, %r0, %r0;",
        "cvt.rn.satfinite.e4m3x2.f32 %h1, %a0, %a0;",
        "wgmma.fence.sync.aligned;",
        "mov.u32 %r1, %clock;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1, %r2, %r3, %r4}, {%r1}, {%r1}, {%r1};",
        "bra $nowhere;",
        "barrier.cta.red.popc.aligned.u32 %r1, 0, %p1;",
    ),
)
def test_the_unknown_is_named(body):
    opcode = body.split()[0].rstrip(";")
    with pytest.raises(UnknownOpcode) as caught:
        execute(body + " mov.b32 %d0, 0;", [ints(32, 32)], [np.uint32])
    assert opcode in str(caught.value) and "PTX line" in str(caught.value)


def test_a_half_that_nothing_writes_is_nan():
    """sm_100's pairs of float32, where only one half is wanted; one that is written later is no such half."""
    pack = "mov.b64 %q1, {%a0, %r9}; add.rn.f32x2 %q1, %q1, %q1; "
    values = np.arange(40, dtype=np.float32)
    assert (execute(pack + "mov.b64 {%d0, _}, %q1;", [values], [np.float32])[0] == 2 * values).all()
    assert np.isnan(execute(pack + "mov.b64 {_, %d0}, %q1;", [values], [np.float32])[0]).all()
    with pytest.raises(Uninitialised):
        execute(pack + "mov.b32 %r9, 0; mov.b64 {%d0, _}, %q1;", [values], [np.float32])
