"""The shared memory of the CTAs that run together, and the stacks of their threads.

Shared memory starts uninitialised, and tracked.py detects races. Accesses to a stack are checked for bounds only.
"""

import numpy as np

from .access import Access
from .errors import StrayAccess
from .tracked import TrackedBytes
from .types import Array


class SharedMemory:
    """One allocation for all CTAs of a batch, each with its own part."""

    def __init__(self, size: int, ctas: int) -> None:
        self.size = size
        self.cta_stride = -(-max(size, 1) // 32) * 32
        self.bytes = TrackedBytes(self.cta_stride * ctas, "shared memory", False)

    def rows(self, access: Access) -> Array:
        """Check that the access is in bounds and return its rows of the access's width: [n]."""
        outside = access.address + np.uint64(access.width) > np.uint64(self.size)
        if outside.any():
            bad = outside.argmax()
            raise StrayAccess(
                f"{access.what} of {access.width} bytes at {access.address[bad]} of {self.size} bytes of shared memory",
                access.active[bad],
            )
        return (access.cta_index * self.cta_stride + access.address.astype(np.int64)) // access.width


class LocalMemory:
    """The stacks of a group's threads: uint8 [lanes, bytes]."""

    def __init__(self, size: int, lanes: int) -> None:
        self.size = size
        self.data = np.zeros((lanes, -(-max(size, 1) // 32) * 32), np.uint8)

    def place(self, access: Access) -> tuple[Array, Array]:
        """Return the indices of the accessed bytes: lanes [n, 1] and offsets [n, width]."""
        if (access.address + np.uint64(access.width) > np.uint64(self.size)).any():
            raise StrayAccess(f"{access.what} beyond the {self.size} bytes of the stack", access.active[0])
        offsets = access.address.astype(np.int64)[:, None] + np.arange(access.width)
        return access.active[:, None], offsets
