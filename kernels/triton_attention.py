"""`paged_attention` on GPUs in one launch: softmax online (Milakov and Gimelshein 2018), keys and values read once.

A program has the query heads of one token that share a key-value head, and goes over the keys in tiles of LINES x
KEYS. A line is as many lanes as one key needs at 16 bytes each; it takes KEYS neighbouring keys at a time and keeps a
maximum, a total and a weighted sum of values of its own, so that in the loop lanes talk only to add up a score. Lines
are merged at the end. No matrix units: of the 16 rows that they multiply at least, decoding fills one for each head.

Where there are fewer programs than the device has room for, several share the keys (flash-decoding, Dao et al. 2023),
and the last of them to finish merges what they found.
"""

import math

import torch
import triton
import triton.language as tl

from cdgen_kernels.reference_layers import GOLDEN
from cdgen_kernels.triton_looks import is_last_to_arrive
from cdgen_kernels.triton_noise import philox_block
from cdgen_kernels.triton_settings import PROGRAMS_PER_MULTIPROCESSOR, multiprocessors

# Launch settings; none has been measured on a GPU yet. A program has up to 8 KiB of keys and values under way.
THREADS = 64
KEYS = {1: 4, 2: 4, 4: 4, 8: 2}  # heads of a program -> keys of a line at a time, as many as registers allow; divide 4
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


