"""Attention of a prefill on matrix units: a program computes a block of neighbouring tokens and reads each key once.

The tokens of a block may belong to any sequences. A program visits the sequences of its block one after the other. In a
prefill these are few. The keys of a sequence are read in tiles, from multiples of the tile, so that a result does not
depend on the block that computes it.
"""

import math

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton import block_attention as blocks
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.attention_tiles import Span, cache_of
from cdgen_kernels.triton.block_attention import Block, block_attention, block_rows

# Launch settings; they have not been measured on a GPU yet.
LEAST_ROWS = 32  # least number of queries per program: with fewer programs than there is room for, blocks are smaller
HEADS = 16  # greatest number of heads per program


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
    token, head, exists = block_rows(start, tokens, tl.program_id(1), GROUP, G, T)
    i = tl.arange(0, D)[None, :]
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
        _, total, sums = block_attention(block, cache, table_ptr, span, PAGE, DIM, T * G, TILE, D)
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
    rows, room = min(blocks.MOST_ROWS, blocks.QUERIES // width), blocks.room(q.device)
    while rows > LEAST_ROWS and triton.cdiv(tokens * heads_per_program, rows) * jobs < room:
        rows //= 2
    tokens_per_program = rows // heads_per_program
    out = q.new_empty(q.shape)
    prefill_attention_kernel[(triton.cdiv(tokens, tokens_per_program), jobs)](
        q, *cache, page_table, cache_row, position, out,
        tokens, *q.stride()[:2], page_table.stride(0), window, float(scale) * math.log2(math.e),
        GROUP=group, PAGE=page, DIM=dim, G=heads_per_program, T=tokens_per_program,
        TILE=blocks.keys_per_tile(width, cache[0].dtype), D=width, **blocks.launch_options(rows, width, q.device),
    )  # fmt: skip
    return out
