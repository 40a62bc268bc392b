"""One key-value cache for two models that hold the same tokens: pages, shared by the continuations of a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cdgen.errors import InputError
from cdgen.hardware import free_memory, free_memory_text

PAGE_SIZE = 16  # tokens per page


class CacheShape(NamedTuple):
    """What a model stores per token: keys and values [num_layers, num_kv_heads, head_dim] of `dtype`."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class SharedKVCache:
    """Pages of keys and values for one or two models. One page table serves them all, since they hold the same tokens.

    A sequence is a prompt (`allocate`) or a continuation of one (`fork`). Prompts never change; continuations grow by
    `extend`. Continuations share their prompt's pages, and copy its partly filled last page when they first write to
    it.

    A prompt is admitted only if all its continuations can be finished, so `extend` always finds a page. For a prompt of
    L tokens with n continuations that may each grow to L + M tokens, in pages of S tokens:

        growth  = ceil((L + M) / S) - ceil(L / S)      pages that a continuation adds
        partial = 1 if S does not divide L, else 0     a last page that each continuation must own
        needed  = ceil(L / S) + n * (growth + partial) - partial

    The last `partial` is subtracted because the last continuation that writes to the prompt's partial page takes it
    over. That is why a prompt gives up its pages when its last reserved continuation is forked: otherwise it would
    still hold that page. Pages that have not been taken yet are reserved: never more than are free, and exactly as many
    as continuations of full length will take.

    Args:
        shapes: a :class:`CacheShape` for each model, one or two.
        cache_rows: number of sequences held at once, including prompts.
        max_length: number of tokens of the longest sequence.
        device: device of the stores and the page table; the rest of the bookkeeping is numpy's, on the host.
        sequences: upper limit on the memory, as a number of sequences of `max_length`; default: `cache_rows`.
        memory_bytes: budget of all stores together; default: limited by `sequences` only.
        page_size: tokens per page.
    Attributes:
        keys, values: for each model a tensor [num_layers, pages, num_kv_heads, page_size, head_dim]. The caller writes
            the newest token of a sequence that was extended.
        page_table: int32 [cache_rows, max_pages] on the device; -1 for no page.
        lengths: numpy int64 [cache_rows], tokens of each sequence; 0 for none.
        free_pages: number of pages that no sequence holds.
        reserved_pages: how many of the free pages are set aside for continuations.
    Raises:
        InputError: the budget does not hold one sequence of `max_length`, or the memory cannot be allocated.
    """

    def __init__(
        self,
        shapes: Sequence[CacheShape],
        *,
        cache_rows: int,
        max_length: int,
        device: torch.device | str,
        sequences: int | None = None,
        memory_bytes: int | None = None,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.page_size, self.max_length = page_size, max_length
        max_pages = self._pages(max_length)
        self.page_bytes = page_size * sum(shape.bytes_per_token for shape in shapes)
        pages = (sequences or cache_rows) * max_pages
        if memory_bytes is not None:
            pages = min(pages, memory_bytes // self.page_bytes)
        if pages < max_pages:
            need = max_pages * self.page_bytes
            raise InputError(
                f"a sequence of {max_length} tokens needs {need:,} bytes of cache, but the budget is {memory_bytes:,}; "
                "lower max_tokens, or raise kv_cache_memory_bytes if more memory is free"
            )

        def store(shape: CacheShape) -> torch.Tensor:
            # Zeros, because attention reads to the end of a page, and 0 * NaN would reach its sum.
            size = (shape.num_layers, pages, shape.num_kv_heads, page_size, shape.head_dim)
            return torch.zeros(size, dtype=shape.dtype, device=device)

        try:
            self.keys: tuple[torch.Tensor, ...] = tuple(map(store, shapes))
            self.values: tuple[torch.Tensor, ...] = tuple(map(store, shapes))
        except RuntimeError as error:  # torch.OutOfMemoryError on GPUs
            free = free_memory_text(torch.device(device), free_memory(torch.device(device)))
            raise InputError(
                f"a cache of {pages * self.page_bytes / 1e9:.3g} GB cannot be allocated: {free}; "
                "lower max_num_seqs or kv_cache_memory_bytes"
            ) from error
        self.page_table = torch.full((cache_rows, max_pages), -1, dtype=torch.int32, device=device)
        self.lengths = np.zeros(cache_rows, dtype=np.int64)
        self.free_pages, self.reserved_pages = pages, 0
        self._table = np.full((cache_rows, max_pages), -1)  # the page table, on the host
        self._limit = np.zeros(cache_rows, dtype=np.int64)  # tokens that a continuation may reach; 0 for none
        self._owners = np.zeros(pages + 1, dtype=np.int64)  # per page; the last entry is for "page" -1 and stays 0
        self._free = np.arange(pages)  # a stack: its first `free_pages` are free
        self._free_cache_rows = list(range(cache_rows))
        self._prompts: dict[int, list[int]] = {}  # cache row: [continuations reserved and not forked, their limit]

    def can_hold(self, prompt_length: int, n: int, max_new_tokens: int) -> bool:
        """Return whether a prompt and n continuations of `max_new_tokens` each fit beside all that is held or reserved.

        Raises:
            ValueError: one of the three is less than 1.
        """
        if min(prompt_length, n, max_new_tokens) < 1:
            raise ValueError(f"prompt_length, n, max_new_tokens = {prompt_length}, {n}, {max_new_tokens}: must be > 0")
        limit = prompt_length + max_new_tokens
        pages = self._pages(prompt_length) + self._still_to_take(prompt_length, limit, n)
        return limit <= self.max_length and self._is_free(pages, 1 + n)

    def allocate(self, length: int, n: int, max_new_tokens: int) -> int:
        """Hold a prompt of `length` tokens, and reserve pages for n continuations of up to `max_new_tokens` each.

        Returns:
            the prompt's cache row.
        Raises:
            InputError: it does not fit (see `can_hold`). The cache is unchanged.
        """
        if not self.can_hold(length, n, max_new_tokens):
            raise InputError(
                f"no room for a prompt of {length} tokens and {n} x {max_new_tokens} new ones: the limit is "
                f"{self.max_length} tokens, {self.free_pages - self.reserved_pages} pages of {self.page_size} tokens "
                f"and {self._unreserved_cache_rows()} cache rows are free"
            )
        cache_row = self._free_cache_rows.pop()
        self.lengths[cache_row] = length
        self._prompts[cache_row] = [n, length + max_new_tokens]
        self.reserved_pages += self._still_to_take(length, length + max_new_tokens, n)
        columns = np.arange(self._pages(length))
        self._take_pages(np.full(len(columns), cache_row), columns)
        return cache_row

    def reserve(self, cache_row: int, n: int) -> bool:
        """Reserve pages for n more continuations of a prompt if they fit; return whether they do.

        Raises:
            ValueError: the row holds no prompt, or all its continuations are forked. The cache is unchanged.
        """
        unforked, limit = self._prompts.get(cache_row, (0, 0))
        if not unforked:
            raise ValueError(f"cache row {cache_row} holds no prompt that can be continued")
        pages = self._still_to_take(int(self.lengths[cache_row]), limit, n, last_is_own=False)
        if not self._is_free(pages, n):
            return False
        self._prompts[cache_row][0] += n
        self.reserved_pages += pages
        return True

    def reserved(self, cache_row: int) -> int:
        """Return how many continuations of a prompt are reserved and not forked."""
        return self._prompts[cache_row][0]

    def fork(self, cache_row: int, n: int) -> list[int]:
        """Start n of the continuations reserved for a prompt; return their cache rows.

        The prompt gives up its pages when the last of them is forked.

        Raises:
            ValueError: fewer than n are reserved. The cache is unchanged.
        """
        reserved, limit = self._prompts.get(cache_row, (0, 0))
        if not 1 <= n <= reserved:
            raise ValueError(f"cache row {cache_row}: {n} continuations requested, {reserved} reserved")
        started = [self._free_cache_rows.pop() for _ in range(n)]
        self._owners[self._pages_of(cache_row)] += n
        self._table[started], self.lengths[started] = self._table[cache_row], self.lengths[cache_row]
        self._limit[started] = limit
        self.page_table[self._to_device(started)] = self._to_device(self._table[cache_row]).int()
        self._prompts[cache_row][0] -= n
        if n == reserved:
            self._drop_pages(cache_row)
        return started

    def extend(self, cache_rows: npt.ArrayLike) -> None:
        """Make room for one more token in each of B distinct continuations, in pages that they alone own.

        Raises:
            ValueError: one is a prompt, has been released, or has reached its limit. The cache is unchanged.
        """
        cache_rows = np.asarray(cache_rows, dtype=np.int64)
        lengths = self.lengths[cache_rows]
        full = lengths >= self._limit[cache_rows]
        if full.any():
            raise ValueError(f"cache rows {cache_rows[full]} hold no sequence that may still grow")
        columns = lengths // self.page_size
        pages = self._table[cache_rows, columns]
        not_own = np.flatnonzero(self._owners[pages] != 1)  # including rows without a page
        if len(not_own):
            self._take_own_pages(cache_rows[not_own], columns[not_own], pages[not_own])
        self.lengths[cache_rows] = lengths + 1

    def extend_to(self, cache_rows: npt.ArrayLike, lengths: npt.ArrayLike) -> None:
        """Make room for at least `lengths` tokens in B distinct continuations."""
        cache_rows, lengths = np.asarray(cache_rows, dtype=np.int64), np.asarray(lengths)
        while len(short := cache_rows[self.lengths[cache_rows] < lengths]):
            self.extend(short)

    def release(self, cache_row: int) -> None:
        """End a sequence: free the pages that only it holds, and cancel its reservations.

        Raises:
            ValueError: the row holds no sequence.
        """
        if cache_row not in self._prompts and not self._limit[cache_row]:
            raise ValueError(f"cache row {cache_row} holds no sequence")
        unforked, limit = self._prompts.pop(cache_row, (1, self._limit[cache_row]))
        if unforked:
            length = int(self.lengths[cache_row])
            last_is_own = bool(self._owners[self._pages_of(cache_row)[-1]] == 1)
            self.reserved_pages -= self._still_to_take(length, int(limit), unforked, last_is_own)
        self._limit[cache_row] = 0
        self._drop_pages(cache_row)
        self._free_cache_rows.append(cache_row)

    def close(self) -> None:
        """Free the memory of all pages; the bookkeeping can still be read."""
        self.keys = self.values = ()

    def _pages(self, length: int) -> int:
        return -(-length // self.page_size)

    def _pages_of(self, cache_row: int) -> npt.NDArray[np.int64]:
        pages: npt.NDArray[np.int64] = self._table[cache_row, : self._pages(self.lengths[cache_row])]
        return pages

    def _still_to_take(self, length: int, limit: int, n: int, last_is_own: bool = True) -> int:
        """Return the number of pages that n sequences of `length` tokens will take until they reach `limit`.

        If nothing else holds their last page, one of them writes into it instead of a copy.
        """
        partial = length % self.page_size != 0
        return n * (self._pages(limit) - self._pages(length) + partial) - (partial and last_is_own)

    def _unreserved_cache_rows(self) -> int:
        return len(self._free_cache_rows) - sum(unforked for unforked, _ in self._prompts.values())

    def _is_free(self, pages: int, cache_rows: int) -> bool:
        return pages <= self.free_pages - self.reserved_pages and cache_rows <= self._unreserved_cache_rows()

    def _take_own_pages(
        self, cache_rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], shared: npt.NDArray[np.int64]
    ) -> None:
        """Give sequences a new page if `shared` is -1, else a copy; if all owners of a page are here, one keeps it."""
        pages, first, writers = np.unique(shared, return_index=True, return_counts=True)
        in_place = first[self._owners[pages] == writers]  # never "page" -1, which has no owners
        cache_rows, columns, shared = (np.delete(x, in_place) for x in (cache_rows, columns, shared))
        taken = self._take_pages(cache_rows, columns)
        self.reserved_pages -= len(taken)
        copied = shared >= 0
        if copied.any():
            np.subtract.at(self._owners, shared[copied], 1)
            source, target = self._to_device([shared[copied], taken[copied]])
            for store in (*self.keys, *self.values):
                store[:, target] = store[:, source]

    def _take_pages(self, cache_rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Enter a free page at each (cache row, column) of the table; return the pages."""
        self.free_pages -= len(cache_rows)
        pages: npt.NDArray[np.int64] = self._free[self.free_pages : self.free_pages + len(cache_rows)].copy()
        self._owners[pages] = 1
        self._table[cache_rows, columns] = pages
        row, column, page = self._to_device([cache_rows, columns, pages])
        self.page_table[row, column] = page.int()
        return pages

    def _drop_pages(self, cache_row: int) -> None:
        pages = self._pages_of(cache_row)
        self._owners[pages] -= 1
        freed = pages[self._owners[pages] == 0]
        self._free[self.free_pages : self.free_pages + len(freed)] = freed
        self.free_pages += len(freed)
        self._table[cache_row], self.lengths[cache_row] = -1, 0
        self.page_table[cache_row] = -1

    def _to_device(self, numbers: npt.ArrayLike) -> torch.Tensor:
        # Safe without blocking: the driver copies unpinned memory before it returns.
        return torch.as_tensor(np.asarray(numbers)).to(self.page_table.device, non_blocking=True)
