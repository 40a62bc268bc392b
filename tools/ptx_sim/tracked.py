"""Bytes with a history: who wrote each, who read it, in which barrier interval. Serves shared and global memory
alike.

A key says who and when: CTA << 40 | barrier interval << 10 | warp. Two accesses of one byte are unordered if their
keys have the same CTA and interval and different warps (a Race), or different CTAs, where the later one has not
executed an acquiring atomic since its start (a WriteConflict). A store of the value that is already there harms
nobody and is allowed within a CTA: Triton's replicated layouts do it. Not checked: order within one warp, whether the
writer's side released, and a plain read that comes before another's atomic.
"""

import numpy as np

from .errors import Race, Uninitialised, WriteConflict

CTA_SHIFT, INTERVAL_SHIFT = 40, 10
_SEVERAL = (1 << INTERVAL_SHIFT) - 1  # stands for the warp where more than one has read
_NEVER = -1
_SEVERAL_CTAS = ((1 << 22) - 1) << CTA_SHIFT


def _both(earlier, mine):
    """The key of two readers of one byte, as far as a later store must know it."""
    other_warp = (earlier != mine) & (earlier >> INTERVAL_SHIFT == mine >> INTERVAL_SHIFT)
    together = np.where(other_warp, mine | _SEVERAL, mine)
    return np.where(earlier >> CTA_SHIFT == mine >> CTA_SHIFT, together, _SEVERAL_CTAS)


class TrackedBytes:
    def __init__(self, size, name, initialised):
        """`size` is a multiple of 32, the widest access."""
        self.name = name
        self.data = np.zeros(size, np.uint8)
        self.initialised = np.full(size, initialised)
        self.writer = np.full(size, _NEVER, np.int64)
        self.reader = np.full(size, _NEVER, np.int64)
        self.by_atomic = np.zeros(size, np.bool_)
        self.ever_written = False

    def load(self, rows, access):
        """The bytes of rows [n] of the access's width, as uint8 [n, width]."""
        self._check_initialised(rows, access)
        if self.ever_written:
            writers = self._plain_writers(rows, access) if access.strong else self._rows(self.writer, access)[rows]
            self._check_order(writers, access, "reads what {} wrote")
        self._note_read(rows, access)
        return self._rows(self.data, access)[rows]

    def store(self, rows, values, access):
        """`values` are uint8 [n, width]."""
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

    def begin_update(self, rows, access):
        """The checks of an atomic operation, which other atomics may share its place with. Returns the data."""
        self._check_initialised(rows, access)
        self._check_order(self._plain_writers(rows, access), access, "updates what {} wrote")
        self._note_write(rows, access, by_atomic=True)
        return self._rows(self.data, access)

    def forget(self, rows, access):
        """Marks bytes that an asynchronous copy will write some time from now."""
        self._check_order(self._rows(self.reader, access)[rows], access, "copies over what {} read")
        self._rows(self.initialised, access)[rows] = False

    @staticmethod
    def _rows(table, access):
        return table.reshape(-1, access.width)

    def _plain_writers(self, rows, access):
        return np.where(self._rows(self.by_atomic, access)[rows], _NEVER, self._rows(self.writer, access)[rows])

    def _check_initialised(self, rows, access):
        known = self._rows(self.initialised, access)[rows].all(1)
        if not known.all():
            self._fail(Uninitialised, "reads bytes that nothing has written", ~known, access)

    def _check_order(self, last, access, verb, harmless=None):
        """`last` [n, width]: the keys of earlier accesses that this one must not be unordered with."""
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

    def _note_read(self, rows, access):
        table = self._rows(self.reader, access)
        mine = access.key[:, None]
        noted = np.where(table[rows] == _NEVER, mine, _both(table[rows], mine))
        table[rows] = noted
        # Where several lanes of one instruction read one byte, only the last is noted so far.
        overwritten = table[rows] != noted
        if overwritten.any():
            again = overwritten.any(1)
            table[rows[again]] = _both(table[rows], noted)[again]

    def _note_write(self, rows, access, by_atomic):
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

    def _fail(self, kind, message, bad, access):
        raise kind(f"{access.what} of {access.width} bytes in {self.name}: {message}", access.active[bad.argmax()])
