"""Random texts on a paged cache, with NaN wherever nothing may be read."""

from typing import NamedTuple

import torch


class Paged(NamedTuple):
    """The arguments of paged_attention: N tokens of S texts."""

    q: torch.Tensor  # [N, H, d]
    keys: torch.Tensor  # [pages, K, page_size, d]
    values: torch.Tensor
    page_table: torch.Tensor  # int32 [S, M], -1 where there is no page
    row: torch.Tensor  # int32 [N]
    position: torch.Tensor  # int64 [N]


def make_paged(lengths, tokens, heads, kv_heads, dim, page_size=16, dtype=torch.float32, cache_dtype=None, seed=0):
    """Texts of `lengths` tokens in pages of shuffled order.

    Args:
        tokens: list of (text, position) pairs, the queries; a text below 0 is nobody's.
    """
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-length // page_size) for length in lengths]
    pages = sum(needed) + 3
    order = iter(torch.randperm(pages, generator=generator).tolist())
    table = torch.full((len(lengths), max(needed) + 1), -1, dtype=torch.int32)
    stores = [torch.full((pages, kv_heads, page_size, dim), torch.nan) for _ in range(2)]
    for text, length in enumerate(lengths):
        for column in range(needed[text]):
            page = table[text, column] = next(order)
            used = min(page_size, length - column * page_size)
            for store in stores:
                store[page, :, :used] = torch.randn(kv_heads, used, dim, generator=generator)
    # queries are the middle of a wider tensor, as those that one product makes together with keys and values
    q = torch.randn(len(tokens), heads + 2, dim, generator=generator).to(dtype)[:, 1:-1]
    row, position = torch.tensor(tokens, dtype=torch.int64).view(-1, 2).unbind(1)
    keys, values = (store.to(cache_dtype or dtype) for store in stores)
    return Paged(q, keys, values, table, row.int(), position.contiguous())


def decode(lengths):
    """The last token of every text."""
    return [(text, length - 1) for text, length in enumerate(lengths)]
