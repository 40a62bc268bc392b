"""Shared lengths: how much of each sequence attention may read once for all continuations of a prompt."""

import numpy as np
import numpy.typing as npt
import torch

MIN_SHARED = 128  # tokens of the shortest prefix that is worth it; not measured on a GPU yet


class SharedLengths:
    """The shared length of each sequence: the tokens of its prompt in full pages, or 0 if it has no use for them.

    It is 0 for prompts of fewer than MIN_SHARED such tokens, prompts of one continuation, and a continuation whose
    siblings have all ended. Sequences with a shared length and the same first page have the same shared length, and the
    same pages up to it: full pages of a prompt are never written again.

    Args:
        cache_rows: cache rows are below this number.
        page_size: tokens per page.
        device: device of `tensor`.
    Attributes:
        tensor: int32 [cache_rows], as of the last call of :meth:`publish`.
    """

    def __init__(self, cache_rows: int, page_size: int, device: torch.device | str) -> None:
        self.tensor = torch.zeros(cache_rows, dtype=torch.int32, device=device)
        self._lengths = np.zeros(cache_rows, dtype=np.int32)  # the same on the host
        self._page_size, self._changed = page_size, False

    def share(self, cache_row: int, prompt_length: int) -> None:
        """Set the length that the continuations of a prompt inherit, because there is more than one."""
        full = prompt_length // self._page_size * self._page_size
        if full >= MIN_SHARED and self._lengths[cache_row] != full:
            self._lengths[cache_row], self._changed = full, True

    def inherit(self, cache_row: int, started: list[int]) -> None:
        """Set the lengths of continuations to that of their prompt."""
        if self._lengths[cache_row]:
            self._lengths[started], self._changed = self._lengths[cache_row], True

    def drop(self, cache_rows: npt.NDArray[np.int64]) -> bool:
        """Set lengths to 0; return whether any was not."""
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
