"""Instructions that exchange values between the lanes of a warp.

They name the lanes that take part, and these must be the lanes that execute the instruction.
"""

from typing import Any

import numpy as np

from .errors import InactiveLane
from .lanes import Lanes, Step
from .operands import Op, semantics
from .types import DTYPES, FLOATS, Array, Mask

_LANE = np.arange(32)


def _by_warp(values: Array) -> Array:
    return values.reshape(-1, 32)


def _active(lanes: Lanes, mask: Mask) -> Array:
    """Return the active lanes as bool [warps, 32]."""
    return np.ones((lanes.count // 32, 32), np.bool_) if mask is None else _by_warp(mask)


def _ballot(flags: Array) -> Array:
    """Pack bool [warps, 32] into one uint32 per warp."""
    return np.packbits(flags, axis=1, bitorder="little").view(np.uint32)[:, 0]


def _for_warp(values: Array) -> Array:
    """Repeat one value per warp for all its lanes."""
    return np.repeat(values, 32)


def _check_members(members: Array, active: Array) -> None:
    """Check that the lanes that the instruction names are those that execute it."""
    wrong = active & (_by_warp(members) != _ballot(active)[:, None])
    if wrong.any():
        message = "the lanes that a warp-wide instruction names are not those that execute it"
        raise InactiveLane(message, int(wrong.argmax()))


@semantics("shfl")
def shuffle(op: Op) -> Step:
    mode = op.one_of(("bfly", "up", "down", "idx"))
    op.allow("sync", mode, count=5)
    target, _, found = op.operands[0].partition("|")
    write, write_found = op.writer(target), op.writer(found or "_")
    value, members = op.source(1, op.typed()), op.source(4, "u32")
    distance, clamp = op.source(2, "u32"), op.source(3, "u32")

    def step(lanes: Lanes, mask: Mask) -> None:
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        by, bound = (_by_warp(read(lanes).astype(np.int64)) for read in (distance, clamp))
        segment, limit = bound >> 8 & 31, bound & 31
        lowest = _LANE & segment
        edge = lowest if mode == "up" else lowest | limit & ~segment
        by = by & 31
        source = {"bfly": _LANE ^ by, "up": _LANE - by, "down": _LANE + by, "idx": lowest | by & ~segment}[mode]
        in_range = source >= edge if mode == "up" else source <= edge
        source = np.where(in_range, source, _LANE)
        unseen = active & ~np.take_along_axis(active, source, 1)
        if unseen.any():
            raise InactiveLane("a shuffle reads a lane that does not execute it", int(unseen.argmax()))
        write(lanes, np.take_along_axis(_by_warp(value(lanes)), source, 1).reshape(-1), mask)
        write_found(lanes, in_range.reshape(-1), mask)

    return step


@semantics("vote")
def vote(op: Op) -> Step:
    mode = op.one_of(("ballot", "any", "all", "uni"))
    op.allow("sync", mode, count=3)
    value, members, write = op.source(1, "pred"), op.source(2, "u32"), op.target()

    def step(lanes: Lanes, mask: Mask) -> None:
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        yes = _by_warp(value(lanes)) & active
        unanimous = (yes == active).all(1)
        some = yes.any(1)
        outcome = {"ballot": _ballot(yes), "any": some, "all": unanimous, "uni": unanimous | ~some}[mode]
        write(lanes, _for_warp(outcome), mask)

    return step


@semantics("activemask")
def active_mask(op: Op) -> Step:
    write = op.target()
    return lambda lanes, mask: write(lanes, _for_warp(_ballot(_active(lanes, mask))), mask)


@semantics("match")
def match(op: Op) -> Step:
    op.allow("sync", "any", count=3)
    value, members, write = op.source(1, op.typed()), op.source(2, "u32"), op.target()

    def step(lanes: Lanes, mask: Mask) -> None:
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        values = _by_warp(value(lanes))
        equal = (values[:, :, None] == values[:, None, :]) & active[:, None, :]
        write(lanes, _ballot(equal.reshape(-1, 32)), mask)

    return step


@semantics("redux")
def reduce_warp(op: Op) -> Step:
    kind = op.one_of(("add", "min", "max", "and", "or", "xor"))
    op.allow("sync", kind, "abs", "NaN", count=3)
    value, members, write = op.source(1, op.typed()), op.source(2, "u32"), op.target()
    dtype = DTYPES[op.type]
    is_float = op.type in FLOATS
    functions: dict[str, tuple[Any, float]]
    if is_float:
        functions = {"min": (np.fmin, np.inf), "max": (np.fmax, -np.inf)}
        if op.has("NaN"):
            functions = {"min": (np.minimum, np.inf), "max": (np.maximum, -np.inf)}
    else:
        limits = np.iinfo(dtype)
        functions = {
            "add": (np.add, 0),
            "min": (np.minimum, limits.max),
            "max": (np.maximum, limits.min),
            "and": (np.bitwise_and, -1 if limits.min else limits.max),
            "or": (np.bitwise_or, 0),
            "xor": (np.bitwise_xor, 0),
        }
    function, identity = functions[kind]

    def step(lanes: Lanes, mask: Mask) -> None:
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        values = np.abs(value(lanes)) if op.has("abs") else value(lanes)
        # The extremum of nothing but NaNs is NaN, so floats have no identity: fill with an active lane's value instead.
        fill = _by_warp(values)[np.arange(len(active)), active.argmax(1)][:, None] if is_float else dtype(identity)
        chosen = np.where(active, _by_warp(values), fill)
        write(lanes, _for_warp(function.reduce(chosen, axis=1, dtype=dtype)), mask)

    return step


@semantics("bar", "barrier")
def warp_barrier(op: Op) -> Step:
    """Compile bar.warp.sync. The scheduler (machine.py) handles barriers of the whole CTA."""
    if op.qualifiers[:1] != ["warp"]:
        raise op.unknown()
    return lambda lanes, mask: None
