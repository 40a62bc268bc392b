"""One key-value cache for two models that hold the same tokens: pages, shared by the continuations of a prompt."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from cdgen.engine.page_store import CacheShape, PageStore
from cdgen.engine.shared_lengths import SharedLengths
from cdgen.errors import InputError
from cdgen.hardware import free_memory, free_memory_text, to_device

PAGE_SIZE = 16  # tokens per page


class SharedKVCache:
    """Pages of keys and values for one or two models. One page table serves them all, since they hold the same tokens.

    A sequence is a prompt (`allocate`) or a continuation of one (`fork`). Prompts never change; continuations grow by
    `extend_to`. Continuations share their prompt's pages, and copy its partly filled last page when they first write to
    it.

    A prompt is admitted only if all its continuations can be finished, so `extend_to` always finds a page. For a prompt
    of L tokens with n continuations that may each grow to L + M tokens, in pages of S tokens:

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
        stores: a :class:`PageStore` for each model. The caller writes the newest token of a sequence that was extended.
        page_table: int32 [cache_rows, max_pages] on the device, as of the last call of :meth:`publish`; -1 for no page.
        shared_lengths: how many tokens of each sequence attention may read once for all continuations of its prompt.
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

        try:
            self.stores = tuple(PageStore(shape, pages, page_size, device) for shape in shapes)
        except RuntimeError as error:  # torch.OutOfMemoryError on GPUs
            free = free_memory_text(torch.device(device), free_memory(torch.device(device)))
            raise InputError(
                f"a cache of {pages * self.page_bytes / 1e9:.3g} GB cannot be allocated: {free}; "
                "lower max_num_seqs or kv_cache_memory_bytes"
            ) from error
        self.page_table = torch.full((cache_rows, max_pages), -1, dtype=torch.int32, device=device)
        self.shared_lengths = SharedLengths(cache_rows, page_size, device)
        self.lengths = np.zeros(cache_rows, dtype=np.int64)
        self.free_pages, self.reserved_pages = pages, 0
        self._table = np.full((cache_rows, max_pages), -1, dtype=np.int32)  # the page table, on the host
        self._changed = np.zeros(cache_rows, dtype=bool)  # rows that differ from the device's table
        self._limit = np.zeros(cache_rows, dtype=np.int64)  # tokens that a continuation may reach; 0 for none
        self._room = np.zeros(cache_rows, dtype=np.int64)  # tokens for which a continuation has pages of its own
        self._owners = np.zeros(pages + 1, dtype=np.int64)  # per page; the last entry is for "page" -1 and stays 0
        self._free = np.arange(pages, dtype=np.int32)  # a stack: its first `free_pages` are free
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
        if n > 1:
            self.shared_lengths.share(cache_row, length)
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
        self.shared_lengths.share(cache_row, int(self.lengths[cache_row]))
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
        self._limit[started], self._room[started] = limit, self.lengths[cache_row]
        self._changed[started] = True
        self.shared_lengths.inherit(cache_row, started)
        self._prompts[cache_row][0] -= n
        if n == reserved:
            self._drop_pages(np.array([cache_row]))
        return started

    def extend_to(self, cache_rows: npt.ArrayLike, lengths: npt.ArrayLike) -> None:
        """Make room for at least `lengths` tokens in B distinct continuations, in pages that they alone own.

        Raises:
            ValueError: one is a prompt, has been released, or would exceed its limit. The cache is unchanged.
        """
        cache_rows, lengths = np.asarray(cache_rows, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
        beyond = lengths > self._limit[cache_rows]
        if beyond.any():
            raise ValueError(f"cache rows {cache_rows[beyond]} hold no sequence that may still grow")
        while len(short := np.flatnonzero(self._room[cache_rows] < lengths)):
            self._add_page(cache_rows[short])
        self.lengths[cache_rows] = np.maximum(self.lengths[cache_rows], lengths)

    def _add_page(self, cache_rows: npt.NDArray[np.int64]) -> None:
        """Give each of these continuations room for at least one more token."""
        columns = self._room[cache_rows] // self.page_size
        pages = self._table[cache_rows, columns]
        not_own = np.flatnonzero(self._owners[pages] != 1)  # including rows without a page
        if len(not_own):
            self._take_own_pages(cache_rows[not_own], columns[not_own], pages[not_own])
        self._room[cache_rows] = (columns + 1) * self.page_size

    def release(self, cache_rows: npt.ArrayLike) -> None:
        """End distinct sequences: free the pages that only they hold, and cancel their reservations.

        Raises:
            ValueError: a row holds no sequence. The cache is unchanged.
        """
        cache_rows = np.asarray(cache_rows, dtype=np.int64)
        is_prompt = np.fromiter((row in self._prompts for row in cache_rows.tolist()), bool, len(cache_rows))
        empty = ~is_prompt & (self._limit[cache_rows] == 0)
        if empty.any():
            raise ValueError(f"cache rows {cache_rows[empty]} hold no sequence")
        continuations = cache_rows[~is_prompt]
        self._cancel(continuations)
        self._limit[continuations] = self._room[continuations] = 0
        self._drop_pages(continuations)
        for row in cache_rows[is_prompt].tolist():
            unforked, limit = self._prompts.pop(row)
            if unforked:
                last_is_own = bool(self._owners[self._pages_of(row)[-1]] == 1)
                self.reserved_pages -= self._still_to_take(int(self.lengths[row]), limit, unforked, last_is_own)
            self._drop_pages(np.array([row]))
        self._free_cache_rows += cache_rows.tolist()

    def _cancel(self, cache_rows: npt.NDArray[np.int64]) -> None:
        """Cancel the reservations of continuations that are about to give up their pages."""
        lengths = self.lengths[cache_rows]
        partial = lengths % self.page_size != 0
        growth = -(-self._limit[cache_rows] // self.page_size) + -lengths // self.page_size
        pages, owners = np.unique(self._table[cache_rows, (lengths - 1) // self.page_size][partial], return_counts=True)
        in_place = np.count_nonzero(self._owners[pages] == owners)  # see `_take_own_pages`
        self.reserved_pages -= int((growth + partial).sum()) - in_place

    def by_prompt(self, cache_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows in an order in which the continuations of a prompt are neighbours."""
        return cache_rows[np.argsort(self._table[cache_rows, 0], kind="stable")]

    def publish(self) -> None:
        """Copy what has changed to the device's page table and shared lengths."""
        changed = np.flatnonzero(self._changed)
        if len(changed):
            device = self.page_table.device
            self.page_table[to_device(changed, device)] = to_device(self._table[changed], device)
            self._changed[changed] = False
        self.shared_lengths.publish()

    def close(self) -> None:
        """Free the memory of all pages; the bookkeeping can still be read."""
        self.stores = ()

    def _pages(self, length: int) -> int:
        return -(-length // self.page_size)

    def _pages_of(self, cache_row: int) -> npt.NDArray[np.int32]:
        pages: npt.NDArray[np.int32] = self._table[cache_row, : self._pages(self.lengths[cache_row])]
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
        self, cache_rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], shared: npt.NDArray[np.int32]
    ) -> None:
        """Give sequences a new page if `shared` is -1, else a copy; if all owners of a page are here, one keeps it."""
        pages, first, writers = np.unique(shared, return_index=True, return_counts=True)
        others = np.ones(len(shared), dtype=bool)
        others[first[self._owners[pages] == writers]] = False  # never "page" -1, which has no owners
        cache_rows, columns, shared = cache_rows[others], columns[others], shared[others]
        taken = self._take_pages(cache_rows, columns)
        self.reserved_pages -= len(taken)
        copied = shared >= 0
        if copied.any():
            np.subtract.at(self._owners, shared[copied], 1)
            source, target = to_device([shared[copied], taken[copied]], self.page_table.device)
            for store in self.stores:
                store.copy_pages(source, target)

    def _take_pages(self, cache_rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Enter a free page at each (cache row, column) of the table; return the pages."""
        self.free_pages -= len(cache_rows)
        pages: npt.NDArray[np.int32] = self._free[self.free_pages : self.free_pages + len(cache_rows)].copy()
        self._owners[pages] = 1
        self._table[cache_rows, columns] = pages
        self._changed[cache_rows] = True
        return pages

    def _drop_pages(self, cache_rows: npt.NDArray[np.int64]) -> None:
        pages = self._table[cache_rows]
        pages = pages[pages >= 0]
        np.subtract.at(self._owners, pages, 1)
        freed = np.unique(pages[self._owners[pages] == 0])
        self._free[self.free_pages : self.free_pages + len(freed)] = freed
        self.free_pages += len(freed)
        self._table[cache_rows], self.lengths[cache_rows], self._changed[cache_rows] = -1, 0, True
        if self.shared_lengths.drop(cache_rows):
            # If only one continuation holds its first page, its siblings and its prompt are gone.
            self.shared_lengths.drop(np.flatnonzero((self._limit > 0) & (self._owners[self._table[:, 0]] == 1)))
