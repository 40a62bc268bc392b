"""Global memory: the launch's tensors at made-up device addresses, separated by guard gaps.

Every torch storage is one allocation, aligned as a CUDA allocation would be. A byte may be accessed only if a tensor
argument has an element there: the padding between the rows of a strided view is as forbidden as the bytes past its end.
"""

from collections.abc import Iterator

import numpy as np
import torch

from .access import Access
from .counters import Counters
from .errors import StrayAccess
from .tracked import TrackedBytes
from .types import Array

_FIRST = 1 << 44
_GAP = 1 << 32
_WIDEST = 32  # bytes of the widest access


class Allocation:
    """One storage. Tensors that share it are arguments with different offsets into it."""

    def __init__(self, storage: torch.UntypedStorage, base: int, name: str) -> None:
        self.base = base
        self.size = storage.nbytes()
        self.source = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        padded = -(-max(self.size, 1) // _WIDEST) * _WIDEST
        self.bytes = TrackedBytes(padded, name, True)
        self.bytes.data[: self.size] = self.source
        self.allowed = np.zeros(padded, np.bool_)
        # Reads and writes of every byte, as differences: +1 at the start of an access, -1 behind its end.
        self.reads = np.zeros(padded + 1, np.int64)
        self.writes = np.zeros(padded + 1, np.int64)

    def admit(self, tensor: torch.Tensor, initialised: bool | Array) -> None:
        """Allow accesses to a tensor's elements, and set whether they (or, as an array, all bytes) are initialised."""
        touched = element_bytes(self.allowed, tensor)
        touched[...] = True
        if isinstance(initialised, np.ndarray):
            self.bytes.initialised[: self.size] = initialised
        elif not initialised:
            element_bytes(self.bytes.initialised, tensor)[...] = False

    def rows(self, access: Access, counts: Array) -> Array:
        """Check that the access is in bounds, count it in `counts`, and return its rows of the access's width: [n]."""
        offset = (access.address - np.uint64(self.base)).astype(np.int64)
        rows = offset // access.width
        inside = (offset >= 0) & (offset < self.allowed.size)
        inside &= self.allowed.reshape(-1, access.width)[np.where(inside, rows, 0)].all(1)
        if not inside.all():
            bad = (~inside).argmax()
            raise StrayAccess(
                f"{access.what} of {access.width} bytes by {int((~inside).sum())} lanes, the first at byte "
                f"{offset[bad]} of {self.bytes.name}, which no argument covers",
                access.active[bad],
            )
        np.add.at(counts, offset, 1)
        np.add.at(counts, offset + access.width, -1)
        return rows

    def write_back(self) -> None:
        self.source[:] = self.bytes.data[: self.size]


def element_bytes(table: Array, tensor: torch.Tensor) -> Array:
    """Return a view of a per-byte table of the tensor's storage, shaped [*tensor.shape, itemsize]."""
    size = tensor.element_size()
    strides = [stride * size * table.itemsize for stride in tensor.stride()] + [table.itemsize]
    start = table[tensor.storage_offset() * size :]
    return np.lib.stride_tricks.as_strided(start, (*tensor.shape, size), strides)


class GlobalMemory:
    def __init__(self, counters: Counters) -> None:
        self.allocations: dict[int | tuple[str, str], Allocation] = {}  # by the storage's address
        self.counters = counters

    def add(self, name: str, tensor: torch.Tensor, initialised: bool | Array) -> int:
        """Add an argument and return its device address."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr() if storage.nbytes() else ("empty", name)
        if key not in self.allocations:
            self.allocations[key] = Allocation(storage, _FIRST + len(self.allocations) * _GAP, name)
        allocation = self.allocations[key]
        if tensor.numel():
            allocation.admit(tensor, initialised)
        return allocation.base + int(tensor.storage_offset()) * tensor.element_size()

    def allocation_of(self, tensor: torch.Tensor) -> Allocation:
        return self.allocations[tensor.untyped_storage().data_ptr()]

    def _parts(self, access: Access) -> Iterator[tuple[Allocation, Array]]:
        """Yield each allocation that an access touches, with the positions of its lanes in the access."""
        index = (access.address.astype(np.int64) - _FIRST) // _GAP
        allocations = list(self.allocations.values())
        for which in np.unique(index) if index.min() != index.max() else index[:1]:
            if not 0 <= which < len(allocations):
                bad = (index == which).argmax()
                raise StrayAccess(
                    f"{access.what} of {access.width} bytes at address {access.address[bad]:#x}, far from any argument",
                    access.active[bad],
                )
            yield allocations[which], np.flatnonzero(index == which)

    def load(self, access: Access, line: int) -> Array:
        """Return the bytes read, uint8 [n, width]. `line` is the instruction's PTX line, for the counters."""
        values = np.empty((access.address.size, access.width), np.uint8)
        for allocation, lanes in self._parts(access):
            part = access.only(lanes)
            rows = allocation.rows(part, allocation.reads)
            self.counters.request(line, allocation.bytes.name, part)
            values[lanes] = allocation.bytes.load(rows, part)
        return values

    def store(self, access: Access, values: Array, line: int) -> None:
        """Store `values`, uint8 [n, width]."""
        for allocation, lanes in self._parts(access):
            part = access.only(lanes)
            rows = allocation.rows(part, allocation.writes)
            self.counters.request(line, allocation.bytes.name, part)
            allocation.bytes.store(rows, values[lanes], part)

    def update(self, access: Access, line: int) -> Iterator[tuple[Array, Array, Array]]:
        """Yield (data [rows, width], rows, positions in the access) for an atomic operation to change in place."""
        for allocation, lanes in self._parts(access):
            part = access.only(lanes)
            rows = allocation.rows(part, allocation.reads)
            self.counters.request(line, allocation.bytes.name, part)
            yield allocation.bytes.begin_update(rows, part), rows, lanes

    def write_back(self) -> None:
        for allocation in self.allocations.values():
            allocation.write_back()
