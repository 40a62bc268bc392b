"""Moves, conversions, comparisons and selections."""

import numpy as np

from .floating import flush
from .operands import semantics
from .rounding import INTEGRAL, decode, encode, odd_float64, round_to
from .types import DTYPES, FLOATS, bits_type

LOCAL_WINDOW = 1 << 40  # where the generic address space shows a thread's stack,
SHARED_WINDOW = 1 << 41  # and the CTA's shared memory; tensors lie above both (global_memory.py)


@semantics("mov")
def move(op):
    op.allow(count=2)
    type_ = op.same_width()
    parts, whole = op.vector(0), op.vector(1)
    if len(parts) > 1:
        return _split(op, parts, type_)
    if len(whole) > 1:
        return _join(op, whole, type_)
    return op.compute(lambda values: values, op.source(1, type_))


def _part_type(type_, count):
    return f"b{int(type_[1:]) // count}"


def _split(op, parts, type_):
    read, writers = op.source(1, type_), [op.writer(part) for part in parts]
    dtype = DTYPES[_part_type(type_, len(parts))]

    def step(lanes, mask):
        columns = read(lanes).view(dtype).reshape(lanes.count, -1)
        for column, write in enumerate(writers):
            write(lanes, np.ascontiguousarray(columns[:, column]), mask)

    return step


def _join(op, parts, type_):
    dtype = DTYPES[type_]
    readers = [op.reader(part, _part_type(type_, len(parts))) for part in parts]
    return op.compute(lambda *columns: np.stack(columns, 1).view(dtype)[:, 0], *readers)


@semantics("cvta")
def convert_address(op):
    op.allow("to", "global", "shared", "local", count=2)
    window = {"global": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}[op.one_of(("global", "shared", "local"))]
    offset = DTYPES[op.typed()](window)
    if op.has("to"):
        return op.compute(lambda values: values - offset, op.source(1, op.type))
    return op.compute(lambda values: values + offset, op.source(1, op.type))


_TO_INTEGRAL = {f"{mode}i": function for mode, function in INTEGRAL.items()}


@semantics("cvt")
def convert(op):
    to, from_ = op.qualifiers[-2], op.typed()
    op.allow(to, "ftz", "sat", *INTEGRAL, *_TO_INTEGRAL)
    if to in ("f16x2", "bf16x2"):
        return _convert_pair(op, to.removesuffix("x2"))
    if to not in DTYPES or from_ not in DTYPES or len(op.operands) != 2:
        raise op.unknown()
    read, ftz = op.source(1, from_), op.has("ftz")

    def values_of(lanes):
        values = read(lanes)
        if from_ in ("f16", "bf16"):
            return decode(values, from_)
        return flush(values) if ftz and from_ == "f32" else values

    return op.compute(_to_integer(op, to, from_) if to[0] in "su" else _to_float(op, to, from_), values_of)


def _convert_pair(op, name):
    """Two float32 to one packed register: the first source is the upper half."""
    op.allow(f"{name}x2", *INTEGRAL, count=3)
    mode = op.one_of(INTEGRAL, "rn")

    def function(high, low):
        return encode(np.stack([low, high], 1).astype(np.float64), name, mode).view(np.uint32)[:, 0]

    return op.compute(function, *op.sources("f32"))


def _to_integer(op, to, from_):
    dtype = DTYPES[to]
    if from_ not in FLOATS:
        if op.has("sat"):
            raise op.unknown("saturating conversion between integers")
        return lambda values: values.astype(dtype)
    if not (mode := op.one_of(_TO_INTEGRAL)):
        raise op.unknown("rounding")
    limits = np.iinfo(dtype)
    # The manual: zero, except where 64 bits are involved, and there the top bit alone.
    of_nan = dtype(0)
    if from_ == "f64" or limits.bits == 64:
        of_nan = dtype(limits.min if limits.min else 1 << limits.bits - 1)

    def function(values):
        whole = _TO_INTEGRAL[mode](values.astype(np.float64))
        too_high, too_low = whole >= float(limits.max), whole <= float(limits.min)
        inside = np.where(too_high | too_low | np.isnan(whole), 0, whole).astype(dtype)
        clamped = np.where(too_high, dtype(limits.max), np.where(too_low, dtype(limits.min), inside))
        return np.where(np.isnan(whole), of_nan, clamped)

    return function


def _to_float(op, to, from_):
    """To f16, bf16, tf32, f32 or f64, from anything; `values` come as integers, or decoded."""
    mode = op.one_of(INTEGRAL, "rn")
    integral = _TO_INTEGRAL.get(op.one_of(_TO_INTEGRAL))

    def function(values):
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


_ORDERED = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _comparison(name):
    """PTX's name for a comparison, as a function. The ...u forms are also true where an operand is not a number."""
    if name in ("nan", "num"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    name = _UNSIGNED_NAMES.get(name, name)
    if name in _ORDERED:
        return _ORDERED[name]
    ordered = _ORDERED.get(name.removesuffix("u"))
    return ordered and (lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b))


_COMBINE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@semantics("setp")
def set_predicate(op):
    compare = _comparison(op.qualifiers[0])
    if compare is None or op.type not in DTYPES:
        raise op.unknown()
    op.allow(op.qualifiers[0], "ftz", *_COMBINE, count=(3, 4))
    combine = _COMBINE.get(op.one_of(_COMBINE))
    extra = op.source(3, "pred") if combine else None
    targets = [op.writer(text.strip()) for text in op.operands[0].split("|")]
    sources = op.sources(op.type, 1, 3)
    packed, halves = op.type.endswith("x2"), op.type.removesuffix("x2")

    def outcomes(a, b):
        """For the one or two targets: the comparison and its opposite, or the comparisons of the two halves."""
        if packed:
            pairs = compare(*[decode(word.view(np.uint16), halves).reshape(-1, 2) for word in (a, b)])
            return pairs[:, 0], pairs[:, 1]
        if halves in ("f16", "bf16"):
            a, b = decode(a, halves), decode(b, halves)
        elif op.has("ftz"):
            a, b = flush(a), flush(b)
        result = compare(a, b)
        return result, ~result

    def step(lanes, mask):
        results = outcomes(*[read(lanes) for read in sources])
        for write, result in zip(targets, results, strict=False):
            write(lanes, combine(result, extra(lanes)) if combine else result, mask)

    return step


@semantics("selp")
def select(op):
    op.allow(count=4)
    type_ = bits_type(op.typed())
    return op.compute(lambda a, b, first: np.where(first, a, b), *op.sources(type_, 1, 3), op.source(3, "pred"))
