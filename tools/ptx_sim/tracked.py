"""Shared and global memory that records, for every byte, who wrote and read it and in which barrier interval.

A key identifies who and when: CTA << 40 | barrier interval << 10 | warp. Two accesses to a byte are unordered if their
keys have the same CTA and interval but different warps (a Race), or different CTAs and the later CTA has not executed
an acquiring atomic since its start (a WriteConflict). Storing the value that is already there is harmless and allowed
within a CTA: Triton's replicated layouts do it. Three things are not checked: order within a warp, whether the writer
released, and a plain read before another thread's atomic.
"""

from typing import NoReturn

import numpy as np

from .access import Access
from .errors import Fault, Race, Uninitialised, WriteConflict
from .types import Array

CTA_SHIFT, INTERVAL_SHIFT = 40, 10
_SEVERAL = (1 << INTERVAL_SHIFT) - 1  # in place of the warp if several warps have read
_NEVER = -1
_SEVERAL_CTAS = ((1 << 22) - 1) << CTA_SHIFT


def _both(earlier: Array, mine: Array) -> Array:
    """Combine the keys of two readers of a byte into one that suffices to check a later store."""
    other_warp = (earlier != mine) & (earlier >> INTERVAL_SHIFT == mine >> INTERVAL_SHIFT)
    together = np.where(other_warp, mine | _SEVERAL, mine)
    return np.where(earlier >> CTA_SHIFT == mine >> CTA_SHIFT, together, _SEVERAL_CTAS)


class TrackedBytes:
    """An allocation with its history. Its size is a multiple of 32 bytes, the widest access.

    Methods take `rows`, int64 [n]: each access's offset in units of its width.
    """

    def __init__(self, size: int, name: str, initialised: bool) -> None:
        self.name = name
        self.data = np.zeros(size, np.uint8)
        self.initialised = np.full(size, initialised)
        self.writer = np.full(size, _NEVER, np.int64)
        self.reader = np.full(size, _NEVER, np.int64)
        self.by_atomic = np.zeros(size, np.bool_)
        self.ever_written = False

    def load(self, rows: Array, access: Access) -> Array:
        """Return the bytes of the rows: uint8 [n, width]."""
        self._check_initialised(rows, access)
        if self.ever_written:
            writers = self._plain_writers(rows, access) if access.strong else self._rows(self.writer, access)[rows]
            self._check_order(writers, access, "reads what {} wrote")
        self._note_read(rows, access)
        return self._rows(self.data, access)[rows]

    def store(self, rows: Array, values: Array, access: Access) -> None:
        """Store `values`, uint8 [n, width]."""
        data, initialised = self._rows(self.data, access), self._rows(self.initialised, access)
        harmless = ((data[rows] == values) & initialised[rows]).all(1)
        for table, verb in ((self.writer, "stores over what {} wrote"), (self.reader, "stores over what {} read")):
            self._check_order(self._rows(table, access)[rows], access, verb, harmless)
        self._note_write(rows, access, by_atomic=False)
        data[rows] = values
        # Nothing orders the lanes of one instruction: if two of them share an address, their values must agree.
        lost = (data[rows] != values).any(1)
        if lost.any():
            self._fail(Race, "two lanes of one instruction store different values to one address", lost, access)

    def begin_update(self, rows: Array, access: Access) -> Array:
        """Check and record an atomic operation, and return the data [rows, width] for it to change.

        Other atomics may access the same bytes.
        """
        self._check_initialised(rows, access)
        self._check_order(self._plain_writers(rows, access), access, "updates what {} wrote")
        self._note_write(rows, access, by_atomic=True)
        return self._rows(self.data, access)

    def forget(self, rows: Array, access: Access) -> None:
        """Mark bytes as uninitialised, because an asynchronous copy will write them later."""
        self._check_order(self._rows(self.reader, access)[rows], access, "copies over what {} read")
        self._rows(self.initialised, access)[rows] = False

    @staticmethod
    def _rows(table: Array, access: Access) -> Array:
        return table.reshape(-1, access.width)

    def _plain_writers(self, rows: Array, access: Access) -> Array:
        return np.where(self._rows(self.by_atomic, access)[rows], _NEVER, self._rows(self.writer, access)[rows])

    def _check_initialised(self, rows: Array, access: Access) -> None:
        known = self._rows(self.initialised, access)[rows].all(1)
        if not known.all():
            self._fail(Uninitialised, "reads bytes that have not been written", ~known, access)

    def _check_order(self, last: Array, access: Access, verb: str, harmless: Array | None = None) -> None:
        """Check an access against the keys `last` [n, width] of earlier accesses that must be ordered before it."""
        mine = access.key[:, None]
        suspect = (last != mine) & (last != _NEVER)
        if not suspect.any():
            return
        raced = (suspect & (last >> INTERVAL_SHIFT == mine >> INTERVAL_SHIFT)).any(1)
        if harmless is not None:
            raced &= ~harmless
        if raced.any():
            self._fail(Race, verb.format("another warp") + " with no barrier between", raced, access)
        conflict = (suspect & (last >> CTA_SHIFT != mine >> CTA_SHIFT)).any(1) & ~access.acquired
        if conflict.any():
            self._fail(WriteConflict, verb.format("another CTA") + " with no atomic to order them", conflict, access)

    def _note_read(self, rows: Array, access: Access) -> None:
        table = self._rows(self.reader, access)
        mine = access.key[:, None]
        noted = np.where(table[rows] == _NEVER, mine, _both(table[rows], mine))
        table[rows] = noted
        # If several lanes of one instruction read a byte, only the last of them is recorded so far.
        overwritten = table[rows] != noted
        if overwritten.any():
            again = overwritten.any(1)
            table[rows[again]] = _both(table[rows], noted)[again]

    def _note_write(self, rows: Array, access: Access, by_atomic: bool) -> None:
        table = self._rows(self.writer, access)
        mine = access.key[:, None]
        table[rows] = mine
        if not by_atomic:
            other_cta = (table[rows] >> CTA_SHIFT != mine >> CTA_SHIFT).any(1)
            if other_cta.any():
                self._fail(WriteConflict, "stores where another CTA stores at the same time", other_cta, access)
        self._rows(self.by_atomic, access)[rows] = by_atomic
        self._rows(self.initialised, access)[rows] = True
        self.ever_written = True

    def _fail(self, kind: type[Fault], message: str, bad: Array | np.bool_, access: Access) -> NoReturn:
        lane = int(access.active[bad.argmax()])
        raise kind(f"{access.what} of {access.width} bytes in {self.name}: {message}", lane)
