"""The output layer and the head in one op, in Triton: no logits are stored.

`select_candidates_linear` takes two launches. The first is the matrix product hidden @ weight.T in tiles, of which
it writes one maximum for every chunk of CHUNK neighbouring tokens. The second, one program per row, reads those maxima,
recomputes the logits of the few chunks that can hold tokens of the head, and takes the head of these.

Tensor cores and a plain dot product round one logit differently, so a chunk is looked at as soon as its maximum comes
within `slack` of the threshold; every logit, the threshold and the head then come from the second launch alone, and do
not depend on the batch or the tiles. How large must it be? A sum of D products in float32, in whatever order, is off by
about sqrt(D) u S, where S is the sum of the products' magnitudes and u = 2^-24, or 2^-23 where tensor cores cut off
instead of rounding. Where the products point every way, S is about sqrt(D) times the size of the row's logits; where
they point one way, S = |logit|. So two such sums differ by about D 2^-22 times the row's greatest chunk maximum in
magnitude, at the most. `slack` is twice that: 0.007 where D = 768 and logits reach 20, which hardly ever costs a chunk.
Should logits cancel so well that sums differ by more, then a token that near to the threshold may be missed.
"""

import re

import torch
import triton
import triton.language as tl

from cdgen_kernels.sampling_tensors import Candidates
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.draw import NAN_GOOD, NOTHING_POSSIBLE
from cdgen_kernels.triton.passes import is_allowed

# Launch settings; none has been measured on a GPU yet. Tiles leave room in 99 KiB of shared memory (64 on AMD).
CHUNK = 16  # tokens that share a maximum
TILE_TOKENS = 128
TILE_BYTES = 128  # of each row of hidden and weight, at a time
TILES = {16: (4, 4), 32: (4, 4), 64: (4, 3), 128: (8, 3)}  # rows -> (warps, stages)
# From 64 rows on, sm_90 and later read 16-bit operands through the async proxy. Triton before 3.7.1 omits the fence
# between pipelined copies and these reads (triton pull request 9610); with a single stage it writes the fence.
ASYNC_ROWS = 64
HAS_FENCE = tuple(map(int, re.findall(r"\d+", triton.__version__)[:3])) >= (3, 7, 1)
HEAD_WARPS = 8
HEAD_TOKENS = 32  # whose dot products are made at a time, whole chunks
SCORE_WARPS = 4
SCORE_TOKENS = 16
DOT_BYTES = 512  # of each row of hidden and weight, at a time: 16 bytes a lane of a warp


