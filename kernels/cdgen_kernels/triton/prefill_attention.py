"""Attention of a prefill on matrix units: a program computes a block of neighbouring tokens and reads each key once.

The tokens of a block may belong to any sequences. A program visits the sequences of its block one after the other. In a
prefill these are few. The keys of a sequence are read in tiles, from multiples of the tile, so that a result does not
depend on the block that computes it.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton import settings
from cdgen_kernels.triton.attention_tiles import FP8_MAX, Span, cache_of, scaled
from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.settings import ASYNC_ROWS, HAS_FENCE

# Launch settings; they have not been measured on a GPU yet. Tiles fit in 99 KiB of shared memory (64 KiB on AMD).
ROWS = 32, 128  # least and greatest number of queries per program: tokens times heads
PROGRAMS_PER_MULTIPROCESSOR = 2  # with fewer programs, blocks are smaller
QUERIES = 16384  # numbers in the queries of a program
HEADS = 16  # greatest number of heads per program
TILE = 64  # greatest number of keys per tile
FP8_TILE = 32  # the same for fp8, whose conversion takes registers
KEYS = 8192  # numbers in a tile of keys
SUMS = 1024  # numbers of the result per warp; a program has 2 to 8 warps
STAGES = 2


class Block(NamedTuple):
    """The queries of a program."""

    query: tl.tensor  # [ROWS, D]
    oldest: tl.tensor  # int32 [ROWS], first key that each of them sees
    position: tl.tensor  # int32 [ROWS], last key
    scale: tl.tensor


@triton.jit
def block_attention(
    block, cache, page_table_ptr, span,
    PAGE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return (totals [ROWS], sums of values [ROWS, D]) of the queries over the keys of a :class:`Span`."""
    FP8: tl.constexpr = cache.keys_ptr.dtype.element_ty == tl.float8e4nv
    i = tl.arange(0, D)[None, :]
    best = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    key = span.begin + tl.arange(0, TILE)
    page = tl.load(page_table_ptr + key // PAGE, mask=(key >= span.first) & (key < span.stop), other=0)
    for at in range(span.begin, span.stop, TILE):
        key = at + tl.arange(0, TILE)
        place = page.to(tl.int64) * cache.page_stride + key % PAGE
        offset = (place * DIM)[:, None] + i
        exists = (key >= span.first) & (key < span.stop)
        inside = exists[:, None] & (i < DIM)
        k = tl.load(cache.keys_ptr + offset, mask=inside, other=0.0).to(block.query.dtype)
        v = tl.load(cache.values_ptr + offset, mask=inside, other=0.0).to(block.query.dtype)
        ahead = key + TILE
        page = tl.load(page_table_ptr + ahead // PAGE, mask=ahead < span.stop, other=0)  # one tile ahead
        seen = (key[None, :] <= block.position[:, None]) & (key[None, :] >= block.oldest[:, None])
        score = tl.dot(block.query, tl.trans(k)) * block.scale
        if FP8:
            score = scaled(score, cache.key_scales_ptr, place[None, :], exists[None, :])
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        if FP8:
            share = scaled(share, cache.value_scales_ptr, place[None, :], exists[None, :]) * FP8_MAX
        sums = tl.dot(share.to(v.dtype), v, sums * shrink[:, None])
        best = higher
    if FP8:
        sums /= FP8_MAX
    return total, sums


@triton.jit(
    do_not_specialize=["tokens", "table_stride", "window"], do_not_specialize_on_alignment=settings.SCALAR_POINTERS
)
def prefill_attention_kernel(
    # queries [N, H, DIM] with unit stride along DIM, and the cache, contiguous [pages, K, PAGE, DIM]
    q_ptr, keys_ptr, values_ptr,
    # bfloat16 [pages, K, PAGE], if the cache is fp8
    key_scales_ptr, value_scales_ptr,
    # int32 [sequences, pages per sequence], int32 [N], int64 [N]
    page_table_ptr, cache_row_ptr, position_ptr,
    # result, contiguous [N, H, DIM]
    out_ptr,
    # window 0: all keys; scale includes log2(e)
    tokens, q_row_stride, q_head_stride, table_stride, window, scale,
    # GROUP query heads share a key-value head; a program computes G of them for T tokens. D is DIM rounded up to a
    # power of two.
    GROUP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, G: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Compute attention of T tokens over their sequences. Grid: (blocks of T tokens, K times blocks of G heads)."""
    HEAD_BLOCKS: tl.constexpr = (GROUP + G - 1) // G
    kv_head = (tl.program_id(1) // HEAD_BLOCKS).to(tl.int64)
    kv_heads = (tl.num_programs(1) // HEAD_BLOCKS).to(tl.int64)
    # The last tokens of a prompt see the most keys; they begin first.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * T
    r = tl.arange(0, T * G)
    i = tl.arange(0, D)[None, :]
    token = start + r // G
    in_group = tl.program_id(1) % HEAD_BLOCKS * G + r % G
    head = kv_head * GROUP + in_group
    exists = (token < tokens) & (in_group < GROUP)
    cache_row = tl.load(cache_row_ptr + token, mask=token < tokens, other=-1)
    position = tl.load(position_ptr + token, mask=token < tokens, other=0).to(tl.int32)
    inside = exists[:, None] & (i < DIM)
    query = tl.load(q_ptr + (token * q_row_stride + head * q_head_stride)[:, None] + i, mask=inside, other=0.0)
    out_ptrs = out_ptr + ((token * kv_heads * GROUP + head) * DIM)[:, None] + i
    zeros = tl.zeros([T * G, D], tl.float32)
    tl.store(out_ptrs, zeros.to(out_ptr.dtype.element_ty), mask=inside & (cache_row < 0)[:, None])

    cache = cache_of(
        keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, kv_head, kv_heads, PAGE, DIM
    )  # fmt: skip
    oldest = tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)
    block = Block(query, oldest, position, scale)
    current = tl.max(cache_row, 0)
    while current >= 0:
        member = cache_row == current
        first = tl.min(tl.where(member, oldest, 2147483647), 0)
        stop = tl.max(tl.where(member, position, -1), 0) + 1
        span = Span(first // TILE * TILE, stop, first)
        table_ptr = page_table_ptr + current.to(tl.int64) * table_stride
        total, sums = block_attention(block, cache, table_ptr, span, PAGE, DIM, T * G, TILE, D)
        tl.store(out_ptrs, (sums / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside & member[:, None])
        cache_row = tl.where(member, -1, cache_row)
        current = tl.max(cache_row, 0)


def prefill_attention(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, ...],
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.triton.attention.paged_attention` of one or more 16-bit tokens in one launch.

    The weights of the values are rounded to 16 bits, their total is not. `cache` is keys, values and their scales,
    which are read if it is fp8.
    """
    tokens, heads, dim = q.shape
    _, kv_heads, page, _ = cache[0].shape
    group, width = heads // kv_heads, triton.next_power_of_2(dim)
    heads_per_program = min(triton.next_power_of_2(group), HEADS)
    jobs = kv_heads * triton.cdiv(group, heads_per_program)
    rows = min(ROWS[1], QUERIES // width)
    room = PROGRAMS_PER_MULTIPROCESSOR * settings.multiprocessors(q.device)
    while rows > ROWS[0] and triton.cdiv(tokens * heads_per_program, rows) * jobs < room:
        rows //= 2
    tokens_per_program = rows // heads_per_program
    is_async = rows >= ASYNC_ROWS and settings.compute_capability(q.device) >= 9
    stages = 1 if torch.version.hip or (is_async and not HAS_FENCE) else STAGES
    most_keys = FP8_TILE if cache[0].dtype == torch.float8_e4m3fn else TILE
    out = q.new_empty(q.shape)
    prefill_attention_kernel[(triton.cdiv(tokens, tokens_per_program), jobs)](
        q, *cache, page_table, cache_row, position, out,
        tokens, *q.stride()[:2], page_table.stride(0), window, float(scale) * math.log2(math.e),
        GROUP=group, PAGE=page, DIM=dim, G=heads_per_program, T=tokens_per_program, TILE=min(most_keys, KEYS // width),
        D=width, num_warps=min(max(rows * width // SUMS, 2), 8), num_stages=stages, enable_fp_fusion=True,
        **({} if torch.version.hip else {"maxnreg": 255}),
    )  # fmt: skip
    return out
