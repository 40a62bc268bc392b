"""The pages of one model: keys, values and, for 8-bit numbers, their scales."""

import logging
from typing import NamedTuple

import torch

from cdgen.errors import InputError
from cdgen.models.dtypes import FP8
from cdgen.models.layer_cache import LayerCache

log = logging.getLogger("cdgen")

_SCALE_DTYPE = torch.bfloat16


class CacheShape(NamedTuple):
    """What a model stores per token: keys and values [num_layers, num_kv_heads, head_dim] of `dtype`.

    With fp8 numbers, each head also has a scale.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        head = self.head_dim * self.dtype.itemsize + (_SCALE_DTYPE.itemsize if self.dtype == FP8 else 0)
        return 2 * self.num_layers * self.num_kv_heads * head


class PageStore:
    """Pages of keys and values of one model.

    Args:
        shape: what a token stores.
        pages: number of pages.
        page_size: tokens per page.
        device: where the pages are.
    Attributes:
        keys, values: [num_layers, pages, num_kv_heads, page_size, head_dim].
        key_scales, value_scales: bfloat16 [num_layers, pages, num_kv_heads, page_size] of fp8 pages, otherwise None.
        layers: views of these tensors, layer by layer.
    """

    def __init__(self, shape: CacheShape, pages: int, page_size: int, device: torch.device | str) -> None:
        size = (shape.num_layers, pages, shape.num_kv_heads, page_size)
        # Zeros, because attention reads to the end of a page, and 0 * NaN would reach its sum.
        self.keys, self.values = (torch.zeros((*size, shape.head_dim), dtype=shape.dtype, device=device) for _ in "kv")
        self.key_scales: torch.Tensor | None = None
        self.value_scales: torch.Tensor | None = None
        if shape.dtype == FP8:
            self.key_scales, self.value_scales = (torch.zeros(size, dtype=_SCALE_DTYPE, device=device) for _ in "kv")
        self.layers = [LayerCache(*tensors) for tensors in zip(*self.tensors, strict=True)]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Keys and values, and their scales if there are any."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return self.keys, self.values, self.key_scales, self.value_scales

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def copy_pages(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy pages in all layers.

        Args:
            source, target: int64 [P], page numbers; no page is in both.
        """
        for tensor in self.tensors:
            tensor[:, target] = tensor[:, source]


def check_cache_dtype(dtype: torch.dtype | None, device: torch.device) -> None:
    """Check that a device can hold pages of this dtype, and warn if they are slow there.

    Raises:
        InputError: fp8 pages on a GPU without instructions for them.
    """
    if dtype != FP8:
        return
    if device.type == "cpu":
        log.warning("kv_cache_dtype = 'fp8' is slow on the CPU, where each step converts the whole cache to float32")
    elif torch.version.hip is None and (have := torch.cuda.get_device_capability(device)) < (8, 9):
        raise InputError(
            f"kv_cache_dtype = 'fp8': {torch.cuda.get_device_name(device)} has compute capability "
            f"{have[0]}.{have[1]}, and fp8 needs 8.9 or above; use bfloat16 or float16"
        )
