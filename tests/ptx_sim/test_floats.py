"""Single PTX instructions on floating-point numbers, compared with exact fractions."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.awkward_operands import COUNT, RANDOM, ints, one, signed
from tools.ptx_sim.snippet import execute
from tools.ptx_sim.types import Array

pytestmark = pytest.mark.ptx

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


def rounded(exact: Fraction, name: str, mode: str = "rn") -> float:
    """Round a fraction to a format with integer arithmetic: the definition."""
    precision, lowest = PRECISION[name]
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    ratio = exact / unit
    whole: dict[str, Callable[[Any], int]] = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}
    whole["rna"] = lambda x: int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))
    result = float(whole[mode](ratio) * unit)
    if abs(result) > LARGEST[name]:
        towards_zero = mode == "rz" or (mode == "rm" and result > 0) or (mode == "rp" and result < 0)
        return math.copysign(LARGEST[name] if towards_zero else math.inf, result)
    return result


def floats(count: int = COUNT) -> Array:
    """Return float32 numbers over the whole range of exponents, among them the special ones."""
    bits = RANDOM.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    near_one = RANDOM.standard_normal(count).astype(np.float32)
    values = np.where(RANDOM.random(count) < 0.5, bits.view(np.float32), near_one)
    values[: len(SPECIAL)] = SPECIAL
    return RANDOM.permutation(values)


def same(found: Any, expected: Any) -> None:
    """Check that numbers are equal, NaN included."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(expected, np.float64))


def exactly(function: Callable[..., Any], name: str, mode: str, *operands: Array) -> list[float]:
    """Apply a function to fractions, elementwise, and round; if an operand is not finite, apply it in float64."""
    results: list[float] = []
    with np.errstate(all="ignore"):
        for row in zip(*(operand.astype(np.float64) for operand in operands), strict=True):
            if all(np.isfinite(row)):
                results.append(rounded(function(*map(Fraction, row)), name, mode))
            else:
                results.append(function(*row))
    return results


@pytest.mark.parametrize("mode", ("rn", "rz", "rm", "rp"))
def test_float32_rounding(mode: str) -> None:
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


def test_float32_fma_next_to_a_tie() -> None:
    """1 + 2^-24 is a tie in float32. A term beyond float64's precision must still decide it."""
    tie = np.float32(2.0**-12)
    for sign, expected in ((1, 1 + 2.0**-23), (-1, 1.0)):
        a = np.full(32, tie, np.float32)
        c = np.full(32, 1.0, np.float32)
        b = a * np.float32(1 + sign * 2.0**-23)  # the product is 2^-24 (1 +- 2^-23)
        same(one("fma.rn.f32 {d}, {a}, {b}, {c}", a, b, c, out=np.float32), [expected] * 32)


def test_float64_fma() -> None:
    a, b, c = (RANDOM.standard_normal(COUNT) for _ in "abc")
    c[:128] = -a[:128] * b[:128]
    found = one("fma.rn.f64 {d}, {a}, {b}, {c}", a, b, c, out=np.float64)
    same(found, exactly(lambda x, y, z: x * y + z, "f64", "rn", a, b, c))


def as_float(bits: Array, name: str) -> Array:
    """Return the values of raw f16 or bf16 bits."""
    return bits.view(np.float16) if name == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)


def halves(name: str, count: int = COUNT) -> tuple[Array, Array]:
    """Return random 16-bit patterns and their values."""
    bits = RANDOM.integers(0, 2**16, count).astype(np.uint16)
    return bits, as_float(bits, name)


@pytest.mark.parametrize("name", ("f16", "bf16"))
def test_arithmetic_of_16_bits(name: str) -> None:
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


def test_packed_float32() -> None:
    values = [RANDOM.standard_normal((512, 2)).astype(np.float32) for _ in "abc"]
    a, b, c = (value.view(np.uint64)[:, 0] for value in values)
    total = one("add.rn.f32x2 {d}, {a}, {b}", a, b, out=np.uint64).view(np.float32).reshape(-1, 2)
    same(total, values[0] + values[1])
    fused = one("fma.rn.ftz.f32x2 {d}, {a}, {b}, {c}", a, b, c, out=np.uint64).view(np.float32)
    flat = [value.reshape(-1) for value in values]
    same(fused, exactly(lambda x, y, z: x * y + z, "f32", "rn", *flat))


