"""Loads, stores, atomics and fences. Cache hints, and memory orders other than acquire, have no effect here."""

import re
from collections.abc import Iterable

import numpy as np

from .access import Access
from .convert import LOCAL_WINDOW, SHARED_WINDOW
from .lanes import Lanes, Step
from .operands import Op, semantics
from .rounding import decode, encode
from .types import DTYPES, UNSIGNED, Array, Function, Mask

_SPACES = ("global", "shared", "local", "param")
_ORDERS = ("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "gpu", "cta", "sys", "cluster")
_HINTS = ("nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt")
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def _is_hint(qualifier: str) -> bool:
    return re.fullmatch(r"L[12]::\w+|shared::cta", qualifier) is not None


def _prepare(op: Op, *extra: str) -> tuple[str | None, int]:
    """Check the qualifiers of a memory instruction. Return its address space (None: generic) and vector length."""
    hints = [qualifier for qualifier in op.qualifiers if _is_hint(qualifier)]
    op.allow(*_SPACES, *_ORDERS, *_HINTS, *_VECTORS, *hints, *extra)
    space = "shared" if op.has("shared", "shared::cta") else op.one_of(_SPACES) or None
    return space, _VECTORS.get(op.one_of(_VECTORS), 1)


def _resolve(space: str | None, access: Access) -> str:
    """Return the space of an access; if generic, by the window of its addresses. Outside all windows it is global."""
    if space is not None:
        return space
    for name, low, high in (("local", LOCAL_WINDOW, SHARED_WINDOW), ("shared", SHARED_WINDOW, 2 * SHARED_WINDOW)):
        if low <= access.address.min() and access.address.max() < high:
            access.address = access.address - np.uint64(low)
            return name
    return "global"


@semantics("ld", "ldu")
def load(op: Op) -> Step:
    space, length = _prepare(op)
    if space == "param":
        return _load_parameter(op, length)
    dtype = DTYPES[op.typed()]
    width = length * np.dtype(dtype).itemsize
    writers = [op.writer(text) for text in op.vector(0)]
    address, line, acquires = op.address(1), op.instruction.line, op.has("acquire")
    strong = op.has("acquire", "relaxed", "volatile") or (op.operands[1], op.operands[0]) in op.program.swapped

    def step(lanes: Lanes, mask: Mask) -> None:
        access = lanes.access("load", address(lanes), width, mask)
        access.strong = strong
        where = _resolve(space, access)
        if where == "global":
            values = lanes.memory.load(access, line)
        elif where == "shared":
            shared = lanes.batch.shared
            values = shared.bytes.load(shared.rows(access), access)
        else:
            values = lanes.local.data[lanes.local.place(access)]
        columns = lanes.spread(access, values).view(dtype)
        for column, write in enumerate(writers):
            write(lanes, np.ascontiguousarray(columns[:, column]), mask)
        if acquires:
            lanes.acquire(mask)

    return step


def _load_parameter(op: Op, length: int) -> Step:
    found = re.fullmatch(r"\[\s*\w+_param_(\d+)\s*\]", op.operands[1])
    if not found or length != 1:
        raise op.unknown(f"parameter {op.operands[1]}")
    index, dtype, write = int(found.group(1)), DTYPES[op.typed()], op.target()

    def step(lanes: Lanes, mask: Mask) -> None:
        value = np.frombuffer(lanes.batch.grid.arguments[index], dtype, 1)
        write(lanes, np.repeat(value, lanes.count), mask)

    return step


@semantics("st")
def store(op: Op) -> Step:
    space, length = _prepare(op)
    dtype = DTYPES[op.typed()]
    width = length * np.dtype(dtype).itemsize
    readers = [op.reader(text, op.type) for text in op.vector(1)]
    address, line = op.address(0), op.instruction.line

    def step(lanes: Lanes, mask: Mask) -> None:
        access = lanes.access("store", address(lanes), width, mask)
        where = _resolve(space, access)
        columns = np.stack([read(lanes) for read in readers], 1)
        values = np.ascontiguousarray(columns[access.active]).view(np.uint8)
        if where == "global":
            lanes.memory.store(access, values, line)
        elif where == "shared":
            shared = lanes.batch.shared
            shared.bytes.store(shared.rows(access), values, access)
        else:
            lanes.local.data[lanes.local.place(access)] = values

    return step


def _float_add(name: str) -> Function:
    """Return the addition of raw bits that hold one or two 16-bit floats."""

    def function(old: Array, value: Array) -> Array:
        total = decode(old.view(np.uint16), name) + decode(value.view(np.uint16), name)
        return encode(total, name).view(old.dtype)

    return function


def _compare_and_swap(old: Array, expected: Array, value: Array) -> Array:
    return np.where(old == expected, value, old)


def _update(op: Op) -> Function:
    """Return the atomic's operation, a function of (old, operand[, new])."""
    halves = op.type.removesuffix("x2")
    if op.has("add"):
        return _float_add(halves) if halves in ("f16", "bf16") else np.add
    one = DTYPES[op.type](1)
    functions: dict[str, Function] = {
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "exch": lambda old, value: value,
        "cas": _compare_and_swap,
        "inc": lambda old, limit: np.where(old >= limit, one - one, old + one),
        "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - one),
    }
    return functions[op.one_of(functions)]


_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec", "noftz")


@semantics("atom", "red")
def atomic(op: Op) -> Step:
    """Compile an atomic operation. Lanes take turns in an order that depends on the launch's seed.

    The order on hardware is unspecified.
    """
    space, length = _prepare(op, *_OPERATIONS)
    if not op.has(*_OPERATIONS):
        raise op.unknown()
    returns = op.instruction.family == "atom"
    dtype, function = DTYPES[op.typed()], _update(op)
    size = np.dtype(dtype).itemsize
    address = op.address(1 if returns else 0)
    values_at = 2 if returns else 1
    operands = [[op.reader(text, op.type) for text in op.vector(at)] for at in range(values_at, len(op.operands))]
    writers = [op.writer(text) for text in op.vector(0)] if returns else []
    line, acquires = op.instruction.line, op.has("acquire", "acq_rel")

    def step(lanes: Lanes, mask: Mask) -> None:
        access = lanes.access("atomic", address(lanes), length * size, mask)
        where = _resolve(space, access)
        inputs = [np.stack([read(lanes) for read in readers], 1)[access.active] for readers in operands]
        old = np.empty((access.active.size, length), dtype)
        if where == "global":
            places: Iterable[tuple[Array, Array, Array]] = lanes.memory.update(access, line)
        else:
            shared = lanes.batch.shared
            rows = shared.rows(access)
            places = [(shared.bytes.begin_update(rows, access), rows, np.arange(rows.size))]
        for data, rows, positions in places:
            cells = data.view(dtype)
            for turn in _turns(rows, lanes.batch.grid.random):
                row, lane = rows[turn], positions[turn]
                old[lane] = cells[row]
                cells[row] = function(cells[row], *[values[lane] for values in inputs])
        for column, write in enumerate(writers):
            write(lanes, np.ascontiguousarray(lanes.spread(access, old)[:, column]), mask)
        if acquires:
            lanes.acquire(mask)

    return step


def _turns(rows: Array, random: np.random.Generator) -> list[Array]:
    """Split positions into turns that touch each row at most once, in random order."""
    shuffled = random.permutation(rows.size)
    order = shuffled[np.argsort(rows[shuffled], kind="stable")]
    is_first = np.diff(rows[order], prepend=-1) != 0
    starts = np.maximum.accumulate(np.where(is_first, np.arange(rows.size), 0))
    rank = np.arange(rows.size) - starts
    return [order[rank == turn] for turn in range(rank.max() + 1)]


@semantics("fence", "membar")
def fence(op: Op) -> Step:
    """Compile a fence: after it, a CTA may read what other CTAs wrote. Memory itself is always in order here."""
    acquires = not op.has("cta", "proxy")
    return lambda lanes, mask: lanes.acquire(mask) if acquires else None


@semantics("griddepcontrol", "createpolicy", "prefetch", "nanosleep", "discard", "applypriority")
def hint(op: Op) -> Step:
    """Compile a hint to the hardware, which has no effect. A cache policy is a value that only hints use."""
    if op.instruction.family != "createpolicy":
        return lambda lanes, mask: None
    write = op.target()
    return lambda lanes, mask: write(lanes, np.zeros(lanes.count, UNSIGNED[8]), mask)
