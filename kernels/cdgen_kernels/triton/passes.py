"""Find the candidates of a row of logits in two passes that read the row once.

The first pass streams GOOD's row at 16 bytes per thread and writes one maximum per chunk. A chunk is what one thread
reads of a tile, R groups of G logits, so threads need not communicate. The second pass (lists.py) reads the maxima, and
of the row only the chunks whose maximum reaches the threshold. Several programs may share the first pass over a row;
the last one to finish does the second pass.

A row may begin at any address. `skip` tokens precede its first multiple of 16 bytes, `full` tokens follow in whole
groups, and fewer than G tokens are left. The tokens at the two ends are the row's edge. A place is an index counted
from the first whole group.

Compile-time constants of all kernels that read rows of logits:

    T         threads per program
    G         logits per group of 16 bytes: 8 for 16-bit logits, 4 for float32
    R         groups per thread and tile
    CAPACITY  entries of a row's list of candidates
"""

from typing import NamedTuple

import triton
import triton.language as tl

from cdgen_kernels.triton.arrivals import is_last_to_arrive
from cdgen_kernels.triton.constants import NAN_GOOD, NOTHING_POSSIBLE


class Bans(NamedTuple):
    """Tokens of one row that must not be drawn."""

    token_ptr: tl.tensor  # int64 [count]; -1: unused
    count: tl.tensor  # int32


class Row(NamedTuple):
    """GOOD's logits of one row."""

    logits_ptr: tl.tensor  # the row's first logit; float16, bfloat16 or float32 [vocab_size]
    groups_ptr: tl.tensor  # its first logit at a multiple of 16 bytes
    skip: tl.tensor  # int32, number of logits before groups_ptr
    full: tl.tensor  # int32, number of logits in whole groups after groups_ptr
    vocab_size: tl.tensor  # int32
    bans: Bans


class CandidateList(NamedTuple):
    """A list of tokens with their logits."""

    token_ptr: tl.tensor  # int32 [capacity]
    logit_ptr: tl.tensor  # float32 [capacity]


@triton.jit
def is_allowed(token, bans):
    """Return for each token (int32 tensor) whether it is not banned."""
    allowed = token >= 0
    for i in range(0, bans.count):
        allowed = allowed & (token != tl.load(bans.token_ptr + i).to(tl.int32))
    return allowed