@triton.jit(do_not_specialize=["table_stride", "window", "layer"])
def paged_attention_kernel(
    q, keys, values, page_table, row, position, seed, sequence, arrivals, part_ends, part_sums, out,
    q_row_stride, q_head_stride, table_stride, window, scale, kept, layer,
    GROUP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, DROPPED: tl.constexpr, SPLIT: tl.constexpr,
    G: tl.constexpr, KEYS: tl.constexpr, LINES: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = KEYS * LINES
    blocks: tl.constexpr = (GROUP + G - 1) // G  # of G heads, in a group
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // blocks
    kv_heads = tl.num_programs(1) // blocks
    heads = kv_heads * GROUP
    in_group = tl.program_id(1) % blocks * G + tl.arange(0, G)
    head = kv_head * GROUP + in_group
    i = tl.arange(0, D)
    target = out + (token * heads + head[:, None]) * DIM + i[None, :]
    stored = (in_group[:, None] < GROUP) & (i[None, :] < DIM)
    text = tl.load(row + token)
    if text < 0:
        if tl.program_id(2) == 0:
            tl.store(target, tl.zeros([G, D], out.dtype.element_ty), mask=stored)
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

    page_table += text.to(tl.int64) * table_stride
    keys += kv_head.to(tl.int64) * (PAGE * DIM)
    values += kv_head.to(tl.int64) * (PAGE * DIM)
    n = tl.arange(0, D)[None, None, None, :]  # tensors of the loop are [G, KEYS, LINES, D], or some of these
    r = tl.arange(0, KEYS)[None, :, None]
    g = tl.program_id(1) % blocks * G + tl.arange(0, G)[:, None, None]
    source = q + token * q_row_stride + (kv_head * GROUP + g).to(tl.int64)[:, :, :, None] * q_head_stride + n
    query = tl.load(source, mask=(g < GROUP)[:, :, :, None] & (n < DIM), other=0.0).to(tl.float32) * scale
    if DROPPED > 0:
        golden = (layer * heads + kv_head * GROUP + g + 1).to(tl.int64) * _GOLDEN
        seeds = tl.load(seed) + (golden << 32)
        number = tl.load(sequence + token)

    best = tl.full([G, LINES], _LOWEST, tl.float32)
    total = tl.zeros([G, LINES], tl.float32)
    sums = tl.zeros([G, LINES, D], tl.float32)
    lead = begin + tl.arange(0, LINES)[None, None, :] * KEYS  # a page holds all of a line's keys, or none
    page = tl.load(page_table + lead // PAGE, mask=(lead + KEYS > first) & (lead < end), other=0)
    for _ in range(begin, stop, TILE):
        key = lead + r
        seen = (key >= first) & (key < end)
        offset = (page.to(tl.int64) * kv_heads * (PAGE * DIM) + (lead % PAGE + r) * DIM)[:, :, :, None] + n
        inside = seen[:, :, :, None] & (n < DIM)
        k = tl.load(keys + offset, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(values + offset, mask=inside, other=0.0).to(tl.float32)
        ahead = lead + TILE
        page = tl.load(page_table + ahead // PAGE, mask=ahead < stop, other=0)  # the next tile need not wait for it
        score = tl.where(seen, tl.sum(query * k, 3), float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None, :])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        if DROPPED > 0:
            share = tl.where(is_dropped(lead, key, seeds, number, place, DROPPED), 0.0, share)
        sums = sums * shrink[:, :, None] + tl.sum(share[:, :, :, None] * v, 1)
        best = higher
        lead = ahead
    best, total, sums = merge(best, total, sums)

    if programs > 1:
        job = token * tl.num_programs(1) + tl.program_id(1)
        part = job * tl.num_programs(2) + tl.program_id(2)
        h = tl.arange(0, G)
        tl.store(part_ends + part * (2 * G) + h, best)
        tl.store(part_ends + part * (2 * G) + G + h, total)
        tl.store(part_sums + part * (G * D) + h[:, None] * D + i[None, :], sums)
        if not is_last_to_arrive(arrivals + job, programs):
            return
        tl.debug_barrier()
        best = tl.full([G], _LOWEST, tl.float32)
        total = tl.zeros([G], tl.float32)
        sums = tl.zeros([G, D], tl.float32)
        for start in range(0, programs, S):
            s = start + tl.arange(0, S)
            at = part_ends + (job * tl.num_programs(2) + s[None, :]) * (2 * G) + h[:, None]
            b = tl.load(at, mask=s[None, :] < programs, other=_LOWEST)
            t = tl.load(at + G, mask=s[None, :] < programs, other=0.0)
            at = (job * tl.num_programs(2) + s[None, :, None]) * (G * D) + h[:, None, None] * D + i[None, None, :]
            o = tl.load(part_sums + at, mask=s[None, :, None] < programs, other=0.0)
            b, t, o = merge(b, t, o)
            higher = tl.maximum(best, b)
            shrink = tl.exp2(best - higher)
            factor = tl.exp2(b - higher)
            total = total * shrink + t * factor
            sums = sums * shrink[:, None] + o * factor[:, None]
            best = higher
    tl.store(target, (sums / (total * kept)[:, None]).to(out.dtype.element_ty), mask=stored)


def paged_attention(q, keys, values, page_table, row, position, scale, window, dropout, seed, sequence, layer):
    """:func:`cdgen_kernels.reference_layers.paged_attention` in one launch; float32 arithmetic."""
    tokens, heads, dim = q.shape
    out = q.new_empty(q.shape)
    if tokens:
        _, kv_heads, page, _ = keys.shape
        group = heads // kv_heads
        width = triton.next_power_of_2(dim)
        together = min(triton.next_power_of_2(group), max(KEYS))
        jobs = kv_heads * triton.cdiv(group, together)
        in_line = math.gcd(page, KEYS[together])
        lines = max(THREADS * 16 // keys.element_size() // width, 1)
        length = page_table.shape[1] * page
        tile = in_line * lines
        tiles = triton.cdiv(min(length, window + tile) if window else length, tile)  # a window may begin within one
        room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(q.device)
        splits = max(1, min(tiles, room // (tokens * jobs)))
        parts = tokens * jobs * splits if splits > 1 else 0
        paged_attention_kernel[(tokens, jobs, splits)](
            q, keys, values, page_table, row, position, seed, sequence,
            q.new_zeros(tokens * jobs if parts else 0, dtype=torch.int32),
            q.new_empty((parts, 2, together), dtype=torch.float32),
            q.new_empty((parts, together, width), dtype=torch.float32), out,
            *q.stride()[:2], page_table.stride(0), window,
            float(scale) * math.log2(math.e), 1 - float(dropout), layer,
            GROUP=group, PAGE=page, DIM=dim, DROPPED=int(dropout * 2**32), SPLIT=splits > 1,
            G=together, KEYS=in_line, LINES=lines, D=width, S=max(MERGED // (together * width), 1),
            **({"num_warps": THREADS // 64} if torch.version.hip else {"num_warps": THREADS // 32, "maxnreg": 255}),
            enable_fp_fusion=True,
        )  # fmt: skip
    return out
