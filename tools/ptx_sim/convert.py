"""Moves, conversions, comparisons and selections."""

import numpy as np

from .floating import flush
from .lanes import Lanes, Step
from .operands import Op, semantics
from .rounding import INTEGRAL, decode, encode, encode_e4m3, odd_float64, round_to
from .types import DTYPES, FLOATS, Array, Function, Mask, bits_type

# Generic addresses at which a thread's stack and its CTA's shared memory appear. Tensors lie above both
# (global_memory.py).
LOCAL_WINDOW = 1 << 40
SHARED_WINDOW = 1 << 41


@semantics("mov")
def move(op: Op) -> Step:
    op.allow(count=2)
    type_ = op.same_width()
    parts, whole = op.vector(0), op.vector(1)
    if len(parts) > 1:
        return _split(op, parts, type_)
    if len(whole) > 1:
        return _join(op, whole, type_)
    return op.compute(lambda values: values, op.source(1, type_))


def _part_type(type_: str, count: int) -> str:
    return f"b{int(type_[1:]) // count}"


def _split(op: Op, parts: tuple[str, ...], type_: str) -> Step:
    read, writers = op.source(1, type_), [op.writer(part) for part in parts]
    dtype = DTYPES[_part_type(type_, len(parts))]

    def step(lanes: Lanes, mask: Mask) -> None:
        columns = read(lanes).view(dtype).reshape(lanes.count, -1)
        for column, write in enumerate(writers):
            write(lanes, np.ascontiguousarray(columns[:, column]), mask)

    return step


def _join(op: Op, parts: tuple[str, ...], type_: str) -> Step:
    dtype = DTYPES[type_]
    readers = [op.reader(part, _part_type(type_, len(parts))) for part in parts]
    return op.compute(lambda *columns: np.stack(columns, 1).view(dtype)[:, 0], *readers)


@semantics("cvta")
def convert_address(op: Op) -> Step:
    op.allow("to", "global", "shared", "local", count=2)
    window = {"global": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}[op.one_of(("global", "shared", "local"))]
    offset = DTYPES[op.typed()](window)
    if op.has("to"):
        return op.compute(lambda values: values - offset, op.source(1, op.type))
    return op.compute(lambda values: values + offset, op.source(1, op.type))


_TO_INTEGRAL = {f"{mode}i": function for mode, function in INTEGRAL.items()}


@semantics("cvt")
def convert(op: Op) -> Step:
    to, from_ = op.qualifiers[-2], op.typed()
    if "e4m3x2" in (to, from_):
        return _convert_fp8(op, to, from_)
    op.allow(to, "ftz", "sat", *INTEGRAL, *_TO_INTEGRAL)
    if to in ("f16x2", "bf16x2"):
        return _convert_pair(op, to.removesuffix("x2"))
    if to not in DTYPES or from_ not in DTYPES or len(op.operands) != 2:
        raise op.unknown()
    read, ftz = op.source(1, from_), op.has("ftz")

    def source_values(lanes: Lanes) -> Array:
        values = read(lanes)
        if from_ in ("f16", "bf16"):
            return decode(values, from_)
        return flush(values) if ftz and from_ == "f32" else values

    return op.compute(_to_integer(op, to, from_) if to[0] in "su" else _to_float(op, to, from_), source_values)


def _convert_pair(op: Op, name: str) -> Step:
    """Convert two float32 to one packed register; the first source becomes the upper half."""
    op.allow(f"{name}x2", *INTEGRAL, count=3)
    mode = op.one_of(INTEGRAL, "rn")

    def function(high: Array, low: Array) -> Array:
        return encode(np.stack([low, high], 1).astype(np.float64), name, mode).view(np.uint32)[:, 0]

    return op.compute(function, *op.sources("f32"))


def _convert_fp8(op: Op, to: str, from_: str) -> Step:
    """Convert a pair of e4m3 to f16x2 or bf16x2, or two float32 to a pair; the first becomes the upper byte."""
    if to in ("f16x2", "bf16x2"):
        op.allow("rn", to, count=2)
        name, read = to.removesuffix("x2"), op.source(1, from_)
        return op.compute(lambda pairs: encode(decode(pairs.view(np.uint8), "e4m3"), name).view(np.uint32), read)
    if (to, from_) != ("e4m3x2", "f32") or not op.has("satfinite"):
        raise op.unknown()
    op.allow("rn", "satfinite", to, count=3)

    def function(high: Array, low: Array) -> Array:
        return encode_e4m3(np.stack([low, high], 1).astype(np.float64)).view(np.uint16)[:, 0]

    return op.compute(function, *op.sources("f32"))


