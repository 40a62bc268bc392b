"""`paged_attention` on GPUs in one launch: softmax online (Milakov and Gimelshein 2018), keys and values read once.

A program has the query heads of one token that share a key-value head, and goes over the keys in tiles of LINES x
KEYS. A line is as many lanes as one key needs at 16 bytes each; it takes KEYS neighbouring keys at a time and keeps a
maximum, a total and a weighted sum of values of its own, so that in the loop lanes talk only to add up a score. Lines
are merged at the end. Larger groups of heads are rows of a matrix: weights are then rounded to 16 bits.

Where there are fewer programs than the device has room for, several share the keys (flash-decoding, Dao et al. 2023),
and the last of them to finish merges what they found.
"""

import math

import torch
import triton
import triton.language as tl

from cdgen_kernels.reference.layers import GOLDEN
from cdgen_kernels.triton.noise import philox_block
from cdgen_kernels.triton.passes import is_last_to_arrive
from cdgen_kernels.triton.settings import SCALAR_POINTERS, multiprocessors

# Launch settings; none has been measured on a GPU yet. A program has up to 8 KiB of keys and values under way.
THREADS = 64
KEYS = {1: 4, 2: 4, 4: 4, 8: 2}  # heads of a program -> keys of a line at a time, as many as registers allow; divide 4
MATRIX_GROUP = 4  # heads, from where on matrix units, of whose 16 rows some are empty, take fewer instructions
MATRIX_TILE = 4096  # numbers of the keys, at most 32 keys
PROGRAMS_PER_MULTIPROCESSOR = 4  # limit on the programs that share the keys of a text
MERGED = 2048  # numbers of the programs' sums that the last of them reads at once

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # not -inf, which minus itself is NaN
_GOLDEN = tl.constexpr(GOLDEN)


@triton.jit
def merge(best, total, sums):
    """Softmaxes over different keys [G, n] and their weighted sums [G, n, D] as one, [G] and [G, D]; base 2."""
    highest = tl.max(best, 1)
    factor = tl.exp2(best - highest[:, None])
    # Of plain products each lane would fuse its own with the others' sum, and lanes would round one sum differently.
    return highest, tl.sum(tl.fma(total, factor, 0.0), 1), tl.sum(tl.fma(sums, factor[:, :, None], 0.0), 1)


@triton.jit
def is_dropped(lead, key, seed, sequence, position, dropped):
    """Whether dropout takes the weight of each key [1, KEYS, LINES], in heads whose seeds are [G, 1, 1].

    The keys that follow each of `lead` [1, 1, LINES] are words of one block.
    """
    w0, w1, w2, w3 = philox_block(lead >> 2, seed, sequence, position)
    word = key & 3
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3)) < dropped


