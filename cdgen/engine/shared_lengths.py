"""Shared lengths: how much of each sequence attention may read once for all continuations of a prompt."""

import numpy as np
import numpy.typing as npt
import torch

MIN_SHARED = 128  # tokens of the shortest prefix worth an extra launch; not measured on a GPU yet


class SharedLengths:
    """The shared length of each sequence: the number of its prompt's tokens in full pages, or 0 if it shares nothing.

    It is 0 for prompts with fewer than MIN_SHARED such tokens, for prompts with one continuation, and for the last
    continuation of a prompt that has left the cache. Sequences with a shared length and the same first page have the
    same shared length, and the same pages up to it: full pages of a prompt are never written again.

    Args:
        cache_rows: number of cache rows.
        page_size: tokens per page.
        device: device of `tensor`.
    Attributes:
        tensor: int32 [cache_rows], as of the last call of :meth:`publish`.
    """

    def __init__(self, cache_rows: int, page_size: int, device: torch.device | str) -> None:
        self.tensor = torch.zeros(cache_rows, dtype=torch.int32, device=device)
        self._lengths = np.zeros(cache_rows, dtype=np.int32)  # the shared lengths, on the host
        self._page_size, self._changed = page_size, False

    def share(self, cache_row: int, prompt_length: int) -> None:
        """Set the shared length of a prompt with more than one continuation, which its continuations inherit."""
        full = prompt_length // self._page_size * self._page_size
        if full >= MIN_SHARED and self._lengths[cache_row] != full:
            self._lengths[cache_row], self._changed = full, True

    def inherit(self, cache_row: int, started: list[int]) -> None:
        """Set the lengths of continuations to that of their prompt."""
        if self._lengths[cache_row]:
            self._lengths[started], self._changed = self._lengths[cache_row], True

    def drop(self, cache_rows: npt.NDArray[np.int64]) -> bool:
        """Set shared lengths to 0; return whether any of them was greater."""
        if found := self.any(cache_rows):
            self._lengths[cache_rows], self._changed = 0, True
        return found

    def any(self, cache_rows: npt.NDArray[np.int64]) -> bool:
        """Return whether any of these sequences has a shared length."""
        return bool(self._lengths[cache_rows].any())

    def publish(self) -> None:
        """Copy the lengths to the device if they have changed."""
        if self._changed:
            # Safe without blocking: the driver copies unpinned memory before it returns.
            self.tensor.copy_(torch.from_numpy(self._lengths), non_blocking=True)
            self._changed = False
