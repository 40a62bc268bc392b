"""Instructions in which the lanes of a warp see each other. They name the lanes that take part, which is checked."""

import numpy as np

from .errors import InactiveLane
from .operands import semantics
from .types import DTYPES, FLOATS

_LANE = np.arange(32)


def _by_warp(values):
    return values.reshape(-1, 32)


def _active(lanes, mask):
    """[warps, 32]"""
    return np.ones((lanes.count // 32, 32), np.bool_) if mask is None else _by_warp(mask)


def _ballot(flags):
    """[warps, 32] booleans as one uint32 a warp."""
    return np.packbits(flags, axis=1, bitorder="little").view(np.uint32)[:, 0]


def _for_warp(values):
    """One value a warp, for all its lanes."""
    return np.repeat(values, 32)


def _check_members(members, active):
    """The lanes that the instruction names must be those that execute it."""
    wrong = active & (_by_warp(members) != _ballot(active)[:, None])
    if wrong.any():
        raise InactiveLane("the lanes that a warp-wide instruction names are not those that execute it", wrong.argmax())


@semantics("shfl")
def shuffle(op):
    mode = op.one_of(("bfly", "up", "down", "idx"))
    op.allow("sync", mode, count=5)
    target, _, found = op.operands[0].partition("|")
    write, write_found = op.writer(target), op.writer(found or "_")
    value, members = op.source(1, op.typed()), op.source(4, "u32")
    distance, clamp = op.source(2, "u32"), op.source(3, "u32")

    def step(lanes, mask):
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
            raise InactiveLane("a shuffle reads a lane that does not execute it", unseen.argmax())
        write(lanes, np.take_along_axis(_by_warp(value(lanes)), source, 1).reshape(-1), mask)
        write_found(lanes, in_range.reshape(-1), mask)

    return step


@semantics("vote")
def vote(op):
    mode = op.one_of(("ballot", "any", "all", "uni"))
    op.allow("sync", mode, count=3)
    value, members, write = op.source(1, "pred"), op.source(2, "u32"), op.target()

    def step(lanes, mask):
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        yes = _by_warp(value(lanes)) & active
        unanimous = (yes == active).all(1)
        outcome = {
            "ballot": lambda: _ballot(yes),
            "any": lambda: yes.any(1),
            "all": lambda: unanimous,
            "uni": lambda: unanimous | ~yes.any(1),
        }[mode]()
        write(lanes, _for_warp(outcome), mask)

    return step


@semantics("activemask")
def active_mask(op):
    write = op.target()
    return lambda lanes, mask: write(lanes, _for_warp(_ballot(_active(lanes, mask))), mask)


@semantics("match")
def match(op):
    op.allow("sync", "any", count=3)
    value, members, write = op.source(1, op.typed()), op.source(2, "u32"), op.target()

    def step(lanes, mask):
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        values = _by_warp(value(lanes))
        equal = (values[:, :, None] == values[:, None, :]) & active[:, None, :]
        write(lanes, _ballot(equal.reshape(-1, 32)), mask)

    return step


@semantics("redux")
def reduce_warp(op):
    kind = op.one_of(("add", "min", "max", "and", "or", "xor"))
    op.allow("sync", kind, "abs", "NaN", count=3)
    value, members, write = op.source(1, op.typed()), op.source(2, "u32"), op.target()
    dtype = DTYPES[op.type]
    is_float = op.type in FLOATS
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

    def step(lanes, mask):
        active = _active(lanes, mask)
        _check_members(members(lanes), active)
        values = np.abs(value(lanes)) if op.has("abs") else value(lanes)
        # A float extremum of NaNs alone is NaN, which no identity gives: fill with an active lane's value instead.
        fill = _by_warp(values)[np.arange(len(active)), active.argmax(1)][:, None] if is_float else dtype(identity)
        chosen = np.where(active, _by_warp(values), fill)
        write(lanes, _for_warp(function.reduce(chosen, axis=1, dtype=dtype)), mask)

    return step


@semantics("bar", "barrier")
def warp_barrier(op):
    """bar.warp.sync. Barriers of the whole CTA are the scheduler's (machine.py)."""
    if op.qualifiers[:1] != ["warp"]:
        raise op.unknown()
    return lambda lanes, mask: None
