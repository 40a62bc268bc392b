"""One memory instruction as the memories see it: what the active lanes of a group ask for."""

from dataclasses import dataclass, replace

from .types import Array


@dataclass
class Access:
    """One memory instruction of one group. Arrays are [n], with one entry per active lane."""

    what: str  # "load", "store", "atomic" or "copy"
    active: Array  # int64, indices of the active lanes
    address: Array  # uint64
    width: int  # bytes per lane
    warp: Array  # int64, unique over the grid, nondecreasing
    cta_index: Array  # int64, index of the CTA in the batch
    key: Array  # int64, see tracked.py
    acquired: Array  # bool, whether the lane's CTA has executed an acquiring atomic
    strong: bool = False  # whether a load is ordered with atomics, as atomics are with each other

    def only(self, positions: Array) -> "Access":
        """Return the access of some of the lanes, by their positions in the arrays."""
        if positions.size == self.address.size:
            return self
        names = ("active", "address", "warp", "cta_index", "key", "acquired")
        return replace(self, **{name: getattr(self, name)[positions] for name in names})


@dataclass
class Copy:
    """A cp.async in flight. Arrays are [n], with one entry per lane that issued it."""

    access: Access  # the destination, in shared memory
    values: Array  # uint8 [n, width]
    group: Array  # int64, number of the commit_group that each lane's copy belongs to
