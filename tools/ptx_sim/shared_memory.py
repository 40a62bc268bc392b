"""The shared memory of the CTAs that run together, each with its own slot, and the stacks of their threads.

Shared memory starts uninitialised; races are found as tracked.py says. A thread's stack is checked for bounds only.
"""

import numpy as np

from .errors import StrayAccess
from .tracked import TrackedBytes


class SharedMemory:
    def __init__(self, size, ctas):
        self.size = size
        self.slot = -(-max(size, 1) // 32) * 32
        self.bytes = TrackedBytes(self.slot * ctas, "shared memory", False)

    def rows(self, access):
        outside = access.address + np.uint64(access.width) > np.uint64(self.size)
        if outside.any():
            bad = outside.argmax()
            raise StrayAccess(
                f"{access.what} of {access.width} bytes at {access.address[bad]} of {self.size} bytes of shared memory",
                access.active[bad],
            )
        return (access.cta_slot * self.slot + access.address.astype(np.int64)) // access.width


class LocalMemory:
    def __init__(self, size, lanes):
        self.size = size
        self.data = np.zeros((lanes, -(-max(size, 1) // 32) * 32), np.uint8)

    def place(self, access):
        """Indices of the accessed bytes: lanes [n, 1] and offsets [n, width]."""
        if (access.address + np.uint64(access.width) > np.uint64(self.size)).any():
            raise StrayAccess(f"{access.what} beyond the {self.size} bytes of the stack", access.active[0])
        offsets = access.address.astype(np.int64)[:, None] + np.arange(access.width)
        return access.active[:, None], offsets
