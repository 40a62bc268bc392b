"""`paged_attention` on GPUs: an online softmax (Milakov and Gimelshein 2018) in one pass over the cache, in one launch.

A program computes the query heads of one token that share a key-value head (:mod:`attention_tiles`). In a prefill, it
computes those of a block of tokens (:mod:`prefill_attention`), if they can be computed on matrix units.

If there are fewer programs than the device has room for, several programs share the keys of a sequence (flash-decoding,
Dao et al. 2023), and the last one to finish merges their results. Keys that several sequences share may be left to a
launch before this one (:mod:`shared_attention`), whose results are merged with them.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton import arrivals, settings
from cdgen_kernels.triton.arrivals import is_last_to_arrive
from cdgen_kernels.triton.attention_tiles import Noise, Span, cache_of, line_attention, matrix_attention, merge
from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.prefill_attention import prefill_attention
from cdgen_kernels.triton.shared_attention import Sizes, keys_per_part, new_parts, shared_attention, shared_keys, sizes

# Launch settings; they have not been measured on a GPU yet. A program has up to 8 KiB of keys and values in flight.
THREADS = 64
KEYS = {1: 4, 2: 4, 4: 4, 8: 2}  # heads per program -> keys per line at a time, limited by registers; divisors of 4
MATRIX_GROUP = 4  # smallest group of heads, rounded up to a power of two, that is computed on matrix units
MATRIX_TILE = 4096  # numbers per tile of keys, at most 32 keys
MERGED = 2048  # numbers of the parts' sums that the merging program reads at once
FEW_MERGED = 256  # the same if programs fill the device, so that fewer instructions matter more than latency


@triton.jit
def merge_parts(ends_ptr, sums_ptr, parts, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr):
    """Merge the first `parts` of :class:`Parts`, S of them at a time; return (totals [ROWS], sums [ROWS, D]).

    Args:
        ends_ptr: float32 [parts, 2, ROWS], maxima and totals. sums_ptr: float32 [parts, ROWS, D].
    """
    h = tl.arange(0, ROWS)
    i = tl.arange(0, D)
    best = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, parts, S):
        s = start + tl.arange(0, S)
        inside = s < parts
        offset = s[None, :] * (2 * ROWS) + h[:, None]
        b = tl.load(ends_ptr + offset, mask=inside[None, :], other=LOWEST)
        t = tl.load(ends_ptr + offset + ROWS, mask=inside[None, :], other=0.0)
        offset = (s[None, :, None] * ROWS + h[:, None, None]) * D + i[None, None, :]
        o = tl.load(sums_ptr + offset, mask=inside[None, :, None], other=0.0)
        b, t, o = merge(b, t, o)
        higher = tl.maximum(best, b)
        shrink = tl.exp2(best - higher)
        factor = tl.exp2(b - higher)
        total = total * shrink + t * factor
        sums = sums * shrink[:, None] + o * factor[:, None]
        best = higher
    return total, sums


@triton.jit
def store_heads(out_ptr, x, count, DIM: tl.constexpr, G: tl.constexpr, D: tl.constexpr):
    """Write the first `count` rows of x [G, D] to out [count, DIM]."""
    h = tl.arange(0, G)[:, None]
    i = tl.arange(0, D)[None, :]
    tl.store(out_ptr + h * DIM + i, x.to(out_ptr.dtype.element_ty), mask=(h < count) & (i < DIM))


@triton.jit(
    do_not_specialize=["table_stride", "window", "layer", "shared_splits"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def paged_attention_kernel(
    # queries [N, H, DIM] with unit stride along DIM, and the cache, contiguous [pages, K, PAGE, DIM]
    q_ptr, keys_ptr, values_ptr,
    # bfloat16 [pages, K, PAGE], if the cache is fp8
    key_scales_ptr, value_scales_ptr,
    # int32 [sequences, pages per sequence], int32 [N], int64 [N]
    page_table_ptr, cache_row_ptr, position_ptr,
    # dropout: int64, one element, and int64 [N]
    seed_ptr, sequence_ptr,
    # if SHARED: int32 [sequences]
    shared_lengths_ptr,
    # scratch if SPLIT: counters, int32 [N, jobs]; if SPLIT or SHARED: parts, float32 [N, jobs, slots, 2, ROWS] and
    # [N, jobs, slots, ROWS, D]
    arrivals_ptr, part_ends_ptr, part_sums_ptr,
    # result, contiguous [N, H, DIM]
    out_ptr,
    # window 0: all keys; scale includes log2(e); kept is 1 minus the probability of dropout
    q_row_stride, q_head_stride, table_stride, window, scale, kept, layer, shared_splits,
    # DROPPED is the probability of dropout times 2^32. GROUP query heads share a key-value head, G of them per program.
    # D is DIM rounded up to a power of two. ROWS of G rows of matrix units are in use. Merging reads S parts at once.
    GROUP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, DROPPED: tl.constexpr, MATRIX: tl.constexpr,
    SPLIT: tl.constexpr, SHARED: tl.constexpr, SHARED_TILE: tl.constexpr, G: tl.constexpr, KEYS: tl.constexpr,
    LINES: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Compute attention of each token over its sequence. Grid: (N, jobs: K times blocks of G heads, splits)."""
    TILE: tl.constexpr = KEYS * LINES
    BLOCKS: tl.constexpr = (GROUP + G - 1) // G  # blocks of G heads per group
    token = tl.program_id(0).to(tl.int64)
    kv_head = (tl.program_id(1) // BLOCKS).to(tl.int64)
    kv_heads = (tl.num_programs(1) // BLOCKS).to(tl.int64)
    head = kv_head * GROUP + tl.program_id(1) % BLOCKS * G  # the program's first query head
    count = tl.minimum(GROUP - tl.program_id(1) % BLOCKS * G, G)
    out_ptr += (token * kv_heads * GROUP + head) * DIM
    cache_row = tl.load(cache_row_ptr + token)
    if cache_row < 0:
        if tl.program_id(2) == 0:
            store_heads(out_ptr, tl.zeros([G, D], tl.float32), count, DIM, G, D)
        return

    position = tl.load(position_ptr + token)
    end = position.to(tl.int32) + 1
    first = tl.where(window > 0, tl.maximum(end - window, 0), 0)
    begin = first // TILE * TILE
    stop = end
    programs = 1
    others = 0  # parts of shared keys
    if SHARED:
        shared = shared_keys(shared_lengths_ptr, cache_row, first, end)
        others = tl.cdiv(shared, keys_per_part(shared, shared_splits, SHARED_TILE))
        first = tl.maximum(first, shared)
        begin = tl.maximum(begin, shared)
    if SPLIT:
        segment = tl.cdiv(tl.cdiv(end - begin, TILE), tl.num_programs(2)) * TILE
        programs = tl.cdiv(end - begin, segment)
        begin += tl.program_id(2) * segment
        stop = tl.minimum(begin + segment, end)
        if begin >= end:
            return

    q_ptr += token * q_row_stride + head * q_head_stride
    cache = cache_of(
        keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, kv_head, kv_heads, PAGE, DIM
    )  # fmt: skip
    page_table_ptr += cache_row.to(tl.int64) * table_stride
    span = Span(begin, stop, first)
    if MATRIX:
        best, total, sums = matrix_attention(
            q_ptr, q_head_stride, count, scale, cache, page_table_ptr, span, PAGE, DIM, G, TILE, D
        )
    else:
        noise = Noise(seed_ptr, sequence_ptr + token, position, layer * kv_heads * GROUP + head + 1)
        best, total, sums = line_attention(
            q_ptr, q_head_stride, count, scale, cache, page_table_ptr, span, noise,
            PAGE, DIM, DROPPED, G, KEYS, LINES, D,
        )  # fmt: skip
    if programs + others > 1:
        job = token * tl.num_programs(1) + tl.program_id(1)
        before = job * (tl.num_programs(2) + shared_splits)
        part = before + others + tl.program_id(2)
        h = tl.arange(0, G)
        tl.store(part_ends_ptr + part * (2 * ROWS) + h, best, mask=h < ROWS)
        tl.store(part_ends_ptr + part * (2 * ROWS) + ROWS + h, total, mask=h < ROWS)
        store_heads(part_sums_ptr + part * (ROWS * D), sums, ROWS, D, G, D)
        if SPLIT and not is_last_to_arrive(arrivals_ptr + job, programs):
            return
        tl.debug_barrier()
        merged_total, merged_sums = merge_parts(
            part_ends_ptr + before * (2 * ROWS), part_sums_ptr + before * (ROWS * D), programs + others, ROWS, D, S
        )
        store_heads(out_ptr, merged_sums / (merged_total * kept)[:, None], count, DIM, ROWS, D)
    else:
        store_heads(out_ptr, sums / (total * kept)[:, None], count, DIM, G, D)


class Shape(NamedTuple):
    """How a launch divides heads and keys among programs."""

    heads: int  # the same as `rows`, or 16 on matrix units
    rows: int  # heads per program, rounded up to a power of two
    jobs: int  # programs per token and split
    keys: int  # neighbouring keys per line
    lines: int  # lines per tile
    splits: int  # programs that divide the keys of a token


def launch_shape(q: torch.Tensor, keys: torch.Tensor, page_table: torch.Tensor, window: int, matrix: bool) -> Shape:
    """Choose the shape of a launch, with matrix units or without."""
    tokens, total, dim = q.shape
    _, kv_heads, page, _ = keys.shape
    width, rows = triton.next_power_of_2(dim), triton.next_power_of_2(total // kv_heads)
    if matrix:
        heads, keys_per_line, lines = 16, 1, min(max(MATRIX_TILE // width, 16), 32)
    else:
        heads = min(rows, max(KEYS))
        keys_per_line, lines = math.gcd(page, KEYS[heads]), max(THREADS * 16 // keys.itemsize // width, 1)
    jobs = kv_heads * triton.cdiv(total // kv_heads, heads)
    length, tile = page_table.shape[1] * page, keys_per_line * lines
    tiles = triton.cdiv(min(length, window + tile) if window else length, tile)  # a window may begin within a tile
    room = settings.ATTENTION_PROGRAMS_PER_MULTIPROCESSOR * settings.multiprocessors(q.device)
    return Shape(heads, min(rows, heads), jobs, keys_per_line, lines, max(1, min(tiles, room // (tokens * jobs))))


def paged_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
    dropout: float,
    seed: torch.Tensor,
    sequence: torch.Tensor,
    layer: int,
    prefill: bool = False,
    shared_lengths: torch.Tensor | None = None,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.reference.layers.paged_attention` in float32 arithmetic.

    Weights are rounded to 16 bits in a prefill, for shared keys, and for groups that round up to MATRIX_GROUP or more
    heads, if queries have 16 bits, pages have their dtype or fp8, and there is no dropout. Shared keys then take a
    launch of their own; otherwise there is one launch.

    Args:
        q: [N, H, d] with unit stride along d. keys, values: contiguous [pages, K, page size, d].
        key_scales, value_scales: bfloat16 [pages, K, page size], contiguous, if the cache is float8_e4m3fn.
        page_table: int32 [sequences, pages per sequence]. cache_row: int32 [N], negative for unused tokens.
        position: int64 [N]. seed: int64, one element. sequence: int64 [N]. shared_lengths: int32 [sequences] or None.
    """
    tokens, heads, dim = q.shape
    width = triton.next_power_of_2(dim)
    matrix = width >= 16 and (q.dtype == keys.dtype or key_scales is not None) and q.itemsize == 2 and not dropout
    cache = (keys, values, keys if key_scales is None else key_scales, values if value_scales is None else value_scales)
    if prefill and matrix and tokens:
        return prefill_attention(q, cache, page_table, cache_row, position, scale, window)
    out = q.new_empty(q.shape)
    if not tokens:
        return out
    group, page, scale = heads // keys.shape[1], keys.shape[2], float(scale) * math.log2(math.e)
    shared = shared_lengths if matrix else None
    matrix = matrix and triton.next_power_of_2(group) >= MATRIX_GROUP
    shape = launch_shape(q, keys, page_table, window, matrix)
    size = Sizes(1, 0, 1) if shared is None else sizes(q, page_table, cache, shape.jobs, shape.rows)
    parts = new_parts(q, shape.jobs, size.splits + shape.splits, shape.rows)
    if shared is not None:
        paging = page_table, cache_row, position, shared
        shared_attention(q, cache, *paging, scale, window, parts, size)
    paged_attention_kernel[(tokens, shape.jobs, shape.splits)](
        q, *cache, page_table, cache_row, position, seed, sequence, cache_row if shared is None else shared,
        arrivals.counters(q.device, tokens * shape.jobs if shape.splits > 1 else 0), *parts, out,
        *q.stride()[:2], page_table.stride(0), window, scale, 1 - float(dropout), layer, size.splits,
        GROUP=group, PAGE=page, DIM=dim, DROPPED=int(dropout * 2**32), MATRIX=matrix,
        SPLIT=shape.splits > 1, SHARED=shared is not None, SHARED_TILE=size.tile,
        G=shape.heads, KEYS=shape.keys, LINES=shape.lines, D=width, ROWS=shape.rows,
        S=max((MERGED if shape.splits > 1 else FEW_MERGED) // (shape.rows * width), 1),
        **({"num_warps": THREADS // 64} if torch.version.hip else {"num_warps": THREADS // 32, "maxnreg": 255}),
        num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out
