"""PTX types as numpy types. Registers hold raw bits: unsigned integers, or booleans for predicates."""

import numpy as np

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}

DTYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": np.uint16, "tf32": np.uint32}
DTYPES["pred"] = np.bool_
for _bytes in (1, 2, 4, 8):
    DTYPES[f"s{8 * _bytes}"] = SIGNED[_bytes]
    DTYPES[f"u{8 * _bytes}"] = DTYPES[f"b{8 * _bytes}"] = UNSIGNED[_bytes]
for _packed, _bits in (("f16x2", 32), ("bf16x2", 32), ("u16x2", 32), ("s16x2", 32), ("f32x2", 64)):
    DTYPES[_packed] = DTYPES[f"b{_bits}"]

FLOATS = {"f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2"}


def bits_type(name):
    """The untyped PTX type as wide as `name`: f32 -> b32, pred -> pred."""
    return "pred" if name == "pred" else f"b{8 * np.dtype(DTYPES[name]).itemsize}"


def resize(values, itemsize):
    """Integers widened (by their own signedness) or cut to `itemsize` bytes."""
    table = SIGNED if np.issubdtype(values.dtype, np.signedinteger) else UNSIGNED
    return values.astype(table[itemsize])
