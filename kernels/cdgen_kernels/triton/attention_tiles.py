"""Attention of the query heads of one token over a span of keys, on plain units or on matrix units.

On plain units, a tile has LINES x KEYS keys. A line is the group of lanes that one key needs at 16 bytes per lane. It
processes KEYS neighbouring keys at a time and keeps its own maximum, total and weighted sum of values, so within the
loop lanes communicate only to add up a score. Lines are merged at the end. Larger groups of heads become the rows of a
matrix product, with weights rounded to 16 bits.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from cdgen_kernels.reference.layers import FP8_MAX as _FP8_MAX
from cdgen_kernels.reference.layers import GOLDEN
from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.noise import philox_block

_GOLDEN = tl.constexpr(GOLDEN)
# A scale times this is the largest magnitude of its head. Weights with that factor do not underflow in float16.
FP8_MAX = tl.constexpr(_FP8_MAX)


class Cache(NamedTuple):
    """Keys and values of one key-value head, page by page. fp8 numbers are to be multiplied by their scales."""

    keys_ptr: tl.tensor  # [pages, PAGE, DIM], pages page_stride * DIM apart
    values_ptr: tl.tensor
    key_scales_ptr: tl.tensor  # bfloat16 [pages, PAGE], pages page_stride apart; read if keys and values are fp8
    value_scales_ptr: tl.tensor
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
def cache_of(
    keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, kv_head, kv_heads, PAGE: tl.constexpr, DIM: tl.constexpr
):  # fmt: skip
    """Return the :class:`Cache` of one of `kv_heads` heads."""
    place = kv_head * PAGE
    return Cache(
        keys_ptr + place * DIM, values_ptr + place * DIM, key_scales_ptr + place, value_scales_ptr + place,
        kv_heads * PAGE,
    )  # fmt: skip


@triton.jit
def scaled(x, scales_ptr, place, mask):
    """Return x, scores or weights of keys, times the scales at these places of the cache."""
    return x * tl.load(scales_ptr + place, mask=mask, other=0.0).to(tl.float32)


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
    FP8: tl.constexpr = cache.keys_ptr.dtype.element_ty == tl.float8e4nv
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
        place = page.to(tl.int64) * cache.page_stride + lead % PAGE + r
        offset = (place * DIM)[:, :, :, None] + n
        # Only D is contiguous. Without this hint, Triton 3.4 and 3.6 distribute lanes over KEYS next, so that every sum
        # over keys crosses lanes. With it they distribute them over LINES, as 3.9 does.
        offset = tl.max_contiguous(offset, [1, 1, 2, D])
        inside = seen[:, :, :, None] & (n < DIM)
        k = tl.load(cache.keys_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(cache.values_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        ahead = lead + KEYS * LINES
        page = tl.load(page_table_ptr + ahead // PAGE, mask=ahead < span.stop, other=0)  # one tile ahead
        score = tl.sum(query * k, 3)
        if FP8:
            score = scaled(score, cache.key_scales_ptr, place, seen)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None, :])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        if DROPPED > 0:
            share = tl.where(is_dropped(lead, key, seeds, sequence, noise.position, DROPPED), 0.0, share)
        if FP8:
            share = scaled(share, cache.value_scales_ptr, place, seen)
        sums = sums * shrink[:, :, None] + tl.sum(share[:, :, :, None] * v, 1)
        best = higher
        lead = ahead
    return merge(best, total, sums)


@triton.jit
def matrix_attention(
    q_ptr, head_stride, count, scale, cache, page_table_ptr, span,
    PAGE: tl.constexpr, DIM: tl.constexpr, G: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute :func:`line_attention` on matrix units, with weights rounded to the dtype of the queries.

    Totals are not rounded.
    """
    FP8: tl.constexpr = cache.keys_ptr.dtype.element_ty == tl.float8e4nv
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
        place = page.to(tl.int64) * cache.page_stride + key % PAGE
        offset = (place * DIM)[:, None] + i
        k = tl.load(cache.keys_ptr + offset, mask=seen[:, None] & (i < DIM), other=0.0).to(query.dtype)
        v = tl.load(cache.values_ptr + offset, mask=seen[:, None] & (i < DIM), other=0.0).to(query.dtype)
        key += TILE
        page = tl.load(page_table_ptr + key // PAGE, mask=key < span.stop, other=0)  # one tile ahead
        score = tl.dot(query, tl.trans(k)) * scale
        if FP8:
            score = scaled(score, cache.key_scales_ptr, place[None, :], seen[None, :])
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, 1)
        if FP8:
            share = scaled(share, cache.value_scales_ptr, place[None, :], seen[None, :]) * FP8_MAX
        sums = tl.dot(share.to(v.dtype), v, sums * shrink[:, None])
        best = higher
    if FP8:
        sums /= FP8_MAX
    return best, total, sums
