"""A key-value cache for transformers that is written in place, and forked from prompts to their continuations."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class InPlaceLayer(CacheLayerMixin):
    """Keys and values [B, H, max_len, D] of one layer; `update` writes at the current length and returns narrow views.

    This is also right for sliding-window attention: the buffer holds every position, and transformers' mask hides those
    that have left the window.
    """

    is_sliding = False

    def __init__(self, max_len: int) -> None:
        super().__init__()
        self.max_len = max_len
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate buffers for states like these, [B, H, T, D]."""

        def buffer(like: torch.Tensor) -> torch.Tensor:  # [B, H, max_len, D]
            return like.new_empty(like.shape[0], like.shape[1], self.max_len, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append key and value states [B, H, T, D]; return views [B, H, length, D] of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys for a query of this length, and the offset of the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of positions written."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1, transformers' value for "no maximum", as a dynamic cache does: the caller decides the length."""
        return -1

    def fork(self, rows: torch.Tensor, max_len: int) -> "InPlaceLayer":
        """Return a new layer with copies of these rows; see :meth:`InPlaceCache.fork`."""
        layer = InPlaceLayer(max_len)
        layer.length = self.length
        if self.is_initialized:
            wide = (len(rows), -1, -1, -1)
            layer.lazy_initialization(self.keys[:1].expand(wide), self.values[:1].expand(wide))
            layer.keys[:, :, : self.length] = self.keys[:, :, : self.length].index_select(0, rows)
            layer.values[:, :, : self.length] = self.values[:, :, : self.length].index_select(0, rows)
        return layer


class InPlaceCache(Cache):
    """A `transformers.Cache` of :class:`InPlaceLayer`. A position is written once and never moved.

    Args:
        num_layers: attention layers of the model.
        max_len: positions to reserve for each row, including left padding.
    """

    def __init__(self, num_layers: int, max_len: int) -> None:
        super().__init__(layers=[InPlaceLayer(max_len) for _ in range(num_layers)])

    def fork(self, rows: torch.Tensor, max_len: int) -> "InPlaceCache":
        """Return a new cache of `len(rows)` rows, each a copy of one row of this cache.

        Args:
            rows: int64 [B'], row of this cache that each new row continues; for P prompts with n continuations each,
                arange(P) with every element repeated n times.
            max_len: positions of the new cache.
        """
        forked = InPlaceCache(0, max_len)
        forked.layers = [layer.fork(rows, max_len) for layer in self.layers]
        return forked
