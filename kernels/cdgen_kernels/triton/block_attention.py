"""Attention of a block of queries, neighbouring tokens times heads of a key-value head, over a span of keys.

The queries are rows of products on matrix units, so each key is read once per block. The blocks of a prefill
(:mod:`prefill_attention`) and those of shared prefixes (:mod:`shared_attention`) have the same launch settings.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton import settings
from cdgen_kernels.triton.attention_tiles import FP8_MAX, scaled
from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.settings import ASYNC_ROWS, HAS_FENCE

# Launch settings; they have not been measured on a GPU yet. Tiles fit in 99 KiB of shared memory (64 KiB on AMD).
MOST_ROWS = 128  # greatest number of queries per program
QUERIES = 16384  # numbers in the queries of a program
PROGRAMS_PER_MULTIPROCESSOR = 2
TILE = 64  # greatest number of keys per tile
FP8_TILE = 32  # the same for fp8, whose conversion takes registers
KEYS = 8192  # numbers in a tile of keys
SUMS = 1024  # numbers of the result per warp; a program has 2 to 8 warps
STAGES = 2


class Block(NamedTuple):
    """The queries of a program."""

    query: tl.tensor  # [ROWS, D]
    oldest: tl.tensor  # int32 [ROWS], first key that each of them sees
    newest: tl.tensor  # int32 [ROWS], last key
    scale: tl.tensor


@triton.jit
def block_rows(start, tokens, job, GROUP: tl.constexpr, G: tl.constexpr, T: tl.constexpr):
    """Return (token, head, whether they exist), each [T * G], of the queries of a block.

    Args:
        start: int64, the block's first token. job: number of a block of G heads; no block has heads of two groups.
    """
    HEAD_BLOCKS: tl.constexpr = (GROUP + G - 1) // G
    r = tl.arange(0, T * G)
    token = start + r // G
    in_group = job % HEAD_BLOCKS * G + r % G
    head = (job // HEAD_BLOCKS).to(tl.int64) * GROUP + in_group
    return token, head, (token < tokens) & (in_group < GROUP)


@triton.jit
def block_attention(
    block, cache, page_table_ptr, span,
    PAGE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute attention of the queries over the keys of a :class:`Span`, with weights rounded to their dtype.

    Totals are not rounded.

    Returns:
        (maxima [ROWS], totals [ROWS], sums of values [ROWS, D]) in base 2
    """
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
        seen = (key[None, :] <= block.newest[:, None]) & (key[None, :] >= block.oldest[:, None])
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
    return best, total, sums


def room(device: torch.device) -> int:
    """Return how many programs a launch should have to fill the device."""
    return PROGRAMS_PER_MULTIPROCESSOR * settings.multiprocessors(device)


def keys_per_tile(width: int, cache_dtype: torch.dtype) -> int:
    """Return the number of keys per tile; heads have `width` numbers, rounded up to a power of two."""
    return min(FP8_TILE if cache_dtype == torch.float8_e4m3fn else TILE, KEYS // width)


def launch_options(rows: int, width: int, device: torch.device) -> dict[str, int | bool]:
    """Return Triton's options for a launch whose programs have queries [rows, width]."""
    is_async = rows >= ASYNC_ROWS and settings.compute_capability(device) >= 9
    stages = 1 if torch.version.hip or (is_async and not HAS_FENCE) else STAGES
    warps = min(max(rows * width // SUMS, 2), 8)
    registers = {} if torch.version.hip else {"maxnreg": 255}
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True} | registers
