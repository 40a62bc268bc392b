"""`paged_attention` on GPUs in one launch: an online softmax (Milakov and Gimelshein 2018) in one pass over the cache.

A program computes the query heads of one token that share a key-value head, over tiles of LINES x KEYS keys. A line is
the group of lanes that one key needs at 16 bytes per lane. It processes KEYS neighbouring keys at a time and keeps its
own maximum, total and weighted sum of values, so within the loop lanes communicate only to add up a score. Lines are
merged at the end. Larger groups of heads become the rows of a matrix product, with weights rounded to 16 bits.

If there are fewer programs than the device has room for, several programs share the keys of a sequence (flash-decoding,
Dao et al. 2023), and the last one to finish merges their results.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cdgen_kernels.reference.layers import GOLDEN
from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.noise import philox_block
from cdgen_kernels.triton.passes import is_last_to_arrive
from cdgen_kernels.triton.settings import SCALAR_POINTERS, multiprocessors

# Launch settings; they have not been measured on a GPU yet. A program has up to 8 KiB of keys and values in flight.
THREADS = 64
KEYS = {1: 4, 2: 4, 4: 4, 8: 2}  # heads per program -> keys per line at a time, limited by registers; divisors of 4
MATRIX_GROUP = 4  # smallest group of heads, rounded up to a power of two, that is computed on matrix units
MATRIX_TILE = 4096  # numbers per tile of keys, at most 32 keys
PROGRAMS_PER_MULTIPROCESSOR = 4  # limit on the programs that share the keys of a sequence
MERGED = 2048  # numbers of the programs' sums that the merging program reads at once

_GOLDEN = tl.constexpr(GOLDEN)


class Cache(NamedTuple):
    """Keys and values of one key-value head, page by page."""

    keys_ptr: tl.tensor  # [pages, PAGE, DIM], pages page_stride apart
    values_ptr: tl.tensor
    page_stride: tl.tensor  # int64


class Span(NamedTuple):
    """The keys that a program reads: [begin, stop), without those before `first`; int32."""

    begin: tl.tensor  # a multiple of the tile
    stop: tl.tensor
    first: tl.tensor  # first key of the window


class Noise(NamedTuple):
    """What a dropout mask depends on."""

    seed_ptr: tl.tensor  # int64, one element
    sequence_ptr: tl.tensor  # int64, one element
    position: tl.tensor  # int64
    head: tl.tensor  # int64, number of the first head, counted over all layers from 1


@triton.jit
def merge(best, total, sums):
    """Merge softmaxes over different keys, in base 2.

    Args:
        best, total: maxima and totals, float32 [G, n]. sums: weighted sums of values, float32 [G, n, D].
    Returns:
        (maxima [G], totals [G], sums [G, D])
    """
    highest = tl.max(best, 1)
    factor = tl.exp2(best - highest[:, None])
    # With plain products, each lane would fuse its own product with the sum of the others, and lanes would round the
    # same sum differently.
    return highest, tl.sum(tl.fma(total, factor, 0.0), 1), tl.sum(tl.fma(sums, factor[:, :, None], 0.0), 1)


@triton.jit
def is_dropped(lead, key, seed, sequence, position, dropped):
    """Return whether dropout removes the weight of each key [1, KEYS, LINES], for heads with seeds [G, 1, 1].

    The keys that start at each `lead` [1, 1, LINES] take their words from one block. A key is dropped if its word is
    below `dropped`.
    """
    w0, w1, w2, w3 = philox_block(lead >> 2, seed, sequence, position)
    word = key & 3
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3)) < dropped


@triton.jit
def line_attention(
    q_ptr, head_stride, count, scale, cache, page_table_ptr, span, noise,
    PAGE: tl.constexpr, DIM: tl.constexpr, DROPPED: tl.constexpr,
    G: tl.constexpr, KEYS: tl.constexpr, LINES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute attention of `count` heads over the keys of a :class:`Span`, in float32.

    Args:
        q_ptr: queries [count, DIM], heads head_stride apart. scale: float32, includes log2(e).
        page_table_ptr: int32 page numbers of the sequence. noise: read if DROPPED > 0.
    Returns:
        (maxima [G], totals [G], sums of values [G, D]) in base 2
    """
    # Tensors here are [G, KEYS, LINES, D], with some of the dimensions left out.
    n = tl.arange(0, D)[None, None, None, :]
    r = tl.arange(0, KEYS)[None, :, None]
    g = tl.arange(0, G)[:, None, None]
    q_ptrs = q_ptr + (g.to(tl.int64) * head_stride)[:, :, :, None] + n
    query = tl.load(q_ptrs, mask=(g < count)[:, :, :, None] & (n < DIM), other=0.0).to(tl.float32) * scale
    if DROPPED > 0:
        seeds = tl.load(noise.seed_ptr) + ((noise.head + g) * _GOLDEN << 32)
        sequence = tl.load(noise.sequence_ptr)
    best = tl.full([G, LINES], LOWEST, tl.float32)
    total = tl.zeros([G, LINES], tl.float32)
    sums = tl.zeros([G, LINES, D], tl.float32)
    lead = span.begin + tl.arange(0, LINES)[None, None, :] * KEYS  # a page holds all keys of a line, or none
    page = tl.load(page_table_ptr + lead // PAGE, mask=(lead + KEYS > span.first) & (lead < span.stop), other=0)
    for _ in range(span.begin, span.stop, KEYS * LINES):
        key = lead + r
        seen = (key >= span.first) & (key < span.stop)
        offset = (page.to(tl.int64) * cache.page_stride + (lead % PAGE + r) * DIM)[:, :, :, None] + n
        # Only D is contiguous. Without this hint, Triton 3.4 and 3.6 distribute lanes over KEYS next, so that every sum
        # over keys crosses lanes. With it they distribute them over LINES, as 3.9 does.
        offset = tl.max_contiguous(offset, [1, 1, 2, D])
        inside = seen[:, :, :, None] & (n < DIM)
        k = tl.load(cache.keys_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(cache.values_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        ahead = lead + KEYS * LINES
        page = tl.load(page_table_ptr + ahead // PAGE, mask=ahead < span.stop, other=0)  # one tile ahead
        score = tl.where(seen, tl.sum(query * k, 3), float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None, :])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        if DROPPED > 0:
            share = tl.where(is_dropped(lead, key, seeds, sequence, noise.position, DROPPED), 0.0, share)
        sums = sums * shrink[:, :, None] + tl.sum(share[:, :, :, None] * v, 1)
        best = higher
        lead = ahead
    return merge(best, total, sums)


@triton.jit
def matrix_attention(
    q_ptr, head_stride, count, scale, cache, page_table_ptr, span,
    PAGE: tl.constexpr, DIM: tl.constexpr, G: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute :func:`line_attention` on matrix units, with weights rounded to the dtype of the values.

    Totals are not rounded.
    """
    g = tl.arange(0, G)[:, None]
    i = tl.arange(0, D)[None, :]
    query = tl.load(q_ptr + g.to(tl.int64) * head_stride + i, mask=(g < count) & (i < DIM), other=0.0)
    best = tl.full([G], LOWEST, tl.float32)
    total = tl.zeros([G], tl.float32)
    sums = tl.zeros([G, D], tl.float32)
    key = span.begin + tl.arange(0, TILE)
    page = tl.load(page_table_ptr + key // PAGE, mask=(key >= span.first) & (key < span.stop), other=0)
    for _ in range(span.begin, span.stop, TILE):
        seen = (key >= span.first) & (key < span.stop)
        offset = (page.to(tl.int64) * cache.page_stride + key % PAGE * DIM)[:, None] + i
        k = tl.load(cache.keys_ptr + offset, mask=seen[:, None] & (i < DIM), other=0.0)
        v = tl.load(cache.values_ptr + offset, mask=seen[:, None] & (i < DIM), other=0.0)
        key += TILE
        page = tl.load(page_table_ptr + key // PAGE, mask=key < span.stop, other=0)  # one tile ahead
        score = tl.where(seen[None, :], tl.dot(query, tl.trans(k)) * scale, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        sums = tl.dot(share.to(v.dtype), v, sums * shrink[:, None])
        best = higher
    return best, total, sums


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


@triton.jit(do_not_specialize=["table_stride", "window", "layer"], do_not_specialize_on_alignment=SCALAR_POINTERS)
def paged_attention_kernel(
    # queries [N, H, DIM] with unit stride along DIM, and the cache, contiguous [pages, K, PAGE, DIM]
    q_ptr, keys_ptr, values_ptr,
    # int32 [sequences, pages per sequence], int32 [N], int64 [N]
    page_table_ptr, cache_row_ptr, position_ptr,
    # dropout: int64, one element, and int64 [N]
    seed_ptr, sequence_ptr,
    # scratch if SPLIT: int32 zeros [N, jobs], and float32 [N, jobs, splits, 2, G] and [N, jobs, splits, G, D]
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
    head_offset = kv_head * (PAGE * DIM)
    cache = Cache(keys_ptr + head_offset, values_ptr + head_offset, kv_heads * (PAGE * DIM))
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
) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.reference.layers.paged_attention` in one launch, in float32 arithmetic.

    Groups that round up to MATRIX_GROUP or more heads, in the 16-bit dtype of the cache and without dropout, round
    weights to that dtype.

    Args:
        q: [N, H, d] with unit stride along d. keys, values: contiguous [pages, K, page size, d].
        page_table: int32 [sequences, pages per sequence]. cache_row: int32 [N], negative for unused tokens.
        position: int64 [N]. seed: int64, one element. sequence: int64 [N].
    """
    tokens, heads, dim = q.shape
    out = q.new_empty(q.shape)
    if tokens:
        _, kv_heads, page, _ = keys.shape
        group = heads // kv_heads
        width = triton.next_power_of_2(dim)
        rows = triton.next_power_of_2(group)
        matrix = rows >= MATRIX_GROUP and width >= 16 and q.dtype == keys.dtype and q.itemsize == 2 and not dropout
        heads_per_program = 16 if matrix else min(rows, max(KEYS))
        jobs = kv_heads * triton.cdiv(group, heads_per_program)
        keys_per_line = 1 if matrix else math.gcd(page, KEYS[heads_per_program])
        lines = THREADS * 16 // keys.itemsize // width
        lines = min(max(MATRIX_TILE // width, 16), 32) if matrix else max(lines, 1)
        rows = min(rows, heads_per_program)
        length = page_table.shape[1] * page
        tile = keys_per_line * lines
        tiles = triton.cdiv(min(length, window + tile) if window else length, tile)  # a window may begin within a tile
        room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(q.device)
        splits = max(1, min(tiles, room // (tokens * jobs)))
        parts = tokens * jobs * splits if splits > 1 else 0
        paged_attention_kernel[(tokens, jobs, splits)](
            q, keys, values, page_table, cache_row, position, seed, sequence,
            q.new_zeros(tokens * jobs if parts else 0, dtype=torch.int32),
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
