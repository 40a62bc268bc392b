"""`paged_attention` on GPUs in one launch: an online softmax (Milakov and Gimelshein 2018) in one pass over the cache.

A program computes the query heads of one token that share a key-value head (:mod:`attention_tiles`). In a prefill, it
computes those of a block of tokens (:mod:`prefill_attention`), if they can be computed on matrix units.

If there are fewer programs than the device has room for, several programs share the keys of a sequence (flash-decoding,
Dao et al. 2023), and the last one to finish merges their results.
"""

import math

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton import arrivals, settings
from cdgen_kernels.triton.arrivals import is_last_to_arrive
from cdgen_kernels.triton.attention_tiles import Noise, Span, cache_of, line_attention, matrix_attention, merge
from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.prefill_attention import prefill_attention

# Launch settings; they have not been measured on a GPU yet. A program has up to 8 KiB of keys and values in flight.
THREADS = 64
KEYS = {1: 4, 2: 4, 4: 4, 8: 2}  # heads per program -> keys per line at a time, limited by registers; divisors of 4
MATRIX_GROUP = 4  # smallest group of heads, rounded up to a power of two, that is computed on matrix units
MATRIX_TILE = 4096  # numbers per tile of keys, at most 32 keys
MERGED = 2048  # numbers of the programs' sums that the merging program reads at once


@triton.jit
def merge_parts(ends_ptr, sums_ptr, programs, G: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr):
    """Merge what `programs` programs stored, S of them at a time; return (totals [ROWS], sums [ROWS, D]).

    Args:
        ends_ptr: float32 [programs, 2, G], maxima and totals. sums_ptr: float32 [programs, G, D].
    """
    h = tl.arange(0, ROWS)
    i = tl.arange(0, D)
    best = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, programs, S):
        s = start + tl.arange(0, S)
        inside = s < programs
        offset = s[None, :] * (2 * G) + h[:, None]
        b = tl.load(ends_ptr + offset, mask=inside[None, :], other=LOWEST)
        t = tl.load(ends_ptr + offset + G, mask=inside[None, :], other=0.0)
        offset = s[None, :, None] * (G * D) + h[:, None, None] * D + i[None, None, :]
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
    do_not_specialize=["table_stride", "window", "layer"], do_not_specialize_on_alignment=settings.SCALAR_POINTERS
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
    # scratch if SPLIT: counters, int32 [N, jobs], and float32 [N, jobs, splits, 2, G] and [N, jobs, splits, G, D]
    arrivals_ptr, part_ends_ptr, part_sums_ptr,
    # result, contiguous [N, H, DIM]
    out_ptr,
    # window 0: all keys; scale includes log2(e); kept is 1 minus the probability of dropout
    q_row_stride, q_head_stride, table_stride, window, scale, kept, layer,
    # DROPPED is the probability of dropout times 2^32. GROUP query heads share a key-value head, G of them per program.
    # D is DIM rounded up to a power of two. Merging reads ROWS heads of S programs at once.
    GROUP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, DROPPED: tl.constexpr, MATRIX: tl.constexpr,
    SPLIT: tl.constexpr, G: tl.constexpr, KEYS: tl.constexpr, LINES: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, S: tl.constexpr,
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
    if programs > 1:
        job = token * tl.num_programs(1) + tl.program_id(1)
        part = job * tl.num_programs(2) + tl.program_id(2)
        h = tl.arange(0, G)
        tl.store(part_ends_ptr + part * (2 * G) + h, best)
        tl.store(part_ends_ptr + part * (2 * G) + G + h, total)
        store_heads(part_sums_ptr + part * (G * D), sums, G, D, G, D)
        if not is_last_to_arrive(arrivals_ptr + job, programs):
            return
        tl.debug_barrier()
        part = job * tl.num_programs(2)
        merged_total, merged_sums = merge_parts(
            part_ends_ptr + part * (2 * G), part_sums_ptr + part * (G * D), programs, G, ROWS, D, S
        )
        store_heads(out_ptr, merged_sums / (merged_total * kept)[:, None], count, DIM, ROWS, D)
    else:
        store_heads(out_ptr, sums / (total * kept)[:, None], count, DIM, G, D)


