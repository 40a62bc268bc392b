"""The output layer and the selection of candidates in one op, in Triton: the logits are not stored.

`select_candidates_linear` takes two launches. The first computes the matrix product hidden @ weight.T in tiles and
writes one maximum per chunk of CHUNK neighbouring tokens. The second, one program per row, reads these maxima and
recomputes the logits of the few chunks that can hold candidates.

Tensor cores and a plain dot product round the same logit differently, so the second launch reads a chunk if its maximum
comes within `slack` of the threshold. The logits, the threshold and the candidates then come from the second launch
alone, and do not depend on the batch or the tiles.

The size of the slack: a sum of D products in float32, in any order, is off by about sqrt(D) u S, where S is the sum of
the products' magnitudes and u = 2^-24, or 2^-23 if tensor cores truncate instead of rounding. If the products have
random signs, S is about sqrt(D) times the size of the row's logits; if they have the same sign, S = |logit|. So two
such sums differ by at most about D 2^-22 times the largest magnitude among the row's chunk maxima. `slack` is twice
that: 0.007 for D = 768 and logits up to 20, which rarely costs a chunk. If logits cancel so strongly that the sums
differ by more, a token that close to the threshold may be missed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cdgen_kernels.sampling_tensors import Candidates
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.constants import INVALID_PARAMETERS
from cdgen_kernels.triton.passes import Bans, candidate_threshold, is_allowed, with_fault
from cdgen_kernels.triton.settings import ASYNC_ROWS, HAS_FENCE

# Launch settings; they have not been measured on a GPU yet. Tiles fit in 99 KiB of shared memory (64 KiB on AMD).
CHUNK = 16  # tokens that share a maximum
TILE_TOKENS = 128
TILE_BYTES = 128  # bytes of each row of hidden and weight per step of the product
TILES = {16: (4, 4), 32: (4, 4), 64: (4, 3), 128: (8, 3)}  # rows per tile -> (warps, stages)
SELECT_WARPS = 8
SELECT_TOKENS = 32  # dot products computed at once, in whole chunks
GATHER_WARPS = 4
GATHER_TOKENS = 16
DOT_BYTES = 512  # bytes of each row of hidden and weight per step of a dot product: 16 per lane of a warp


class Layer(NamedTuple):
    """A row of hidden states and the output layer, of one dtype."""

    hidden_ptr: tl.tensor  # [width]
    weight_ptr: tl.tensor  # [V, width], rows weight_stride apart
    weight_stride: tl.tensor
    width: tl.tensor  # int32


@triton.jit(do_not_specialize=["batch", "vocab_size"])
def chunk_maxima_kernel(
    hidden_ptr, weight_ptr, maxima_ptr, batch, vocab_size, width, hidden_stride, weight_stride, chunks,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the greatest logit of each chunk, NaN if one is NaN. Grid: (tiles of ROWS rows, tiles of TOKENS tokens).

    hidden [batch, width] and weight [vocab_size, width] have one dtype and unit stride along the width; maxima are
    float32 [batch, chunks]. The product advances by DEPTH of the width per step.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    k = tl.arange(0, DEPTH)
    hidden_ptrs = hidden_ptr + row[:, None] * hidden_stride + k[None, :]
    weight_ptrs = weight_ptr + token[:, None] * weight_stride + k[None, :]
    is_row = row[:, None] < batch
    is_token = token[:, None] < vocab_size
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, width, DEPTH):
        inside = start + k[None, :] < width
        x = tl.load(hidden_ptrs + start, mask=is_row & inside, other=0.0)
        w = tl.load(weight_ptrs + start, mask=is_token & inside, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    z = tl.where(token[None, :] < vocab_size, total, float("-inf"))
    z = tl.reshape(z, [ROWS, TOKENS // CHUNK, CHUNK])
    has_nan = tl.max((z != z).to(tl.int32), 2)  # tl.max ignores NaN
    highest = tl.where(has_nan > 0, float("nan"), tl.max(z, 2))
    chunk = tl.program_id(1) * (TOKENS // CHUNK) + tl.arange(0, TOKENS // CHUNK)
    tl.store(maxima_ptr + row[:, None] * chunks + chunk[None, :], highest, mask=is_row)


@triton.jit
def dot_products(layer, token, valid, TOKENS: tl.constexpr, DEPTH: tl.constexpr):
    """Return float32 [TOKENS]: hidden . weight[token], undefined for tokens that are not valid."""
    k = tl.arange(0, DEPTH)
    weight_ptrs = layer.weight_ptr + token.to(tl.int64)[:, None] * layer.weight_stride + k[None, :]
    total = tl.zeros([TOKENS, DEPTH], tl.float32)
    for start in tl.range(0, layer.width, DEPTH, num_stages=3):  # loads run two steps ahead
        inside = start + k < layer.width
        x = tl.load(layer.hidden_ptr + start + k, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight_ptrs + start, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += w * x[None, :]
    return tl.sum(total, 1)


@triton.jit
def chunk_statistics(maxima_ptr, chunks, bans, CHUNK: tl.constexpr, N: tl.constexpr):
    """Return three statistics of a row's chunk maxima, float32 [chunks], read N at a time.

    Returns:
        (the greatest maximum of the chunks without a banned token, the greatest finite magnitude of all maxima, 1 if
        there is NaN else 0). The maximum of a chunk with a banned token may be that token's, so it says nothing about
        the row's maximum.
    """
    c = tl.arange(0, N)
    best = tl.full([N], float("-inf"), tl.float32)
    size = tl.zeros([N], tl.float32)
    has_nan = tl.zeros([N], tl.int32)
    for start in range(0, chunks, N):
        highest = tl.load(maxima_ptr + start + c, mask=start + c < chunks, other=float("-inf"))
        clean = highest == highest
        has_nan = tl.where(clean, has_nan, 1)
        for i in range(0, bans.count):  # an unused ban, -1, counts for chunk 0, which at most has it recomputed
            clean = clean & (start + c != tl.load(bans.token_ptr + i).to(tl.int32) // CHUNK)
        best = tl.maximum(best, tl.where(clean, highest, float("-inf")))
        magnitude = tl.abs(highest)
        size = tl.maximum(size, tl.where(magnitude < float("inf"), magnitude, 0.0))
    return tl.max(best, 0), tl.max(size, 0), tl.max(has_nan, 0)


@triton.jit
def list_chunks(maxima_ptr, chunks, bound, hits_ptr, N: tl.constexpr):
    """Write the chunks whose maximum reaches `bound`, in order, to hits [chunks] (int32); return their number."""
    c = tl.arange(0, N)
    count = 0
    tl.debug_barrier()  # other threads may still read an earlier list
    for start in range(0, chunks, N):
        highest = tl.load(maxima_ptr + start + c, mask=start + c < chunks, other=float("-inf"))
        hit = (highest >= bound) & (highest > float("-inf"))
        tl.store(hits_ptr + count + tl.cumsum(hit.to(tl.int32), 0) - 1, start + c, mask=hit)
        count += tl.sum(hit.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def listed_logits(start, hits_ptr, hit_count, bans, layer, vocab_size, CHUNK: tl.constexpr, TOKENS: tl.constexpr,
                  DEPTH: tl.constexpr):  # fmt: skip
    """Return (tokens [TOKENS] of the listed chunks, starting at entry `start` of the list; their logits).

    The logit is -inf if the token is banned or does not exist.
    """
    i = tl.arange(0, TOKENS)
    index = start + i // CHUNK
    chunk = tl.load(hits_ptr + index, mask=index < hit_count, other=0)
    token = chunk * CHUNK + i % CHUNK
    valid = (index < hit_count) & (token < vocab_size) & is_allowed(token, bans)
    z = dot_products(layer, token, valid, TOKENS, DEPTH)
    return token, tl.where(valid, z, float("-inf"))


@triton.jit(
    do_not_specialize=["vocab_size", "banned_count", "capacity"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def select_candidates_linear_kernel(
    # hidden states [B, width] and output layer [vocab_size, width], float32 [B], int64 [B, banned_count]
    hidden_ptr, weight_ptr, margin_ptr, banned_ptr,
    # chunk maxima, float32 [B, chunks], and scratch, int32 [B, chunks]
    maxima_ptr, hits_ptr,
    # results: Candidates, [B, capacity] or [B]
    token_out_ptr, logit_out_ptr, count_out_ptr, max_out_ptr,
    vocab_size, width, hidden_stride, weight_stride, banned_count, chunks, capacity,
    CHUNK: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the candidates of each row. Grid: (B,). Reads N maxima, TOKENS tokens, DEPTH of the width at a time."""
    row = tl.program_id(0).to(tl.int64)
    layer = Layer(hidden_ptr + row * hidden_stride, weight_ptr, weight_stride, width)
    bans = Bans(banned_ptr + row * banned_count, banned_count)
    maxima_ptr += row * chunks
    hits_ptr += row * chunks
    token_out_ptr += row * capacity
    logit_out_ptr += row * capacity
    STEP: tl.constexpr = TOKENS // CHUNK

    about, size, has_nan = chunk_statistics(maxima_ptr, chunks, bans, CHUNK, N)
    about = tl.where(has_nan > 0, float("nan"), about)  # no chunk reaches NaN
    slack = size * (width * 4.76837158203125e-07)  # D 2^-21
    hit_count = list_chunks(maxima_ptr, chunks, about - slack, hits_ptr, N)
    highest = tl.full([TOKENS], float("-inf"), tl.float32)
    for start in range(0, hit_count, STEP):
        token, z = listed_logits(start, hits_ptr, hit_count, bans, layer, vocab_size, CHUNK, TOKENS, DEPTH)
        highest = tl.maximum(highest, z)
    best = tl.where(has_nan > 0, float("nan"), tl.max(highest, 0))
    margin = tl.load(margin_ptr + row)
    threshold = candidate_threshold(best, margin)

    hit_count = list_chunks(maxima_ptr, chunks, threshold - slack, hits_ptr, N)
    count = 0
    for start in range(0, hit_count, STEP):
        token, z = listed_logits(start, hits_ptr, hit_count, bans, layer, vocab_size, CHUNK, TOKENS, DEPTH)
        kept = (z >= threshold) & (z > float("-inf"))
        entry = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(token_out_ptr + entry, token, mask=kept & (entry < capacity))
        tl.store(logit_out_ptr + entry, z, mask=kept & (entry < capacity))
        count += tl.sum(kept.to(tl.int32), 0)
    i = tl.arange(0, N)
    for start in range(count, capacity, N):
        tl.store(token_out_ptr + start + i, -1, mask=start + i < capacity)
        tl.store(logit_out_ptr + start + i, float("-inf"), mask=start + i < capacity)
    tl.store(count_out_ptr + row, tl.where(margin >= 0, with_fault(count, best, has_nan), INVALID_PARAMETERS))
    tl.store(max_out_ptr + row, best)