@triton.jit
def line_attention(
    q, head_stride, count, scale, store, page_table, span, noise,
    PAGE: tl.constexpr, DIM: tl.constexpr, DROPPED: tl.constexpr,
    G: tl.constexpr, KEYS: tl.constexpr, LINES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """(maxima, totals [G], sums of values [G, D]) of `count` heads over a span of the keys; all of it in float32."""
    keys, values, page_stride = store
    begin, stop, first = span
    seed, sequence, position, head_number = noise
    n = tl.arange(0, D)[None, None, None, :]  # tensors here are [G, KEYS, LINES, D], or some of these
    r = tl.arange(0, KEYS)[None, :, None]
    g = tl.arange(0, G)[:, None, None]
    source = q + (g.to(tl.int64) * head_stride)[:, :, :, None] + n
    query = tl.load(source, mask=(g < count)[:, :, :, None] & (n < DIM), other=0.0).to(tl.float32) * scale
    if DROPPED > 0:
        seeds = tl.load(seed) + ((head_number + g) * _GOLDEN << 32)
        number = tl.load(sequence)
    best = tl.full([G, LINES], _LOWEST, tl.float32)
    total = tl.zeros([G, LINES], tl.float32)
    sums = tl.zeros([G, LINES, D], tl.float32)
    lead = begin + tl.arange(0, LINES)[None, None, :] * KEYS  # a page holds all of a line's keys, or none
    page = tl.load(page_table + lead // PAGE, mask=(lead + KEYS > first) & (lead < stop), other=0)
    for _ in range(begin, stop, KEYS * LINES):
        key = lead + r
        seen = (key >= first) & (key < stop)
        offset = (page.to(tl.int64) * page_stride + (lead % PAGE + r) * DIM)[:, :, :, None] + n
        # Only D is contiguous. Without this hint, Triton 3.4 and 3.6 distribute lanes over KEYS next, so that every sum
        # over keys crosses lanes. With it they distribute them over LINES, as 3.9 does.
        offset = tl.max_contiguous(offset, [1, 1, 2, D])
        inside = seen[:, :, :, None] & (n < DIM)
        k = tl.load(keys + offset, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(values + offset, mask=inside, other=0.0).to(tl.float32)
        ahead = lead + KEYS * LINES
        page = tl.load(page_table + ahead // PAGE, mask=ahead < stop, other=0)  # the next tile need not wait for it
        score = tl.where(seen, tl.sum(query * k, 3), float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None, :])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        if DROPPED > 0:
            share = tl.where(is_dropped(lead, key, seeds, number, position, DROPPED), 0.0, share)
        sums = sums * shrink[:, :, None] + tl.sum(share[:, :, :, None] * v, 1)
        best = higher
        lead = ahead
    return merge(best, total, sums)


@triton.jit
def matrix_attention(
    q, head_stride, count, scale, store, page_table, span,
    PAGE: tl.constexpr, DIM: tl.constexpr, G: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """As :func:`line_attention` on matrix units: weights are rounded to the dtype of the values, their total is not."""
    keys, values, page_stride = store
    begin, stop, first = span
    g = tl.arange(0, G)[:, None]
    i = tl.arange(0, D)[None, :]
    query = tl.load(q + g.to(tl.int64) * head_stride + i, mask=(g < count) & (i < DIM), other=0.0)
    best = tl.full([G], _LOWEST, tl.float32)
    total = tl.zeros([G], tl.float32)
    sums = tl.zeros([G, D], tl.float32)
    key = begin + tl.arange(0, TILE)
    page = tl.load(page_table + key // PAGE, mask=(key >= first) & (key < stop), other=0)
    for _ in range(begin, stop, TILE):
        seen = (key >= first) & (key < stop)
        offset = (page.to(tl.int64) * page_stride + key % PAGE * DIM)[:, None] + i
        k = tl.load(keys + offset, mask=seen[:, None] & (i < DIM), other=0.0)
        v = tl.load(values + offset, mask=seen[:, None] & (i < DIM), other=0.0)
        key += TILE
        page = tl.load(page_table + key // PAGE, mask=key < stop, other=0)  # the next tile need not wait for it
        score = tl.where(seen[None, :], tl.dot(query, tl.trans(k)) * scale, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        sums = tl.dot(share.to(v.dtype), v, sums * shrink[:, None])
        best = higher
    return best, total, sums


@triton.jit
def merge_parts(ends, parts, programs, G: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr):
    """(totals [ROWS], sums [ROWS, D]) of what `programs` programs stored, of G rows each."""
    h = tl.arange(0, ROWS)
    i = tl.arange(0, D)
    best = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, programs, S):
        s = start + tl.arange(0, S)
        inside = s < programs
        at = s[None, :] * (2 * G) + h[:, None]
        b = tl.load(ends + at, mask=inside[None, :], other=_LOWEST)
        t = tl.load(ends + at + G, mask=inside[None, :], other=0.0)
        at = s[None, :, None] * (G * D) + h[:, None, None] * D + i[None, None, :]
        o = tl.load(parts + at, mask=inside[None, :, None], other=0.0)
        b, t, o = merge(b, t, o)
        higher = tl.maximum(best, b)
        shrink = tl.exp2(best - higher)
        factor = tl.exp2(b - higher)
        total = total * shrink + t * factor
        sums = sums * shrink[:, None] + o * factor[:, None]
        best = higher
    return total, sums


@triton.jit
def store_heads(out, x, count, DIM: tl.constexpr, G: tl.constexpr, D: tl.constexpr):
    """Write the first `count` rows of x [G, D] to out [count, DIM]."""
    h = tl.arange(0, G)[:, None]
    i = tl.arange(0, D)[None, :]
    tl.store(out + h * DIM + i, x.to(out.dtype.element_ty), mask=(h < count) & (i < DIM))


@triton.jit(do_not_specialize=["table_stride", "window", "layer"], do_not_specialize_on_alignment=SCALAR_POINTERS)
def paged_attention_kernel(
    q, keys, values, page_table, cache_row, position, seed, sequence, arrivals, part_ends, part_sums, out,
    q_row_stride, q_head_stride, table_stride, window, scale, kept, layer,
    GROUP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, DROPPED: tl.constexpr, MATRIX: tl.constexpr,
    SPLIT: tl.constexpr, G: tl.constexpr, KEYS: tl.constexpr, LINES: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = KEYS * LINES
    blocks: tl.constexpr = (GROUP + G - 1) // G  # of G heads, in a group
    token = tl.program_id(0).to(tl.int64)
    kv_head = (tl.program_id(1) // blocks).to(tl.int64)
    kv_heads = (tl.num_programs(1) // blocks).to(tl.int64)
    head = kv_head * GROUP + tl.program_id(1) % blocks * G  # the first of them
    count = tl.minimum(GROUP - tl.program_id(1) % blocks * G, G)
    out += (token * kv_heads * GROUP + head) * DIM
    text = tl.load(cache_row + token)
    if text < 0:
        if tl.program_id(2) == 0:
            store_heads(out, tl.zeros([G, D], tl.float32), count, DIM, G, D)
        return

    place = tl.load(position + token)
    end = place.to(tl.int32) + 1
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

    q += token * q_row_stride + head * q_head_stride
    store = (keys + kv_head * (PAGE * DIM), values + kv_head * (PAGE * DIM), kv_heads * (PAGE * DIM))
    page_table += text.to(tl.int64) * table_stride
    span = (begin, stop, first)
    if MATRIX:
        best, total, sums = matrix_attention(
            q, q_head_stride, count, scale, store, page_table, span, PAGE, DIM, G, TILE, D
        )
    else:
        noise = (seed, sequence + token, place, layer * kv_heads * GROUP + head + 1)
        best, total, sums = line_attention(
            q, q_head_stride, count, scale, store, page_table, span, noise, PAGE, DIM, DROPPED, G, KEYS, LINES, D
        )
    if programs > 1:
        job = token * tl.num_programs(1) + tl.program_id(1)
        part = job * tl.num_programs(2) + tl.program_id(2)
        h = tl.arange(0, G)
        tl.store(part_ends + part * (2 * G) + h, best)
        tl.store(part_ends + part * (2 * G) + G + h, total)
        store_heads(part_sums + part * (G * D), sums, G, D, G, D)
        if not is_last_to_arrive(arrivals + job, programs):
            return
        tl.debug_barrier()
        part = job * tl.num_programs(2)
        total_of, sums_of = merge_parts(part_ends + part * (2 * G), part_sums + part * (G * D), programs, G, ROWS, D, S)
        store_heads(out, sums_of / (total_of * kept)[:, None], count, DIM, ROWS, D)
    else:
        store_heads(out, sums / (total * kept)[:, None], count, DIM, G, D)


def paged_attention(q, keys, values, page_table, cache_row, position, scale, window, dropout, seed, sequence, layer):
    """:func:`cdgen_kernels.reference.layers.paged_attention` in one launch; float32 arithmetic.

    Groups of MATRIX_GROUP heads and more, of the 16-bit dtype of the cache and without dropout, round weights to it.
    """
    tokens, heads, dim = q.shape
    out = q.new_empty(q.shape)
    if tokens:
        _, kv_heads, page, _ = keys.shape
        group = heads // kv_heads
        width = triton.next_power_of_2(dim)
        rows = triton.next_power_of_2(group)
        matrix = rows >= MATRIX_GROUP and width >= 16 and q.dtype == keys.dtype and q.itemsize == 2 and not dropout
        together = 16 if matrix else min(rows, max(KEYS))
        jobs = kv_heads * triton.cdiv(group, together)
        in_line = 1 if matrix else math.gcd(page, KEYS[together])
        lines = THREADS * 16 // keys.itemsize // width
        lines = min(max(MATRIX_TILE // width, 16), 32) if matrix else max(lines, 1)
        rows = min(rows, together)
        length = page_table.shape[1] * page
        tile = in_line * lines
        tiles = triton.cdiv(min(length, window + tile) if window else length, tile)  # a window may begin within one
        room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(q.device)
        splits = max(1, min(tiles, room // (tokens * jobs)))
        parts = tokens * jobs * splits if splits > 1 else 0
        paged_attention_kernel[(tokens, jobs, splits)](
            q, keys, values, page_table, cache_row, position, seed, sequence,
            q.new_zeros(tokens * jobs if parts else 0, dtype=torch.int32),
            q.new_empty((parts, 2, together), dtype=torch.float32),
            q.new_empty((parts, together, width), dtype=torch.float32), out,
            *q.stride()[:2], page_table.stride(0), window,
            float(scale) * math.log2(math.e), 1 - float(dropout), layer,
            GROUP=group, PAGE=page, DIM=dim, DROPPED=int(dropout * 2**32), MATRIX=matrix, SPLIT=splits > 1,
            G=together, KEYS=in_line, LINES=lines, D=width, ROWS=rows, S=max(MERGED // (rows * width), 1),
            **({"num_warps": THREADS // 64} if torch.version.hip else {"num_warps": THREADS // 32, "maxnreg": 255}),
            num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return out