@triton.jit(do_not_specialize=["batch", "vocab_size"])
def chunk_maxima_kernel(
    hidden, weight, maxima, batch, vocab_size, width, hidden_stride, weight_stride, chunks,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    k = tl.arange(0, DEPTH)
    left = hidden + row[:, None] * hidden_stride + k[None, :]
    right = weight + token[:, None] * weight_stride + k[None, :]
    is_row = row[:, None] < batch
    is_token = token[:, None] < vocab_size
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, width, DEPTH):
        inside = start + k[None, :] < width
        x = tl.load(left + start, mask=is_row & inside, other=0.0)
        w = tl.load(right + start, mask=is_token & inside, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    z = tl.where(token[None, :] < vocab_size, total, float("-inf"))
    z = tl.reshape(z, [ROWS, TOKENS // CHUNK, CHUNK])
    has_nan = tl.max((z != z).to(tl.int32), 2)  # tl.max passes over NaN
    highest = tl.where(has_nan > 0, float("nan"), tl.max(z, 2))
    chunk = tl.program_id(1) * (TOKENS // CHUNK) + tl.arange(0, TOKENS // CHUNK)
    tl.store(maxima + row[:, None] * chunks + chunk[None, :], highest, mask=is_row)


@triton.jit
def dot_products(hidden, weight, weight_stride, width, token, valid, TOKENS: tl.constexpr, DEPTH: tl.constexpr):
    """float32 [TOKENS]: hidden . weight[token], anything where not valid."""
    k = tl.arange(0, DEPTH)
    rows = weight + token.to(tl.int64)[:, None] * weight_stride + k[None, :]
    total = tl.zeros([TOKENS, DEPTH], tl.float32)
    for start in tl.range(0, width, DEPTH, num_stages=3):  # two more steps' numbers are on their way
        inside = start + k < width
        x = tl.load(hidden + start + k, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(rows + start, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += w * x[None, :]
    return tl.sum(total, 1)


@triton.jit
def survey(maxima, chunks, banned, banned_count, CHUNK: tl.constexpr, N: tl.constexpr):
    """(greatest maximum of the chunks without a banned token, greatest finite magnitude, 1 where there is NaN else 0).

    The maximum of a chunk with a banned token may be that token's, so that it says nothing about the row's maximum.
    """
    c = tl.arange(0, N)
    best = tl.full([N], float("-inf"), tl.float32)
    size = tl.zeros([N], tl.float32)
    has_nan = tl.zeros([N], tl.int32)
    for start in range(0, chunks, N):
        highest = tl.load(maxima + start + c, mask=start + c < chunks, other=float("-inf"))
        clean = highest == highest
        has_nan = tl.where(clean, has_nan, 1)
        for i in range(0, banned_count):  # -1 counts for chunk 0, which costs no more than another look at it
            clean = clean & (start + c != tl.load(banned + i).to(tl.int32) // CHUNK)
        best = tl.maximum(best, tl.where(clean, highest, float("-inf")))
        magnitude = tl.abs(highest)
        size = tl.maximum(size, tl.where(magnitude < float("inf"), magnitude, 0.0))
    return tl.max(best, 0), tl.max(size, 0), tl.max(has_nan, 0)


@triton.jit
def list_chunks(maxima, chunks, bound, hits, N: tl.constexpr):
    """Write the chunks whose maximum reaches `bound`, in order, to `hits`; returns how many."""
    c = tl.arange(0, N)
    count = 0
    tl.debug_barrier()  # an earlier list may still be read
    for start in range(0, chunks, N):
        highest = tl.load(maxima + start + c, mask=start + c < chunks, other=float("-inf"))
        hit = (highest >= bound) & (highest > float("-inf"))
        tl.store(hits + count + tl.cumsum(hit.to(tl.int32), 0) - 1, start + c, mask=hit)
        count += tl.sum(hit.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def listed_logits(start, hits, hit_count, banned, banned_count, layer, CHUNK: tl.constexpr, TOKENS: tl.constexpr,
                  DEPTH: tl.constexpr):  # fmt: skip
    """(tokens [TOKENS] of the listed chunks from `start` on, their logits, -inf where banned or no token)."""
    hidden, weight, weight_stride, width, vocab_size = layer
    i = tl.arange(0, TOKENS)
    which = start + i // CHUNK
    chunk = tl.load(hits + which, mask=which < hit_count, other=0)
    token = chunk * CHUNK + i % CHUNK
    valid = (which < hit_count) & (token < vocab_size) & is_allowed(token, banned, banned_count)
    z = dot_products(hidden, weight, weight_stride, width, token, valid, TOKENS, DEPTH)
    return token, tl.where(valid, z, float("-inf"))


@triton.jit(
    do_not_specialize=["vocab_size", "banned_count", "capacity"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def select_candidates_linear_kernel(
    hidden, weight, margin, banned, maxima, hits, token_out, logit_out, count_out, max_out,
    vocab_size, width, hidden_stride, weight_stride, banned_count, chunks, capacity,
    CHUNK: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    layer = (hidden + row * hidden_stride, weight, weight_stride, width, vocab_size)
    banned += row * banned_count
    maxima += row * chunks
    hits += row * chunks
    token_out += row * capacity
    logit_out += row * capacity
    per_step: tl.constexpr = TOKENS // CHUNK

    about, size, has_nan = survey(maxima, chunks, banned, banned_count, CHUNK, N)
    about = tl.where(has_nan > 0, float("nan"), about)  # reached by no chunk
    slack = size * (width * 4.76837158203125e-07)  # D 2^-21
    hit_count = list_chunks(maxima, chunks, about - slack, hits, N)
    highest = tl.full([TOKENS], float("-inf"), tl.float32)
    for start in range(0, hit_count, per_step):
        token, z = listed_logits(start, hits, hit_count, banned, banned_count, layer, CHUNK, TOKENS, DEPTH)
        highest = tl.maximum(highest, z)
    best = tl.where(has_nan > 0, float("nan"), tl.max(highest, 0))
    threshold = tl.where(best == float("inf"), best, best - tl.load(margin + row))

    hit_count = list_chunks(maxima, chunks, threshold - slack, hits, N)
    count = 0
    for start in range(0, hit_count, per_step):
        token, z = listed_logits(start, hits, hit_count, banned, banned_count, layer, CHUNK, TOKENS, DEPTH)
        kept = (z >= threshold) & (z > float("-inf"))
        slot = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(token_out + slot, token, mask=kept & (slot < capacity))
        tl.store(logit_out + slot, z, mask=kept & (slot < capacity))
        count += tl.sum(kept.to(tl.int32), 0)
    i = tl.arange(0, N)
    for start in range(count, capacity, N):
        tl.store(token_out + start + i, -1, mask=start + i < capacity)
        tl.store(logit_out + start + i, float("-inf"), mask=start + i < capacity)
    count = tl.where(best == float("-inf"), NOTHING_POSSIBLE, count)
    tl.store(count_out + row, tl.where(has_nan > 0, NAN_GOOD, count))
    tl.store(max_out + row, best)


@triton.jit(do_not_specialize=["capacity"], do_not_specialize_on_alignment=settings.SCALAR_POINTERS)
def gather_logits_kernel(hidden, weight, token, count, score, width, hidden_stride, weight_stride, capacity,
                           TOKENS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    score += row * capacity
    listed = tl.load(count + row)
    if tl.program_id(1) * TOKENS >= listed:
        tl.store(score + slot, float("-inf"), mask=slot < capacity)
        return
    valid = (slot < listed) & (slot < capacity)
    which = tl.load(token + row * capacity + slot, mask=valid, other=0)
    z = dot_products(hidden + row * hidden_stride, weight, weight_stride, width, which, valid, TOKENS, DEPTH)
    tl.store(score + slot, tl.where(valid, z, float("-inf")), mask=slot < capacity)


def chunk_maxima(hidden, weight, vocab_size):
    """float32 [B, chunks]: the greatest logit of each CHUNK tokens, NaN where one is NaN, -inf past the vocabulary."""
    batch, width = hidden.shape
    rows = next((rows for rows in TILES if rows >= batch), max(TILES))
    warps, stages = TILES[rows]
    is_async = rows >= ASYNC_ROWS and hidden.itemsize == 2 and settings.compute_capability(hidden.device) >= 9
    if is_async and not HAS_FENCE:
        stages = 1
    tiles = triton.cdiv(vocab_size, TILE_TOKENS)
    maxima = hidden.new_empty((batch, tiles * TILE_TOKENS // CHUNK), dtype=torch.float32)
    chunk_maxima_kernel[(triton.cdiv(batch, rows), tiles)](  # row tiles first: they share a tile of the weights
        hidden, weight, maxima, batch, vocab_size, width, hidden.stride(0), weight.stride(0), maxima.shape[1],
        ROWS=rows, TOKENS=TILE_TOKENS, DEPTH=TILE_BYTES // hidden.element_size(), CHUNK=CHUNK,
        num_warps=warps, num_stages=2 if torch.version.hip else stages, enable_fp_fusion=True,
    )  # fmt: skip
    return maxima


def select_candidates_linear(hidden, weight, margin, banned, vocab_size, capacity):
    """:func:`cdgen_kernels.reference.sampling.select_candidates_linear` in two launches; logits are float32 sums.

    Args:
        hidden, weight: [B, D] and [V, D] of one dtype, float32, float16 or bfloat16, with unit stride along D.
        margin: float32 [B]. banned: int64 [B, N], contiguous, or None.
    Returns:
        :class:`Candidates`; `max` is NaN in a row whose count is NAN_GOOD.
    """
    batch, width = hidden.shape
    token = hidden.new_empty((batch, capacity), dtype=torch.int32)
    logit = hidden.new_empty((batch, capacity), dtype=torch.float32)
    count = hidden.new_empty(batch, dtype=torch.int32)
    best = hidden.new_empty(batch, dtype=torch.float32)
    if batch:
        maxima = chunk_maxima(hidden, weight, vocab_size)
        hits = hidden.new_empty(maxima.shape, dtype=torch.int32)
        # A fused multiply-add halves the dot product's instructions. The threshold, which has to be one rounded
        # subtraction, has no product to fuse with.
        select_candidates_linear_kernel[(batch,)](
            hidden, weight, margin, margin if banned is None else banned, maxima, hits, token, logit, count, best,
            vocab_size, width, hidden.stride(0), weight.stride(0), 0 if banned is None else banned.shape[1],
            maxima.shape[1], capacity,
            CHUNK=CHUNK, TOKENS=HEAD_TOKENS, DEPTH=DOT_BYTES // weight.element_size(), N=4 * 32 * HEAD_WARPS,
            num_warps=HEAD_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return Candidates(token, logit, count, best)


def gather_logits(hidden, weight, token, count):
    """:func:`cdgen_kernels.reference.sampling.gather_logits` in one launch; scores are float32 sums.

    Args:
        hidden, weight: [B, D] and [V, D], float32, float16 or bfloat16, with unit stride along D.
        token: int32 [B, C], contiguous. count: int32 [B].
    """
    batch, capacity = token.shape
    score = hidden.new_empty((batch, capacity), dtype=torch.float32)
    if batch:
        gather_logits_kernel[(batch, triton.cdiv(capacity, SCORE_TOKENS))](
            hidden, weight, token, count, score,
            hidden.shape[1], hidden.stride(0), weight.stride(0), capacity,
            TOKENS=SCORE_TOKENS, DEPTH=DOT_BYTES // weight.element_size(), num_warps=SCORE_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return score
