"""Two looks, one read, in Triton: a row's head without reading it twice.

The first look streams GOOD's row 16 bytes a thread at a time and writes one maximum for every chunk; a chunk is what
one thread reads in a tile, R groups of G logits, so that no two threads need to talk. The second look reads those
maxima, and of the row only the chunks that reach the threshold.

A row may begin anywhere, so `skip` tokens come before the first multiple of 16 bytes, `full` tokens follow in whole
groups, and fewer than G are left: the two ends are the row's edge. Places count from the first whole group.
"""

import triton
import triton.language as tl


@triton.jit
def row_layout(row, stride, vocab_size, G: tl.constexpr):
    """(skip, full) of a row of logits whose storage begins at a multiple of 16 bytes."""
    skip = tl.minimum((G - row * stride % G) % G, vocab_size).to(tl.int32)
    return skip, (vocab_size - skip) // G * G


@triton.jit
def is_allowed(token, banned, banned_count):
    allowed = token >= 0
    for i in range(0, banned_count):
        allowed = allowed & (token != tl.load(banned + i).to(tl.int32))
    return allowed


@triton.jit
def place_in_chunk(chunk, j, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Place of logit j, 0 to R * G - 1, of a chunk: R groups of G neighbours, T * G apart."""
    return chunk // T * (T * G * R) + j // G * (T * G) + chunk % T * G + j % G


@triton.jit
def edge_tokens(skip, full, vocab_size, G: tl.constexpr):
    """(tokens [2 G] of the row's two ends, whether each is one)."""
    e = tl.arange(0, 2 * G)
    token = tl.where(e < G, e, skip + full + e - G)
    return token, tl.where(e < G, e < skip, token < vocab_size)


@triton.jit
def first_look(good, groups, skip, full, vocab_size, banned, banned_count, maxima,
               T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Write the chunks' maxima, banned tokens left out; returns (the row's maximum, 1 where it holds NaN else 0)."""
    TILE: tl.constexpr = T * G * R
    offsets = tl.arange(0, T * G)
    lane = tl.arange(0, T)
    seen = tl.full([T * G], float("-inf"), tl.float32)  # to find NaN, which tl.max passes over
    whole = full // TILE * TILE
    for start in range(0, whole, TILE):
        most = tl.load(groups + start + offsets).to(tl.float32)
        for r in tl.static_range(1, R):
            x = tl.load(groups + start + r * (T * G) + offsets).to(tl.float32)
            most = tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL)
        seen = tl.maximum(seen, most, propagate_nan=tl.PropagateNan.ALL)
        tl.store(maxima + start // (G * R) + lane, tl.max(tl.reshape(most, [T, G]), 1))
    if whole < full:
        last = tl.full([T * G], float("-inf"), tl.float32)
        for r in tl.static_range(R):
            place = whole + r * (T * G) + offsets
            y = tl.load(groups + place, mask=place // G * G < full, other=float("-inf")).to(tl.float32)
            last = tl.maximum(last, y, propagate_nan=tl.PropagateNan.ALL)
        seen = tl.maximum(seen, last, propagate_nan=tl.PropagateNan.ALL)
        tl.store(maxima + whole // (G * R) + lane, tl.max(tl.reshape(last, [T, G]), 1))
    has_nan = tl.max((seen != seen).to(tl.int32), 0)
    best = float("-inf")
    if full < vocab_size:
        edge, on_edge = edge_tokens(skip, full, vocab_size, G)
        z = tl.load(good + edge, mask=on_edge, other=float("-inf")).to(tl.float32)
        has_nan = tl.maximum(has_nan, tl.max((z != z).to(tl.int32), 0))
        best = tl.max(tl.where(is_allowed(edge, banned, banned_count), z, float("-inf")), 0)
    tl.debug_barrier()

    for i in range(0, banned_count):  # the chunk of each banned token, looked at again without the banned ones
        spot = tl.load(banned + i).to(tl.int32) - skip
        if (spot >= 0) & (spot < full):
            chunk = spot // TILE * T + spot % (T * G) // G
            inside = place_in_chunk(chunk, tl.arange(0, R * G), T, G, R)
            counts = (inside < full) & is_allowed(inside + skip, banned, banned_count)
            rest = tl.load(groups + inside, mask=counts, other=float("-inf")).to(tl.float32)
            tl.store(maxima + chunk, tl.max(rest, 0))
    if banned_count > 0:
        tl.debug_barrier()

    chunks = (full + TILE - 1) // TILE * T
    c = tl.arange(0, 8 * T)
    highest = tl.full([8 * T], float("-inf"), tl.float32)
    for start in range(0, chunks, 8 * T):
        highest = tl.maximum(highest, tl.load(maxima + start + c, mask=start + c < chunks, other=float("-inf")))
    return tl.maximum(best, tl.max(highest, 0)), has_nan


@triton.jit
def collect(good, token, valid, threshold, banned, banned_count, found, count, CAPACITY: tl.constexpr):
    """Append the head tokens among `token` to the list `found`, which has `count` so far; returns the new count."""
    z = tl.load(good + token, mask=valid, other=float("-inf")).to(tl.float32)
    hit = valid & (z >= threshold) & (z > float("-inf")) & is_allowed(token, banned, banned_count)
    slot = count + tl.cumsum(hit.to(tl.int32), 0) - 1
    tl.store(found + slot, token, mask=hit & (slot < CAPACITY))
    return count + tl.sum(hit.to(tl.int32), 0)


@triton.jit
def second_look(good, groups, skip, full, vocab_size, threshold, banned, banned_count, maxima, hits, found,
                CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Write the head's tokens, in no particular order, to `found`, as far as they fit; returns the head's size."""
    chunks = (full + T * G * R - 1) // (T * G * R) * T
    c = tl.arange(0, 8 * T)
    hit_count = 0
    for start in range(0, chunks, 8 * T):
        highest = tl.load(maxima + start + c, mask=start + c < chunks, other=float("-inf"))
        hit = (highest >= threshold) & (highest > float("-inf"))
        tl.store(hits + hit_count + tl.cumsum(hit.to(tl.int32), 0) - 1, start + c, mask=hit)
        hit_count += tl.sum(hit.to(tl.int32), 0)
    tl.debug_barrier()
    count = 0
    if full < vocab_size:
        edge, on_edge = edge_tokens(skip, full, vocab_size, G)
        count = collect(good, edge, on_edge, threshold, banned, banned_count, found, count, CAPACITY)
    i = tl.arange(0, 4 * T)
    for start in range(0, hit_count, 4 * T // (R * G)):
        which = start + i // (R * G)
        chunk = tl.load(hits + which, mask=which < hit_count, other=0)
        place = place_in_chunk(chunk, i % (R * G), T, G, R)
        valid = (which < hit_count) & (place < full)
        count = collect(good, place + skip, valid, threshold, banned, banned_count, found, count, CAPACITY)
    tl.debug_barrier()
    return count