@triton.jit(do_not_specialize=["vocab_size", "capacity"], do_not_specialize_on_alignment=settings.SCALAR_POINTERS)
def gather_logits_kernel(
    hidden_ptr, weight_ptr, token_ptr, count_ptr, logit_out_ptr,
    vocab_size, width, hidden_stride, weight_stride, capacity,
    TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write float32 logits [B, capacity] of listed tokens, -inf past the end of a list. Grid: (B, tiles of TOKENS).

    A token that does not exist gets NaN. hidden [B, width] and weight [vocab_size, width] have one dtype and unit
    stride along the width; token is int32 [B, capacity], count int32 [B].
    """
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    logit_out_ptr += row * capacity
    count = tl.load(count_ptr + row)
    if tl.program_id(1) * TOKENS >= count:
        tl.store(logit_out_ptr + entry, float("-inf"), mask=entry < capacity)
        return
    valid = (entry < count) & (entry < capacity)
    token = tl.load(token_ptr + row * capacity + entry, mask=valid, other=0)
    layer = Layer(hidden_ptr + row * hidden_stride, weight_ptr, weight_stride, width)
    exists = (token >= 0) & (token < vocab_size)
    z = tl.where(exists, dot_products(layer, token, valid & exists, TOKENS, DEPTH), float("nan"))
    tl.store(logit_out_ptr + entry, tl.where(valid, z, float("-inf")), mask=entry < capacity)


def chunk_maxima(hidden: torch.Tensor, weight: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return float32 [B, chunks]: the greatest logit of each CHUNK tokens.

    It is NaN if one of the logits is NaN, and -inf past the vocabulary. The arguments are those of
    :func:`select_candidates_linear`.
    """
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


def select_candidates_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    margin: torch.Tensor,
    banned: torch.Tensor | None,
    vocab_size: int,
    capacity: int,
) -> Candidates:
    """Compute :func:`cdgen_kernels.reference.sampling.select_candidates_linear` in two launches, with float32 sums.

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
        # A fused multiply-add halves the instructions of a dot product. The threshold, which must be one rounded
        # subtraction, has no product to fuse with.
        select_candidates_linear_kernel[(batch,)](
            hidden, weight, margin, margin if banned is None else banned, maxima, hits, token, logit, count, best,
            vocab_size, width, hidden.stride(0), weight.stride(0), 0 if banned is None else banned.shape[1],
            maxima.shape[1], capacity,
            CHUNK=CHUNK, TOKENS=SELECT_TOKENS, DEPTH=DOT_BYTES // weight.element_size(), N=4 * 32 * SELECT_WARPS,
            num_warps=SELECT_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return Candidates(token, logit, count, best)


def gather_logits(hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.reference.sampling.gather_logits` in one launch, with float32 sums.

    Args:
        hidden, weight: [B, D] and [V, D] of one dtype, float32, float16 or bfloat16, with unit stride along D.
        token: int32 [B, C], contiguous. count: int32 [B].
    """
    batch, capacity = token.shape
    logit = hidden.new_empty((batch, capacity), dtype=torch.float32)
    if batch:
        gather_logits_kernel[(batch, triton.cdiv(capacity, GATHER_TOKENS))](
            hidden, weight, token, count, logit,
            weight.shape[0], hidden.shape[1], hidden.stride(0), weight.stride(0), capacity,
            TOKENS=GATHER_TOKENS, DEPTH=DOT_BYTES // weight.element_size(), num_warps=GATHER_WARPS,
            enable_fp_fusion=True,
        )  # fmt: skip
    return logit
