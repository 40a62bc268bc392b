"""One key-value cache for two models that hold the same tokens: pages, shared by the continuations of a prompt."""

from typing import NamedTuple

import numpy as np
import torch

from cdgen.errors import InputError
from cdgen.hardware import free_memory, free_memory_text


class CacheShape(NamedTuple):
    """What a model stores for a token: keys and values [num_layers, num_kv_heads, head_dim] of `dtype`."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self):
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class SharedKVCache:
    """Pages of keys and values for one or two models, and one bookkeeping for all: what is held is held in every model.

    A text is a prompt (`allocate`) or a continuation of one (`fork`). Prompts stay as they are; continuations grow by
    `extend`. Continuations share their prompt's pages, and copy its partly filled last one when they first write to it.

    Nothing is admitted that could not be finished, so `extend` always finds a page. Of a prompt of L tokens whose n
    continuations may each grow to L + M tokens, in pages of S tokens:

        growth  = ceil((L + M) / S) - ceil(L / S)      pages that a continuation adds
        partial = 1 if S does not divide L, else 0     a last page that each continuation must have for itself
        needed  = ceil(L / S) + n * (growth + partial) - partial

    The last `partial` is taken off since the last to write there writes into the prompt's own page. That is why a
    prompt is empty once its last promised continuation is forked: it would keep that page from its last writer.
    Pages not taken yet are `promised`: never more than are free, and exactly as many as full-length texts will take.

    Args:
        shapes: a :class:`CacheShape` for each model, one or two.
        cache_rows: texts held at once, prompts included.
        max_length: tokens of the longest text.
        device: of the stores and the page table; the rest of the bookkeeping is numpy's, on the host.
        texts: at most the pages that so many texts of `max_length` need; default: `cache_rows`.
        memory_bytes: budget of all stores together; default: none but `texts`.
        page_size: tokens of a page.

    Attributes:
        keys, values: for each model a tensor [num_layers, pages, num_kv_heads, page_size, head_dim]; an extended text's
            newest token is the caller's to write.
        page_table: int32 [cache_rows, max_pages] on the device; -1 where there is no page.
        lengths: numpy int64 [cache_rows], tokens of each text; 0 where there is none.
        free_pages, promised_pages: pages that no text holds, and those of them that continuations may still take.

    Raises:
        InputError: the budget does not hold one text of `max_length`, or the memory cannot be allocated.
    """

    def __init__(self, shapes, *, cache_rows, max_length, device, texts=None, memory_bytes=None, page_size=16):
        self.page_size, self.max_length = page_size, max_length
        max_pages = self._pages(max_length)
        self.page_bytes = page_size * sum(shape.bytes_per_token for shape in shapes)
        pages = (texts or cache_rows) * max_pages
        if memory_bytes is not None:
            pages = min(pages, memory_bytes // self.page_bytes)
        if pages < max_pages:
            need = max_pages * self.page_bytes
            raise InputError(
                f"a text of {max_length} tokens needs {need:,} bytes of cache, but the budget is {memory_bytes:,}; "
                "lower max_tokens, or raise kv_cache_memory_bytes (--kv-cache-gb) if more memory is free"
            )

        def store(shape):  # zeros: attention reads to the end of a page, and 0 * NaN would reach its sum
            size = (shape.num_layers, pages, shape.num_kv_heads, page_size, shape.head_dim)
            return torch.zeros(size, dtype=shape.dtype, device=device)

        try:
            self.keys, self.values = tuple(map(store, shapes)), tuple(map(store, shapes))
        except RuntimeError as error:  # torch.OutOfMemoryError on GPUs
            free = free_memory_text(device, free_memory(torch.device(device)))
            raise InputError(
                f"a cache of {pages * self.page_bytes / 1e9:.3g} GB cannot be allocated: {free}; "
                "lower max_num_seqs (--batch-size) or kv_cache_memory_bytes (--kv-cache-gb)"
            ) from error
        self.page_table = torch.full((cache_rows, max_pages), -1, dtype=torch.int32, device=device)
        self.lengths = np.zeros(cache_rows, dtype=np.int64)
        self.free_pages, self.reserved_pages = pages, 0
        self._table = np.full((cache_rows, max_pages), -1)  # the page table, on the host
        self._limit = np.zeros(
            cache_rows, dtype=np.int64
        )  # tokens that a continuation may reach; 0 where there is none
        self._owners = np.zeros(pages + 1, dtype=np.int64)  # of each page, and 0 owners of "page" -1, at the end
        self._free = np.arange(pages)  # a stack: its first `free_pages` are free
        self._free_cache_rows = list(range(cache_rows))
        self._prompts = {}  # slot: [continuations promised and not forked, tokens that each may reach]

    def can_hold(self, prompt_length, n, max_new_tokens):
        """Whether a prompt and n continuations of `max_new_tokens` each fit besides all that is held and promised.

        Raises:
            ValueError: one of the three is less than 1.
        """
        if min(prompt_length, n, max_new_tokens) < 1:
            raise ValueError(f"a prompt of {prompt_length} tokens and {n} x {max_new_tokens} new ones: all must be > 0")
        limit = prompt_length + max_new_tokens
        pages = self._pages(prompt_length) + self._still_to_take(prompt_length, limit, n)
        return limit <= self.max_length and self._is_free(pages, 1 + n)

    def allocate(self, length, n, max_new_tokens):
        """Hold a prompt, and promise it n continuations of up to `max_new_tokens` each; returns its slot.

        Raises:
            InputError: it does not fit (see `can_hold`). Nothing has changed then.
        """
        if not self.can_hold(length, n, max_new_tokens):
            raise InputError(
                f"no room for a prompt of {length} tokens and {n} x {max_new_tokens} new ones: texts have up to "
                f"{self.max_length} tokens, {self.free_pages - self.reserved_pages} pages of {self.page_size} tokens "
                f"and {self._unreserved_cache_rows()} texts are free"
            )
        cache_row = self._free_cache_rows.pop()
        self.lengths[cache_row] = length
        self._prompts[cache_row] = [n, length + max_new_tokens]
        self.reserved_pages += self._still_to_take(length, length + max_new_tokens, n)
        columns = np.arange(self._pages(length))
        self._take_pages(np.full(len(columns), cache_row), columns)
        return cache_row

    def reserve(self, cache_row, n):
        """Promise n more continuations to a prompt, and return True, if they fit.

        Raises:
            ValueError: the slot has no prompt, or all that was promised is forked. Nothing has changed then.
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

    def reserved(self, cache_row):
        """Continuations promised to a prompt and not forked."""
        return self._prompts[cache_row][0]

    def fork(self, cache_row, n):
        """Start n of the continuations promised to a prompt; returns their slots. The prompt is empty after the last.

        Raises:
            ValueError: fewer than n are promised. Nothing has changed then.
        """
        reserved, limit = self._prompts.get(cache_row, (0, 0))
        if not 1 <= n <= reserved:
            raise ValueError(f"cache row {cache_row}: {n} continuations requested, {reserved} reserved")
        started = [self._free_cache_rows.pop() for _ in range(n)]
        self._owners[self._pages_of(cache_row)] += n
        self._table[started], self.lengths[started], self._limit[started] = (
            self._table[cache_row],
            self.lengths[cache_row],
            limit,
        )
        self.page_table[self._to_device(started)] = self._to_device(self._table[cache_row]).int()
        self._prompts[cache_row][0] -= n
        if n == reserved:
            self._drop_pages(cache_row)
        return started

    def extend(self, cache_rows):
        """Make room for one more token in each of B distinct continuations, in pages that nobody else reads.

        Raises:
            ValueError: one is a prompt, has been released, or is as long as was promised. Nothing has changed then.
        """
        cache_rows = np.asarray(cache_rows, dtype=np.int64)
        lengths = self.lengths[cache_rows]
        if (lengths >= self._limit[cache_rows]).any():
            raise ValueError(
                f"cache rows {cache_rows[lengths >= self._limit[cache_rows]]} hold no text that may still grow"
            )
        columns = lengths // self.page_size
        pages = self._table[cache_rows, columns]
        not_own = np.flatnonzero(self._owners[pages] != 1)  # also where there is no page
        if len(not_own):
            self._take_own_pages(cache_rows[not_own], columns[not_own], pages[not_own])
        self.lengths[cache_rows] = lengths + 1

    def extend_to(self, cache_rows, lengths):
        """Make room for B distinct continuations of these lengths, where there is less."""
        cache_rows, lengths = np.asarray(cache_rows, dtype=np.int64), np.asarray(lengths)
        while len(short := cache_rows[self.lengths[cache_rows] < lengths]):
            self.extend(short)

    def release(self, cache_row):
        """End a text: what only it held is free again, and what it was promised is not promised any more.

        Raises:
            ValueError: the slot holds no text.
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

    def _pages(self, length):
        return -(-length // self.page_size)

    def _pages_of(self, cache_row):
        return self._table[cache_row, : self._pages(self.lengths[cache_row])]

    def _still_to_take(self, length, limit, n, last_is_own=True):
        """Pages that n texts of `length` take until `limit`; one writes into the last page if they alone hold that."""
        partial = length % self.page_size != 0
        return n * (self._pages(limit) - self._pages(length) + partial) - (partial and last_is_own)

    def _unreserved_cache_rows(self):
        return len(self._free_cache_rows) - sum(unforked for unforked, _ in self._prompts.values())

    def _is_free(self, pages, cache_rows):
        return pages <= self.free_pages - self.reserved_pages and cache_rows <= self._unreserved_cache_rows()

    def _take_own_pages(self, cache_rows, columns, shared):
        """Give texts a new page where `shared` is -1, else a copy; if all owners of a page are here, one keeps it."""
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

    def _take_pages(self, cache_rows, columns):
        """Enter a free page at each (slot, column) of the table; returns the pages."""
        self.free_pages -= len(cache_rows)
        pages = self._free[self.free_pages : self.free_pages + len(cache_rows)].copy()
        self._owners[pages] = 1
        self._table[cache_rows, columns] = pages
        cache_rows, columns, on_device = self._to_device([cache_rows, columns, pages])
        self.page_table[cache_rows, columns] = on_device.int()
        return pages

    def _drop_pages(self, cache_row):
        pages = self._pages_of(cache_row)
        self._owners[pages] -= 1
        freed = pages[self._owners[pages] == 0]
        self._free[self.free_pages : self.free_pages + len(freed)] = freed
        self.free_pages += len(freed)
        self._table[cache_row], self.lengths[cache_row] = -1, 0
        self.page_table[cache_row] = -1

    def _to_device(self, numbers):
        # not blocking: the driver takes its own copy of unpinned memory before it returns
        return torch.as_tensor(np.asarray(numbers)).to(self.page_table.device, non_blocking=True)
