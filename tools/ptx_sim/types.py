"""PTX types as numpy types. Registers hold raw bits: unsigned integers, or booleans for predicates."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[..., Array]  # from operands to a result, elementwise
Mask = NDArray[np.bool_] | None  # the lanes that execute an instruction; None: all of them

UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}

DTYPES: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": np.uint16, "tf32": np.uint32}
DTYPES["pred"] = np.bool_
for _bytes in (1, 2, 4, 8):
    DTYPES[f"s{8 * _bytes}"] = SIGNED[_bytes]
    DTYPES[f"u{8 * _bytes}"] = DTYPES[f"b{8 * _bytes}"] = UNSIGNED[_bytes]
for _packed, _bits in (("e4m3x2", 16), ("f16x2", 32), ("bf16x2", 32), ("u16x2", 32), ("s16x2", 32), ("f32x2", 64)):
    DTYPES[_packed] = DTYPES[f"b{_bits}"]

FLOATS = {"f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2"}


def bits_type(name: str) -> str:
    """Return the untyped PTX type of the same width: f32 -> b32, pred -> pred."""
    return "pred" if name == "pred" else f"b{8 * np.dtype(DTYPES[name]).itemsize}"


def resize(values: Array, itemsize: int) -> Array:
    """Extend integers (according to their own signedness) or truncate them to `itemsize` bytes."""
    table = SIGNED if np.issubdtype(values.dtype, np.signedinteger) else UNSIGNED
    return values.astype(table[itemsize])