@pytest.mark.parametrize("to, modes", (("f16", ("rn", "rz", "rm", "rp")), ("bf16", ("rn", "rz")), ("tf32", ("rna",))))
def test_conversion_from_float32(to: str, modes: tuple[str, ...]) -> None:
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


def test_conversions_of_e4m3() -> None:
    """All 256 numbers; and rounding to them with torch, where halves, infinities and too large numbers matter most."""
    codes = np.arange(256, dtype=np.uint8)
    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    pairs = np.stack([codes, codes[::-1]], 1).view(np.uint16)[:, 0]
    halves = one("cvt.rn.f16x2.e4m3x2 {d}, {a}", pairs).view(np.float16).reshape(-1, 2)
    same(halves[:, 0], exact)
    same(halves[:, 1], exact[::-1])
    halves = one("cvt.rn.bf16x2.e4m3x2 {d}, {a}", pairs).view(np.uint16).reshape(-1, 2)
    same(as_float(halves[:, 1].copy(), "bf16"), exact[::-1])

    finite = exact[np.isfinite(exact)]
    between = (np.sort(finite)[1:] + np.sort(finite)[:-1]) / 2
    near = np.concatenate([np.nextafter(between, np.float32(side)) for side in (-np.inf, np.inf)])
    a = np.concatenate([finite, between, near, np.float32([470, -1e30, 2**-11, 1e-30]), floats()])
    wanted = torch.from_numpy(a).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    wanted = np.where(np.isnan(a), 127, wanted)
    found = one("cvt.rn.satfinite.e4m3x2.f32 {d}, {a}, {b}", a, a[::-1], out=np.uint16).view(np.uint8).reshape(-1, 2)
    assert (found[:, 1] == wanted).all() and (found[:, 0] == wanted[::-1]).all()


def test_scoped_registers_may_share_a_prefix() -> None:
    """Triton converts e4m3 to bfloat16 in a block of inline assembly with registers a, a0 and a1."""
    a = np.arange(256, dtype=np.uint16)
    body = """{{
    .reg .b32 a; .reg .f16 a<2>; .reg .b16 b<2>;
    cvt.rn.f16x2.e4m3x2 a, {a}; mov.b32 {{a0, a1}}, a;
    cvt.bf16.f16 b0, a0; cvt.bf16.f16 b1, a1; mov.b32 {d}, {{b0, b1}};
    }}"""
    found = one(body, a).view(np.uint16).reshape(-1, 2)[:, 0].copy()
    same(as_float(found, "bf16"), torch.from_numpy(a).to(torch.uint8).view(torch.float8_e4m3fn).float().numpy())


@pytest.mark.parametrize("to", ("s32", "u32", "s64", "u8", "s16"))
@pytest.mark.parametrize("mode", ("rni", "rzi", "rmi", "rpi"))
def test_conversion_to_integers_saturates(to: str, mode: str) -> None:
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
def test_conversion_of_integers(from_: str, mode: str) -> None:
    bits = int(from_[1:])
    a = ints(bits)
    a[:3] = 2 ** (bits - 2) + 2 ** (bits - 26), 2 ** (bits - 2) + 2 ** (bits - 26) + 1, 2 ** (bits - 2) + 1  # near ties
    values = [Fraction(signed(x, bits) if from_[0] == "s" else x) for x in a.tolist()]
    found = one(f"cvt.{mode}.f32.{from_} {{d}}, {{a}}", a, out=np.float32)
    same(found, [rounded(value, "f32", mode) for value in values])
    narrow = one(f"cvt.{mode}.bf16.{from_} {{d}}, {{a}}", a, out=np.uint16)
    same(as_float(narrow, "bf16"), [rounded(value, "bf16", mode) for value in values])


def test_flushing_and_saturation() -> None:
    a = floats()
    tiny = 2.0**-126
    flat = np.where(np.abs(a) < tiny, np.copysign(0, a), a)
    same(one("add.ftz.f32 {d}, {a}, 0f00000000", a, out=np.float32), flat)
    same(one("cvt.ftz.sat.f32.f32 {d}, {a}", a, out=np.float32), np.nan_to_num(np.clip(flat, 0, 1), nan=0))


def test_extremes_and_special_numbers() -> None:
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
def test_comparisons_of_floats(name: str) -> None:
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


def test_predicates_combine() -> None:
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
