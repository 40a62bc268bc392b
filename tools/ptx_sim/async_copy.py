"""cp.async: copies from global to shared memory that complete when the issuing thread waits for their group.

The source is read when the copy is issued. The destination counts as uninitialised from the issue to the wait, so that
a read without the wait is a fault. Copies of part of a chunk, and the bulk copies of sm_90, are not implemented.
"""

import numpy as np

from .access import Copy
from .lanes import Lanes, Step
from .operands import Op, semantics
from .types import Mask

_OPEN = np.iinfo(np.int64).max  # the group of a copy that is not committed yet


@semantics("cp")
def asynchronous_copy(op: Op) -> Step:
    if op.qualifiers[0] != "async":
        raise op.unknown()
    action = op.qualifiers[1]
    if action == "commit_group":
        return _commit
    if action in ("wait_group", "wait_all"):
        allowed = int(op.operands[0], 0) if action == "wait_group" else 0
        return lambda lanes, mask: _wait(lanes, mask, allowed, everything=action == "wait_all")
    return _issue(op)


def _issue(op: Op) -> Step:
    op.type = ""
    op.allow("async", "ca", "cg", "shared", "shared::cta", "global", "L2::64B", "L2::128B", "L2::256B", count=(3, 4))
    to, from_, width = op.address(0), op.address(1), int(op.operands[2], 0)
    filled = op.source(3, "u32") if len(op.operands) == 4 else None
    line = op.instruction.line

    def step(lanes: Lanes, mask: Mask) -> None:
        target = lanes.access("copy", to(lanes), width, mask)
        values = np.zeros((target.active.size, width), np.uint8)
        if filled is None:
            reads = np.ones(target.active.size, np.bool_)
        else:
            size = filled(lanes)[target.active]
            if not np.isin(size, (0, width)).all():
                raise op.unknown("partial chunk")
            reads = size == width
        if reads.any():
            wanted = np.zeros(lanes.count, np.bool_)
            wanted[target.active[reads]] = True
            values[reads] = lanes.memory.load(lanes.access("load", from_(lanes), width, wanted), line)
        shared = lanes.batch.shared
        shared.bytes.forget(shared.rows(target), target)
        lanes.copies.append(Copy(target, values, np.full(target.active.size, _OPEN)))

    return step


def _commit(lanes: Lanes, mask: Mask) -> None:
    active = np.ones(lanes.count, np.bool_) if mask is None else mask
    for copy in lanes.copies:
        joins = (copy.group == _OPEN) & active[copy.access.active]
        copy.group = np.where(joins, lanes.groups_committed[copy.access.active], copy.group)
    lanes.groups_committed = lanes.groups_committed + active


def _wait(lanes: Lanes, mask: Mask, allowed: int, everything: bool) -> None:
    """Complete the copies of all but the latest `allowed` committed groups of each waiting lane."""
    if everything:
        _commit(lanes, mask)
    active = np.ones(lanes.count, np.bool_) if mask is None else mask
    shared, in_flight = lanes.batch.shared, []
    for copy in lanes.copies:
        lane = copy.access.active
        completes = active[lane] & (copy.group < lanes.groups_committed[lane] - allowed)
        if completes.any():
            # The bytes arrive now, in the barrier interval of the wait rather than of the issue.
            waiting = np.zeros(lanes.count, np.bool_)
            waiting[lane[completes]] = True
            address = np.zeros(lanes.count, np.uint64)
            address[lane] = copy.access.address
            arrived = lanes.access("copy", address, copy.access.width, waiting)
            shared.bytes.store(shared.rows(arrived), copy.values[completes], arrived)
        if not completes.all():
            left = np.flatnonzero(~completes)
            in_flight.append(Copy(copy.access.only(left), copy.values[left], copy.group[left]))
    lanes.copies = in_flight
