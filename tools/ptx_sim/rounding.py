"""Correct rounding with float64 arithmetic: sums and fused products rounded to odd, then to a PTX format in any mode.

Rounding to odd in float64 and then to a format of at most 51 bits gives the result of a single rounding, in every
rounding mode (Boldo and Melquiond 2008). Thus fma.rn.f32 is exact without a hardware fma.
"""

from typing import NamedTuple

import numpy as np

from .types import Array, Function

# PTX's rounding modes as functions that round to integers. rna rounds halves away from zero.
INTEGRAL: dict[str, Function] = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil}
INTEGRAL["rna"] = lambda values: np.copysign(np.floor(np.abs(values) + 0.5), values)


class Format(NamedTuple):
    precision: int  # bits of the significand, including the hidden one
    lowest_exponent: int  # least exponent of a normal number
    largest: float  # largest finite number


FORMATS = {
    "e4m3": Format(4, -6, 448.0),
    "f16": Format(11, -14, 65504.0),
    "bf16": Format(8, -126, float.fromhex("0x1.fep127")),
    "tf32": Format(11, -126, float.fromhex("0x1.ffcp127")),
    "f32": Format(24, -126, float.fromhex("0x1.fffffep127")),
}


def odd_sum(a: Array, b: Array) -> Array:
    """Return a + b in float64, rounded to odd: the exact sum if it fits, else its neighbour with an odd last bit."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)
    inexact = (error != 0) & np.isfinite(total)
    if not inexact.any():
        return total
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact & (bits & 1 == 0), bits + step, bits).view(np.float64)


def odd_float64(values: Array) -> Array:
    """Return 64-bit integers as float64, rounded to odd, and other numbers as float64, exactly."""
    if values.dtype not in (np.int64, np.uint64):
        return values.astype(np.float64)
    low = values & values.dtype.type(0xFFFFFFFF)
    return odd_sum((values - low).astype(np.float64), low.astype(np.float64))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b in float64 and its rounding error."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a * b in float64 and its rounding error."""

    def split(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0  # 2**27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c with one rounding, unless the splitting overflows or underflows."""
    high, low = _two_product(a, b)
    middle, lowest = _two_sum(c, low)
    top, rest = _two_sum(high, middle)
    exact = top + odd_sum(lowest, rest)
    return np.where(np.isfinite(exact), exact, a * b + c)


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c with one rounding. The product of two float32 numbers is exact in float64."""
    return odd_sum(a.astype(np.float64) * b, c.astype(np.float64)).astype(np.float32)


def round_to(values: Array, name: str, mode: str = "rn") -> Array:
    """Round float64 values to a format; the result is still float64."""
    form = FORMATS[name]
    exponent = np.maximum(np.frexp(values)[1] - 1, form.lowest_exponent) - (form.precision - 1)
    scaled = np.ldexp(values, -exponent)
    rounded = np.ldexp(INTEGRAL[mode](scaled), exponent)
    stays_finite = {"rz": np.isfinite(values), "rm": values > 0, "rp": values < 0}.get(mode, np.False_)
    beyond = np.where(stays_finite & np.isfinite(values), form.largest, np.inf)
    return np.where(np.abs(rounded) > form.largest, np.copysign(beyond, rounded), rounded)


def decode(bits: Array, name: str) -> Array:
    """Convert the raw bits of e4m3, f16, bf16 or tf32 numbers to float64, exactly."""
    if name == "e4m3":
        exponent, fraction = (bits >> 3 & 15).astype(np.int64), (bits & 7).astype(np.float64)
        sizes = np.ldexp(np.where(exponent > 0, fraction + 8, fraction), np.maximum(exponent, 1) - 10)
        return np.copysign(np.where(bits & 127 == 127, np.nan, sizes), np.where(bits >> 7, -1.0, 1.0))
    if name == "f16":
        return bits.view(np.float16).astype(np.float64)
    wide = bits.astype(np.uint32) << 16 if name == "bf16" else bits
    return wide.view(np.float32).astype(np.float64)


def encode_e4m3(values: Array) -> Array:
    """Round float64 values to e4m3 and return the raw bits; infinities and numbers that are too large become 448."""
    sizes = np.minimum(np.abs(round_to(values, "e4m3")), FORMATS["e4m3"].largest)
    exponent = np.frexp(np.maximum(sizes, 2.0 ** FORMATS["e4m3"].lowest_exponent))[1] - 1
    # The hidden bit of a normal number, which is bit 3 of its significand, adds 1 to the stored exponent.
    bits = np.ldexp(sizes, 3 - exponent) + 8.0 * (exponent + 6) + 128.0 * np.signbit(values)
    return np.where(np.isnan(values), 127, bits).astype(np.uint8)


def encode(values: Array, name: str, mode: str = "rn") -> Array:
    """Round float64 values to f16, bf16, tf32 or f32 and return the raw bits."""
    if name == "f16" and mode == "rn":
        bits = values.astype(np.float16).view(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), bits)
    rounded = round_to(values, name, mode)
    if name == "f16":
        return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.float16).view(np.uint16))
    bits = rounded.astype(np.float32).view(np.uint32)
    if name == "bf16":
        return np.where(np.isnan(values), np.uint16(0x7FFF), (bits >> 16).astype(np.uint16))
    return np.where(np.isnan(values), np.uint32(0x7FFFFFFF), bits)
