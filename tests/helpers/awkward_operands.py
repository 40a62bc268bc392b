"""Operands chosen to be awkward, and the result of one instruction on them."""

import numpy as np

from tools.ptx_sim.snippet import execute

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
