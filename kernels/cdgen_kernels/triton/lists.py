"""List the chunks of a row whose maximum reaches a threshold, and their tokens that reach it.

A thread tests four neighbours and stores them one after the other, as tensors with one element per thread. Triton would
move the elements of a larger tensor between threads before it stores them at computed places.
"""

import triton
import triton.language as tl

from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.passes import chunk_count, edge_tokens, is_allowed, place_in_chunk


@triton.jit
def possible(least):
    """Return `least`, or the least finite number if it is -inf; NaN stays NaN. No logit of -inf reaches the result."""
    return tl.maximum(least, LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def collect(logit_ptr, token, valid, threshold, bans, candidates, count, CAPACITY: tl.constexpr):
    """Append those of the given tokens that are candidates to a list of `count` entries; return the new count.

    Candidates that do not fit are counted, but not written.

    Args:
        logit_ptr, token, valid: pointers to the logits of tokens to examine, their ids, and a mask of those that exist.
        candidates: the :class:`CandidateList`, of CAPACITY entries.
    """
    z = tl.load(logit_ptr, mask=valid, other=float("-inf")).to(tl.float32)
    hit = valid & (z >= possible(threshold)) & is_allowed(token, bans)
    entry = count + tl.cumsum(hit.to(tl.int32), 0) - 1
    tl.store(candidates.token_ptr + entry, token, mask=hit & (entry < CAPACITY))
    tl.store(candidates.logit_ptr + entry, z, mask=hit & (entry < CAPACITY))
    return count + tl.sum(hit.to(tl.int32), 0)


@triton.jit
def fours(x, T: tl.constexpr):
    """Return four tensors [T]: elements 0, 1, 2 and 3 of every four neighbours of x [4 T]."""
    even, odd = tl.split(tl.reshape(x, [2 * T, 2]))
    x0, x2 = tl.split(tl.reshape(even, [T, 2]))
    x1, x3 = tl.split(tl.reshape(odd, [T, 2]))
    return x0, x1, x2, x3


@triton.jit
def places_of_fours(hits):
    """Return four int32 tensors [T]: how many hits precede each of four neighbours per thread.

    Args:
        hits: four int32 tensors [T], 0 or 1.
    """
    each = hits[0] + hits[1] + hits[2] + hits[3]
    first = tl.cumsum(each, 0) - each
    second = first + hits[0]
    third = second + hits[1]
    return first, second, third, third + hits[2]


@triton.jit
def chunks_reaching(table_ptr, chunks, least, hits_ptr, T: tl.constexpr):
    """Write the numbers of the chunks whose entry in a float32 table is at least `least` to hits; return how many."""
    lane = tl.arange(0, T)
    c = tl.arange(0, 4 * T)
    hit_count = 0
    for start in range(0, chunks, 4 * T):
        entry = tl.load(table_ptr + start + c, mask=start + c < chunks, other=float("-inf"))
        reach = fours((entry >= possible(least)).to(tl.int32), T)
        found = tl.sum(reach[0] + reach[1] + reach[2] + reach[3], 0)
        if found > 0:
            place = places_of_fours(reach)
            for k in tl.static_range(4):
                tl.store(hits_ptr + hit_count + place[k], start + 4 * lane + k, mask=reach[k] > 0)
            hit_count += found
    tl.debug_barrier()
    return hit_count


@triton.jit
def collect_fours(z, token, threshold, bans, candidates, count, CAPACITY: tl.constexpr):
    """Append the candidates among four neighbours per thread to a list, like :func:`collect`; return the new count.

    Args:
        z: four tensors [T] of logits, -inf if a token does not exist. token: the ids of z[0], int32 [T].
    """
    least = possible(threshold)
    hits = (
        ((z[0] >= least) & is_allowed(token, bans)).to(tl.int32),
        ((z[1] >= least) & is_allowed(token + 1, bans)).to(tl.int32),
        ((z[2] >= least) & is_allowed(token + 2, bans)).to(tl.int32),
        ((z[3] >= least) & is_allowed(token + 3, bans)).to(tl.int32),
    )
    place = places_of_fours(hits)
    for k in tl.static_range(4):
        entry = count + place[k]
        kept = (hits[k] > 0) & (entry < CAPACITY)
        tl.store(candidates.token_ptr + entry, token + k, mask=kept)
        tl.store(candidates.logit_ptr + entry, z[k], mask=kept)
    return count + tl.sum(hits[0] + hits[1] + hits[2] + hits[3], 0)


@triton.jit
def second_pass(row, threshold, maxima_ptr, hits_ptr, candidates,
                CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Write the row's candidates to the list, in no particular order, as far as they fit; return their number.

    Args:
        maxima_ptr: float32 [chunks], from the first pass. hits_ptr: int32 [chunks], scratch for chunks to read.
    """
    hit_count = chunks_reaching(maxima_ptr, chunk_count(row, T, G, R), threshold, hits_ptr, T)
    count = 0
    if row.full < row.vocab_size:
        edge, on_edge = edge_tokens(row, G)
        count = collect(row.logits_ptr + edge, edge, on_edge, threshold, row.bans, candidates, count, CAPACITY)
    lane = tl.arange(0, T)
    PARTS: tl.constexpr = R * G // 4  # a thread reads 4 tokens
    for start in range(0, hit_count, T // PARTS):
        index = start + lane // PARTS
        chunk = tl.load(hits_ptr + index, mask=index < hit_count, other=0)
        place = place_in_chunk(chunk, lane % PARTS * 4, T, G, R)
        valid = (index < hit_count) & (place < row.full)
        z_ptr = row.groups_ptr + place[:, None] + tl.arange(0, 4)[None, :]
        z = fours(tl.load(z_ptr, mask=valid[:, None], other=float("-inf")).to(tl.float32), T)
        count = collect_fours(z, place + row.skip, threshold, row.bans, candidates, count, CAPACITY)
    tl.debug_barrier()
    return count
