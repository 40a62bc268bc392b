"""Awkward operands for single PTX instructions, and the result of an instruction on them."""

from typing import Any

import numpy as np

from tools.ptx_sim.snippet import execute
from tools.ptx_sim.types import Array

RANDOM = np.random.default_rng(0)
COUNT = 384  # values per test, one per thread


def ints(bits: int, count: int = COUNT) -> Array:
    """Return random unsigned integers of 16, 32 or 64 bits, among them the ends of the range."""
    values = RANDOM.integers(0, 2**bits, count, dtype=np.uint64)
    ends = [0, 1, 2, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1]
    values[: len(ends)] = ends
    return RANDOM.permutation(values).astype(f"u{bits // 8}")


def signed(value: int, bits: int) -> int:
    """Reinterpret an unsigned integer of `bits` bits as signed."""
    return value - 2**bits if value >> bits - 1 else value


def one(text: str, *inputs: Array, out: Any = np.uint32) -> Array:
    """Return the result of one instruction, written with {d} for the target and {a}, {b}, {c}, {e} for the inputs."""
    names = dict(zip("abce", ("%a0", "%a1", "%a2", "%a3"), strict=True), d="%d0")
    return execute(text.format(**names) + ";", inputs, [out])[0]