def _to_integer(op: Op, to: str, from_: str) -> Function:
    dtype = DTYPES[to]
    if from_ not in FLOATS:
        if op.has("sat"):
            raise op.unknown("saturating conversion between integers")
        return lambda values: values.astype(dtype)
    if not (mode := op.one_of(_TO_INTEGRAL)):
        raise op.unknown("rounding")
    limits = np.iinfo(dtype)
    # The PTX manual: NaN becomes zero, or the top bit alone if the source or the target has 64 bits.
    converted_nan = dtype(0)
    if from_ == "f64" or limits.bits == 64:
        converted_nan = dtype(limits.min if limits.min else 1 << limits.bits - 1)

    def function(values: Array) -> Array:
        whole = _TO_INTEGRAL[mode](values.astype(np.float64))
        too_high, too_low = whole >= float(limits.max), whole <= float(limits.min)
        inside = np.where(too_high | too_low | np.isnan(whole), 0, whole).astype(dtype)
        clamped = np.where(too_high, dtype(limits.max), np.where(too_low, dtype(limits.min), inside))
        return np.where(np.isnan(whole), converted_nan, clamped)

    return function


def _to_float(op: Op, to: str, from_: str) -> Function:
    """Return a conversion to f16, bf16, tf32, f32 or f64; its argument holds integers or decoded floats."""
    mode = op.one_of(INTEGRAL, "rn")
    integral = _TO_INTEGRAL.get(op.one_of(_TO_INTEGRAL))

    def function(values: Array) -> Array:
        if integral:
            values = integral(values)
        if op.has("sat"):
            values = np.where(np.isnan(values), 0, np.clip(values, 0, 1)).astype(values.dtype)
        if to == "f64":
            return values.astype(np.float64)
        if to == "f32":
            if mode == "rn":
                result = values.astype(np.float32)
            else:
                result = round_to(odd_float64(values), "f32", mode).astype(np.float32)
            return flush(result) if op.has("ftz") else result
        return encode(odd_float64(values), to, mode)

    return function


_ORDERED: dict[str, Function] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _comparison(name: str) -> Function | None:
    """Return the comparison that PTX calls `name`. The ...u forms are also true if an operand is NaN."""
    if name in ("nan", "num"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    name = _UNSIGNED_NAMES.get(name, name)
    if name in _ORDERED:
        return _ORDERED[name]
    ordered = _ORDERED.get(name.removesuffix("u"))
    if ordered is None:
        return None
    return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)


_COMBINE: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@semantics("setp")
def set_predicate(op: Op) -> Step:
    compare = _comparison(op.qualifiers[0])
    if compare is None or op.type not in DTYPES:
        raise op.unknown()
    op.allow(op.qualifiers[0], "ftz", *_COMBINE, count=(3, 4))
    combine = _COMBINE.get(op.one_of(_COMBINE))
    extra = op.source(3, "pred") if combine else None  # the predicate to combine with
    targets = [op.writer(text.strip()) for text in op.operands[0].split("|")]
    sources = op.sources(op.type, 1, 3)
    packed, halves = op.type.endswith("x2"), op.type.removesuffix("x2")

    def outcomes(a: Array, b: Array) -> tuple[Array, Array]:
        """Return the comparison and its opposite, or the comparisons of the two halves, for the one or two targets."""
        if packed:
            pairs = compare(*[decode(word.view(np.uint16), halves).reshape(-1, 2) for word in (a, b)])
            return pairs[:, 0], pairs[:, 1]
        if halves in ("f16", "bf16"):
            a, b = decode(a, halves), decode(b, halves)
        elif op.has("ftz"):
            a, b = flush(a), flush(b)
        result = compare(a, b)
        return result, ~result

    def step(lanes: Lanes, mask: Mask) -> None:
        results = outcomes(*[read(lanes) for read in sources])
        for write, result in zip(targets, results, strict=False):
            write(lanes, combine(result, extra(lanes)) if combine and extra else result, mask)

    return step


@semantics("selp")
def select(op: Op) -> Step:
    op.allow(count=4)
    type_ = bits_type(op.typed())

    def function(a: Array, b: Array, chosen: Array) -> Array:
        return np.where(chosen, a, b)

    return op.compute(function, *op.sources(type_, 1, 3), op.source(3, "pred"))
