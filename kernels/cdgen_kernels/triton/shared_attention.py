"""Attention of a decode step over shared prefixes: the first of two launches of `paged_attention`.

Sequences that share their first pages, such as the continuations of a prompt, form a group (cascade attention in
FlashInfer). A program computes a block of neighbouring tokens on matrix units and visits the groups of its block one
after the other, so that the shared keys are read once per block instead of once per token. Several programs may divide
the keys of a prefix. Each stores a part of the result of its tokens. The second launch computes the other keys and
merges the parts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton import block_attention as blocks
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.attention_tiles import Span, cache_of
from cdgen_kernels.triton.block_attention import Block, block_attention, block_rows

# Launch settings; they have not been measured on a GPU yet. Rows of other groups are idle while a group is visited.
TOKENS = 8  # least number of tokens per program
LEAST_ROWS = 16  # least number of queries per program, that of matrix units


class Parts(NamedTuple):
    """Softmaxes of each token over some of its keys, in base 2: first those of the prefix, then its own."""

    ends: torch.Tensor  # float32 [N, jobs, slots, 2, heads], maxima and totals
    sums: torch.Tensor  # float32 [N, jobs, slots, heads, D], weighted sums of values


@triton.jit
def shared_keys(shared_lengths_ptr, cache_row, first, end):
    """Return how many leading keys of a token are left to the first launch.

    They are its prefix if that ends within [first, end), the keys that the token sees; otherwise there are none.
    Unused tokens, whose `cache_row` is negative, have none either.
    """
    shared = tl.load(shared_lengths_ptr + cache_row, mask=cache_row >= 0, other=0)
    return tl.where((first < shared) & (shared < end), shared, 0)


@triton.jit
def keys_per_part(shared, splits, TILE: tl.constexpr):
    """Return how many keys of a prefix each program takes. Both launches compute the same number."""
    return tl.maximum(tl.cdiv(tl.cdiv(shared, TILE), splits), 1) * TILE


@triton.jit(
    do_not_specialize=["tokens", "table_stride", "window", "slots"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def shared_attention_kernel(
    # queries [N, H, DIM] with unit stride along DIM, and the cache, contiguous [pages, K, PAGE, DIM]
    q_ptr, keys_ptr, values_ptr,
    # bfloat16 [pages, K, PAGE], if the cache is fp8
    key_scales_ptr, value_scales_ptr,
    # int32 [sequences, pages per sequence], int32 [N], int64 [N], int32 [sequences]
    page_table_ptr, cache_row_ptr, position_ptr, shared_lengths_ptr,
    # result: float32 [N, jobs, slots, 2, G] and [N, jobs, slots, G, D]
    part_ends_ptr, part_sums_ptr,
    # window 0: all keys; scale includes log2(e)
    tokens, q_row_stride, q_head_stride, table_stride, window, scale, slots,
    # GROUP query heads share a key-value head; a program computes G of them for T tokens. D is DIM rounded up to a
    # power of two.
    GROUP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, G: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Compute attention of T tokens over shared keys. Grid: (blocks of T tokens, jobs: K times blocks of G, splits)."""
    HEAD_BLOCKS: tl.constexpr = (GROUP + G - 1) // G
    job = tl.program_id(1)
    kv_head = (job // HEAD_BLOCKS).to(tl.int64)
    kv_heads = (tl.num_programs(1) // HEAD_BLOCKS).to(tl.int64)
    token, head, exists = block_rows(tl.program_id(0).to(tl.int64) * T, tokens, job, GROUP, G, T)
    cache_row = tl.load(cache_row_ptr + token, mask=token < tokens, other=-1)
    position = tl.load(position_ptr + token, mask=token < tokens, other=0).to(tl.int32)
    oldest = tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)
    shared = shared_keys(shared_lengths_ptr, cache_row, oldest, position + 1)
    group = tl.load(page_table_ptr + cache_row.to(tl.int64) * table_stride, mask=shared > 0, other=-1)
    i = tl.arange(0, D)[None, :]
    q_ptrs = q_ptr + (token * q_row_stride + head * q_head_stride)[:, None] + i
    query = tl.load(q_ptrs, mask=exists[:, None] & (i < DIM), other=0.0)
    block = Block(query, oldest, shared - 1, scale)
    cache = cache_of(
        keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, kv_head, kv_heads, PAGE, DIM
    )  # fmt: skip

    part = (token * tl.num_programs(1) + job) * slots + tl.program_id(2)
    h = tl.arange(0, T * G) % G
    ends_ptrs = part_ends_ptr + part * (2 * G) + h
    sums_ptrs = part_sums_ptr + ((part * G + h) * D)[:, None] + i
    current = tl.max(group, 0)
    while current >= 0:
        member = group == current
        row = tl.max(tl.where(member, cache_row, -1), 0)
        length = tl.max(tl.where(member, shared, 0), 0)
        first = tl.min(tl.where(member, oldest, 2147483647), 0)
        keys = keys_per_part(length, tl.num_programs(2), TILE)
        begin = tl.program_id(2) * keys
        # Keys before the windows of all members are not read. A part that has no others is stored as an empty one.
        span = Span(tl.maximum(begin, first // TILE * TILE), tl.minimum(begin + keys, length), first)
        table_ptr = page_table_ptr + row.to(tl.int64) * table_stride
        best, total, sums = block_attention(block, cache, table_ptr, span, PAGE, DIM, T * G, TILE, D)
        stored = member & (begin < shared)
        tl.store(ends_ptrs, best, mask=stored)
        tl.store(ends_ptrs + G, total, mask=stored)
        tl.store(sums_ptrs, sums, mask=stored[:, None])
        group = tl.where(member, -1, group)
        current = tl.max(group, 0)


class Sizes(NamedTuple):
    """How a launch divides tokens and keys among programs."""

    tokens: int  # tokens per program
    splits: int  # programs that divide the keys of a prefix
    tile: int  # keys per tile


def new_parts(q: torch.Tensor, jobs: int, slots: int, heads: int) -> Parts:
    """Allocate `slots` parts per token and job; none if there is only one, which needs no merging."""
    rows, width = (len(q), jobs, slots if slots > 1 else 0), triton.next_power_of_2(q.shape[2])
    return Parts(*(q.new_empty((*rows, *size), dtype=torch.float32) for size in ((2, heads), (heads, width))))


def sizes(q: torch.Tensor, page_table: torch.Tensor, cache: tuple[torch.Tensor, ...], jobs: int, heads: int) -> Sizes:
    """Choose the sizes of a launch with `jobs` programs, of `heads` heads each, per block of tokens and split."""
    width = triton.next_power_of_2(q.shape[2])
    rows = min(max(TOKENS * heads, LEAST_ROWS), blocks.MOST_ROWS, blocks.QUERIES // width)
    tile = blocks.keys_per_tile(width, cache[0].dtype)
    programs = triton.cdiv(len(q) * heads, rows) * jobs
    tiles = triton.cdiv(page_table.shape[1] * cache[0].shape[2], tile)
    return Sizes(rows // heads, max(1, min(tiles, blocks.room(q.device) // programs)), tile)


def shared_attention(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, ...],
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    shared_lengths: torch.Tensor,
    scale: float,
    window: int,
    parts: Parts,
    size: Sizes,
) -> None:
    """Store the parts of the keys that sequences share, in the first slots of `parts`.

    Args:
        q: 16-bit queries [N, H, d] of one or more tokens with unit stride along d.
        cache: keys, values and their scales, which are read if it is fp8.
        shared_lengths: int32 [sequences]; see :func:`cdgen_kernels.layers.paged_attention`.
        scale: factor of the scores, includes log2(e).
    """
    _, kv_heads, page, _ = cache[0].shape
    tokens, jobs, slots, heads, width = parts.sums.shape
    shared_attention_kernel[(triton.cdiv(tokens, size.tokens), jobs, size.splits)](
        q, *cache, page_table, cache_row, position, shared_lengths, *parts,
        tokens, *q.stride()[:2], page_table.stride(0), window, scale, slots,
        GROUP=q.shape[1] // kv_heads, PAGE=page, DIM=q.shape[2], G=heads, T=size.tokens, TILE=size.tile, D=width,
        **blocks.launch_options(size.tokens * heads, width, q.device),
    )  # fmt: skip
