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
        slots: texts held at once, prompts included.
        max_length: tokens of the longest text.
        device: of the stores and the page table; the rest of the bookkeeping is numpy's, on the host.
        texts: at most the pages that so many texts of `max_length` need; default: `slots`.
        memory_bytes: budget of all stores together; default: none but `texts`.
        page_size: tokens of a page.

    Attributes:
        keys, values: for each model a tensor [num_layers, pages, num_kv_heads, page_size, head_dim]; an extended text's
            newest token is the caller's to write.
        page_table: int32 [slots, max_pages] on the device; -1 where there is no page.
        lengths: numpy int64 [slots], tokens of each text; 0 where there is none.
        free_pages, promised_pages: pages that no text holds, and those of them that continuations may still take.

    Raises:
        InputError: the budget does not hold one text of `max_length`, or the memory cannot be allocated.
    """

    def __init__(self, shapes, *, slots, max_length, device, texts=None, memory_bytes=None, page_size=16):
        self.page_size, self.max_length = page_size, max_length
        max_pages = self._pages(max_length)
        self.page_bytes = page_size * sum(shape.bytes_per_token for shape in shapes)
        pages = (texts or slots) * max_pages
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
        self.page_table = torch.full((slots, max_pages), -1, dtype=torch.int32, device=device)
        self.lengths = np.zeros(slots, dtype=np.int64)
        self.free_pages, self.promised_pages = pages, 0
        self._table = np.full((slots, max_pages), -1)  # the page table, on the host
        self._limit = np.zeros(slots, dtype=np.int64)  # tokens that a continuation may reach; 0 where there is none
        self._owners = np.zeros(pages + 1, dtype=np.int64)  # of each page, and 0 owners of "page" -1, at the end
        self._free = np.arange(pages)  # a stack: its first `free_pages` are free
        self._free_slots = list(range(slots))
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
                f"{self.max_length} tokens, {self.free_pages - self.promised_pages} pages of {self.page_size} tokens "
                f"and {self._unpromised_slots()} texts are free"
            )
        slot = self._free_slots.pop()
        self.lengths[slot] = length
        self._prompts[slot] = [n, length + max_new_tokens]
        self.promised_pages += self._still_to_take(length, length + max_new_tokens, n)
        columns = np.arange(self._pages(length))
        self._take_pages(np.full(len(columns), slot), columns)
        return slot

    def promise(self, slot, n):
        """Promise n more continuations to a prompt, and return True, if they fit.

        Raises:
            ValueError: the slot has no prompt, or all that was promised is forked. Nothing has changed then.
        """
        unforked, limit = self._prompts.get(slot, (0, 0))
        if not unforked:
            raise ValueError(f"slot {slot} holds no prompt that could be continued")
        pages = self._still_to_take(int(self.lengths[slot]), limit, n, last_is_own=False)
        if not self._is_free(pages, n):
            return False
        self._prompts[slot][0] += n
        self.promised_pages += pages
        return True

    def promised(self, slot):
        """Continuations promised to a prompt and not forked."""
        return self._prompts[slot][0]

    def fork(self, slot, n):
        """Start n of the continuations promised to a prompt; returns their slots. The prompt is empty after the last.

        Raises:
            ValueError: fewer than n are promised. Nothing has changed then.
        """
        promised, limit = self._prompts.get(slot, (0, 0))
        if not 1 <= n <= promised:
            raise ValueError(f"{n} continuations of the text in slot {slot} are asked for, {promised} are promised")
        started = [self._free_slots.pop() for _ in range(n)]
        self._owners[self._pages_of(slot)] += n
        self._table[started], self.lengths[started], self._limit[started] = self._table[slot], self.lengths[slot], limit
        self.page_table[self._to_device(started)] = self._to_device(self._table[slot]).int()
        self._prompts[slot][0] -= n
        if n == promised:
            self._drop_pages(slot)
        return started

    def extend(self, slots):
        """Make room for one more token in each of B distinct continuations, in pages that nobody else reads.

        Raises:
            ValueError: one is a prompt, has been released, or is as long as was promised. Nothing has changed then.
        """
        slots = np.asarray(slots, dtype=np.int64)
        lengths = self.lengths[slots]
        if (lengths >= self._limit[slots]).any():
            raise ValueError(f"slots {slots[lengths >= self._limit[slots]]} hold no text that may still grow")
        columns = lengths // self.page_size
        pages = self._table[slots, columns]
        not_own = np.flatnonzero(self._owners[pages] != 1)  # also where there is no page
        if len(not_own):
            self._take_own_pages(slots[not_own], columns[not_own], pages[not_own])
        self.lengths[slots] = lengths + 1

    def extend_to(self, slots, lengths):
        """Make room for B distinct continuations of these lengths, where there is less."""
        slots, lengths = np.asarray(slots, dtype=np.int64), np.asarray(lengths)
        while len(short := slots[self.lengths[slots] < lengths]):
            self.extend(short)

    def release(self, slot):
        """End a text: what only it held is free again, and what it was promised is not promised any more.

        Raises:
            ValueError: the slot holds no text.
        """
        if slot not in self._prompts and not self._limit[slot]:
            raise ValueError(f"slot {slot} holds no text")
        unforked, limit = self._prompts.pop(slot, (1, self._limit[slot]))
        if unforked:
            length = int(self.lengths[slot])
            last_is_own = bool(self._owners[self._pages_of(slot)[-1]] == 1)
            self.promised_pages -= self._still_to_take(length, int(limit), unforked, last_is_own)
        self._limit[slot] = 0
        self._drop_pages(slot)
        self._free_slots.append(slot)

    def close(self) -> None:
        """Free the memory of all pages; the bookkeeping can still be read."""
        self.keys = self.values = ()

    def _pages(self, length):
        return -(-length // self.page_size)

    def _pages_of(self, slot):
        return self._table[slot, : self._pages(self.lengths[slot])]

    def _still_to_take(self, length, limit, n, last_is_own=True):
        """Pages that n texts of `length` take until `limit`; one writes into the last page if they alone hold that."""
        partial = length % self.page_size != 0
        return n * (self._pages(limit) - self._pages(length) + partial) - (partial and last_is_own)

    def _unpromised_slots(self):
        return len(self._free_slots) - sum(unforked for unforked, _ in self._prompts.values())

    def _is_free(self, pages, slots):
        return pages <= self.free_pages - self.promised_pages and slots <= self._unpromised_slots()

    def _take_own_pages(self, slots, columns, shared):
        """Give texts a new page where `shared` is -1, else a copy; if all owners of a page are here, one keeps it."""
        pages, first, writers = np.unique(shared, return_index=True, return_counts=True)
        in_place = first[self._owners[pages] == writers]  # never "page" -1, which has no owners
        slots, columns, shared = (np.delete(x, in_place) for x in (slots, columns, shared))
        taken = self._take_pages(slots, columns)
        self.promised_pages -= len(taken)
        copied = shared >= 0
        if copied.any():
            np.subtract.at(self._owners, shared[copied], 1)
            source, target = self._to_device([shared[copied], taken[copied]])
            for store in (*self.keys, *self.values):
                store[:, target] = store[:, source]

    def _take_pages(self, slots, columns):
        """Enter a free page at each (slot, column) of the table; returns the pages."""
        self.free_pages -= len(slots)
        pages = self._free[self.free_pages : self.free_pages + len(slots)].copy()
        self._owners[pages] = 1
        self._table[slots, columns] = pages
        slots, columns, on_device = self._to_device([slots, columns, pages])
        self.page_table[slots, columns] = on_device.int()
        return pages

    def _drop_pages(self, slot):
        pages = self._pages_of(slot)
        self._owners[pages] -= 1
        freed = pages[self._owners[pages] == 0]
        self._free[self.free_pages : self.free_pages + len(freed)] = freed
        self.free_pages += len(freed)
        self._table[slot], self.lengths[slot] = -1, 0
        self.page_table[slot] = -1

    def _to_device(self, numbers):
        # not blocking: the driver takes its own copy of unpinned memory before it returns
        return torch.as_tensor(np.asarray(numbers)).to(self.page_table.device, non_blocking=True)