@triton.jit
def place_in_chunk(chunk, j, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Return the place of logit j, 0 to R * G - 1, of a chunk: R groups of G neighbours, T * G apart."""
    return chunk // T * (T * G * R) + j // G * (T * G) + chunk % T * G + j % G


@triton.jit
def edge_tokens(row, G: tl.constexpr):
    """Return (the tokens [2 G] at the row's two ends, a mask of those that exist)."""
    e = tl.arange(0, 2 * G)
    token = tl.where(e < G, e, row.skip + row.full + e - G)
    return token, tl.where(e < G, e < row.skip, token < row.vocab_size)


@triton.jit
def maximum_of_groups(x, T: tl.constexpr, G: tl.constexpr):
    """Return float32 [T]: the maximum of each G neighbours of x [T G], NaN if one of them is NaN. G is 4 or 8."""
    a, b = tl.split(tl.reshape(x, [T, G // 2, 2]))
    x = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    a, b = tl.split(tl.reshape(x, [T, G // 4, 2]))
    x = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    if G == 8:
        a, b = tl.split(x)
        x = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return tl.reshape(x, [T])


@triton.jit
def first_pass(groups_ptr, begin, end, maxima_ptr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Write the maxima of the chunks from place `begin`, a multiple of T G R, to place `end`.

    A maximum is NaN if one of the chunk's logits is NaN.
    """
    TILE: tl.constexpr = T * G * R
    offsets = tl.arange(0, T * G)
    lane = tl.arange(0, T)
    whole = begin + tl.maximum(end - begin, 0) // TILE * TILE
    for start in range(begin, whole, TILE):
        most = tl.load(groups_ptr + start + offsets).to(tl.float32)
        for r in tl.static_range(1, R):
            x = tl.load(groups_ptr + start + r * (T * G) + offsets).to(tl.float32)
            most = tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL)
        tl.store(maxima_ptr + start // (G * R) + lane, maximum_of_groups(most, T, G))
    if whole < end:
        last = tl.full([T * G], float("-inf"), tl.float32)
        for r in tl.static_range(R):
            place = whole + r * (T * G) + offsets
            y = tl.load(groups_ptr + place, mask=place // G * G < end, other=float("-inf")).to(tl.float32)
            last = tl.maximum(last, y, propagate_nan=tl.PropagateNan.ALL)
        tl.store(maxima_ptr + whole // (G * R) + lane, maximum_of_groups(last, T, G))


@triton.jit
def leave_out_banned(row, table_ptr, begin, end, factor, summand, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Replace the entries of chunks with banned tokens by factor * (maximum of the other tokens) + summand.

    Entries that are NaN stay NaN.

    Args:
        table_ptr: float32 [chunks]. begin, end: places of the chunks that this program has written.
    """
    for i in range(0, row.bans.count):
        place = tl.load(row.bans.token_ptr + i).to(tl.int32) - row.skip
        if (place >= begin) & (place < tl.minimum(end, row.full)):
            chunk = place // (T * G * R) * T + place % (T * G) // G
            inside = place_in_chunk(chunk, tl.arange(0, R * G), T, G, R)
            counts = (inside < row.full) & is_allowed(inside + row.skip, row.bans)
            rest = tl.load(row.logits_ptr + row.skip + inside, mask=counts, other=float("-inf")).to(tl.float32)
            tl.debug_barrier()  # the previous iteration, or the pass over the row, has stored
            before = tl.load(table_ptr + chunk)
            tl.debug_barrier()
            tl.store(table_ptr + chunk, tl.where(before != before, before, tl.max(rest, 0) * factor + summand))


@triton.jit
def find_row(logits_ptr, logits_stride, vocab_size, banned_ptr, banned_count, G: tl.constexpr):
    """Return row program_id(0) as a :class:`Row`.

    Args:
        logits_ptr: [B, V'] with unit stride along V', from a multiple of 16 bytes. banned_ptr: int64 [B, banned_count].
    """
    number = tl.program_id(0).to(tl.int64)
    skip = tl.minimum((G - number * logits_stride % G) % G, vocab_size).to(tl.int32)
    full = (vocab_size - skip) // G * G
    groups_ptr = logits_ptr + (number * logits_stride + skip) // G * G
    bans = Bans(banned_ptr + number * banned_count, banned_count)
    return Row(logits_ptr + number * logits_stride, groups_ptr, skip, full, vocab_size, bans)


@triton.jit
def arrive(arrivals_ptr, SPLIT: tl.constexpr):
    """Return whether this program has to continue, because all programs of its row have done their share.

    Args:
        arrivals_ptr: int32 [B], zeros before and after the launch; used only if SPLIT.
    """
    is_last = True
    if SPLIT:
        is_last = is_last_to_arrive(arrivals_ptr + tl.program_id(0).to(tl.int64), tl.num_programs(1))
    return is_last


@triton.jit
def chunk_count(row, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Return the number of chunks of a row, including those of a last, partial tile."""
    return (row.full + T * G * R - 1) // (T * G * R) * T


@triton.jit
def row_maximum(row, maxima_ptr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Return (the row's maximum without banned tokens, 1 if the row has NaN else 0)."""
    tl.debug_barrier()  # the first pass has stored them
    best = float("-inf")
    has_nan = 0
    if row.full < row.vocab_size:
        edge, on_edge = edge_tokens(row, G)
        z = tl.load(row.logits_ptr + edge, mask=on_edge, other=float("-inf")).to(tl.float32)
        has_nan = tl.max((z != z).to(tl.int32), 0)
        best = tl.max(tl.where(is_allowed(edge, row.bans), z, float("-inf")), 0)

    chunks = chunk_count(row, T, G, R)
    c = tl.arange(0, 8 * T)
    highest = tl.full([8 * T], float("-inf"), tl.float32)
    for start in range(0, chunks, 8 * T):
        some = tl.load(maxima_ptr + start + c, mask=start + c < chunks, other=float("-inf"))
        highest = tl.maximum(highest, some, propagate_nan=tl.PropagateNan.ALL)
    has_nan = tl.maximum(has_nan, tl.max((highest != highest).to(tl.int32), 0))
    return tl.maximum(best, tl.max(highest, 0)), has_nan


@triton.jit
def candidate_threshold(best, margin):
    """Return the lowest logit of a candidate, given the row's maximum and its margin (float32 scalars)."""
    return tl.where(best == float("inf"), best, best - margin)


@triton.jit
def with_fault(result, best, has_nan):
    """Return `result`, or the fault code of a row whose logits have this maximum, or NaN if `has_nan` > 0."""
    result = tl.where(best == float("-inf"), NOTHING_POSSIBLE, result)
    return tl.where(has_nan > 0, NAN_GOOD, result)


@triton.jit
def parameters_are_valid(good_weight, contrast_strength, temperature, top_p, top_k):
    """Return whether a row's parameters are in range. Comparisons with NaN are false."""
    weights = (good_weight >= 0) & (good_weight < float("inf")) & (tl.abs(contrast_strength) < float("inf"))
    return weights & (temperature >= 0) & (temperature < float("inf")) & (top_p > 0) & (top_p <= 1) & (top_k >= 0)