def tile_shape(rows: int, width: int, page: int, itemsize: int, matrix: bool) -> tuple[int, int, int]:
    """Return (heads per program, keys per line, lines per tile).

    Args:
        rows, width: heads that share a key-value head, and numbers of a head, rounded up to powers of two.
        page, itemsize: keys per page, and bytes per number of a key.
    """
    if matrix:
        return 16, 1, min(max(MATRIX_TILE // width, 16), 32)
    heads = min(rows, max(KEYS))
    return heads, math.gcd(page, KEYS[heads]), max(THREADS * 16 // itemsize // width, 1)


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
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.reference.layers.paged_attention` in one launch, in float32 arithmetic.

    Weights are rounded to 16 bits in a prefill, and for groups that round up to MATRIX_GROUP or more heads, if queries
    have 16 bits, pages have their dtype or fp8, and there is no dropout.

    Args:
        q: [N, H, d] with unit stride along d. keys, values: contiguous [pages, K, page size, d].
        key_scales, value_scales: bfloat16 [pages, K, page size], contiguous, if the cache is float8_e4m3fn.
        page_table: int32 [sequences, pages per sequence]. cache_row: int32 [N], negative for unused tokens.
        position: int64 [N]. seed: int64, one element. sequence: int64 [N].
    """
    tokens, heads, dim = q.shape
    width = triton.next_power_of_2(dim)
    matrix = width >= 16 and (q.dtype == keys.dtype or key_scales is not None) and q.itemsize == 2 and not dropout
    cache = (keys, values, keys if key_scales is None else key_scales, values if value_scales is None else value_scales)
    if prefill and matrix and tokens:
        return prefill_attention(q, cache, page_table, cache_row, position, scale, window)
    out = q.new_empty(q.shape)
    if tokens:
        _, kv_heads, page, _ = keys.shape
        group, rows = heads // kv_heads, triton.next_power_of_2(heads // kv_heads)
        matrix = matrix and rows >= MATRIX_GROUP
        heads_per_program, keys_per_line, lines = tile_shape(rows, width, page, keys.itemsize, matrix)
        jobs, rows = kv_heads * triton.cdiv(group, heads_per_program), min(rows, heads_per_program)
        length, tile = page_table.shape[1] * page, keys_per_line * lines
        tiles = triton.cdiv(min(length, window + tile) if window else length, tile)  # a window may begin within a tile
        room = settings.ATTENTION_PROGRAMS_PER_MULTIPROCESSOR * settings.multiprocessors(q.device)
        splits = max(1, min(tiles, room // (tokens * jobs)))
        parts = tokens * jobs * splits if splits > 1 else 0
        paged_attention_kernel[(tokens, jobs, splits)](
            q, *cache, page_table, cache_row, position, seed, sequence,
            arrivals.counters(q.device, tokens * jobs if parts else 0),
            q.new_empty((parts, 2, heads_per_program), dtype=torch.float32),
            q.new_empty((parts, heads_per_program, width), dtype=torch.float32), out,
            *q.stride()[:2], page_table.stride(0), window,
            float(scale) * math.log2(math.e), 1 - float(dropout), layer,
            GROUP=group, PAGE=page, DIM=dim, DROPPED=int(dropout * 2**32), MATRIX=matrix, SPLIT=splits > 1,
            G=heads_per_program, KEYS=keys_per_line, LINES=lines, D=width, ROWS=rows,
            S=max(MERGED // (rows * width), 1),
            **({"num_warps": THREADS // 64} if torch.version.hip else {"num_warps": THREADS // 32, "maxnreg": 255}),
            num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return out
