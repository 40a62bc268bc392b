"""Random sequences in a paged cache, with NaN in all memory that must not be read."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cdgen_kernels.reference.layers import to_fp8


class Paged(NamedTuple):
    """The tensor arguments of paged_attention: N tokens of S sequences."""

    q: Tensor  # [N, H, d]
    keys: Tensor  # [pages, K, page_size, d]
    values: Tensor  # [pages, K, page_size, d]
    page_table: Tensor  # int32 [S, M], -1 for no page
    cache_row: Tensor  # int32 [N]
    position: Tensor  # int64 [N]


def make_paged(
    lengths: Sequence[int],
    tokens: Sequence[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Paged:
    """Fill pages, in shuffled order, with random sequences, and make queries for some of their tokens.

    Args:
        lengths: number of tokens of each sequence.
        tokens: (cache row, position) of each query; a negative cache row is unused.
        heads, kv_heads, dim, page_size: H, K, d and the number of tokens per page.
        dtype: dtype of the queries.
        cache_dtype: dtype of keys and values. Default: `dtype`.
        seed: seed of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-length // page_size) for length in lengths]
    pages = sum(needed) + 3
    order = iter(torch.randperm(pages, generator=generator).tolist())
    table = torch.full((len(lengths), max(needed) + 1), -1, dtype=torch.int32)
    stores = [torch.full((pages, kv_heads, page_size, dim), torch.nan) for _ in range(2)]
    for row, length in enumerate(lengths):
        for column in range(needed[row]):
            page = table[row, column] = next(order)
            used = min(page_size, length - column * page_size)
            for store in stores:
                store[page, :, :used] = torch.randn(kv_heads, used, dim, generator=generator)
    # Queries are a slice of a wider tensor, as if one product had made them together with keys and values.
    q = torch.randn(len(tokens), heads + 2, dim, generator=generator).to(dtype)[:, 1:-1]
    cache_row, position = torch.tensor(tokens, dtype=torch.int64).view(-1, 2).unbind(1)
    keys, values = (store.to(cache_dtype or dtype) for store in stores)
    return Paged(q, keys, values, table, cache_row.int(), position.contiguous())


def make_places(
    tokens: int, page_size: int, sequences: int = 3, length: int = 50, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (page_table, cache_row, position) of distinct tokens, as rope_and_store takes them.

    The sequences hold sequences * ceil(length / page_size) pages, in shuffled order.

    Args:
        tokens: number of tokens N, at random positions of random sequences.
        page_size: tokens per page.
        sequences, length: number of sequences, and of tokens that each has room for.
        seed: seed of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = -(-length // page_size)
    table = torch.randperm(sequences * columns, generator=generator).view(sequences, columns).int()
    place = torch.randperm(sequences * length, generator=generator)[:tokens]
    return table, (place // length).int(), place % length


def in_fp8(paged: Paged) -> tuple[Paged, dict[str, Tensor]]:
    """Return the same sequences on float8_e4m3fn pages, and the scales as keyword arguments of paged_attention."""
    (keys, key_scales), (values, value_scales) = map(to_fp8, (paged.keys, paged.values))
    return paged._replace(keys=keys, values=values), {"key_scales": key_scales, "value_scales": value_scales}


def share(page_table: Tensor, stores: Sequence[Tensor], rows: Sequence[int], pages: int) -> None:
    """Let sequences begin with the pages of the first of them; their own ones are freed, so `stores` have NaN there."""
    for row in rows[1:]:
        for store in stores:
            store[page_table[row, :pages].long()] = torch.nan
        page_table[row, :pages] = page_table[rows[0], :pages]


def decode(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (cache row, position) of the last token of every sequence."""
    return [(row, length - 1) for row, length in enumerate(lengths)]
