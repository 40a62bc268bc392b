"""The key-value cache of one decoder layer, as the layer ops of cdgen_kernels take it."""

from typing import NamedTuple

import torch


class LayerCache(NamedTuple):
    """Pages of one layer; fp8 pages have scales."""

    keys: torch.Tensor  # [pages, K, page_size, d]
    values: torch.Tensor
    key_scales: torch.Tensor | None = None  # bfloat16 [pages, K, page_size]
    value_scales: torch.Tensor | None = None
