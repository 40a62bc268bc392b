"""Two looks, one read, in Triton: a row's head without reading it twice.

The first look streams GOOD's row 16 bytes a thread at a time and writes one maximum for every chunk; a chunk is what
one thread reads in a tile, R groups of G logits, so that no two threads need to talk. The second look reads those
maxima, and of the row only the chunks that reach the threshold. Several programs may share the first look at a row;
the last of them to finish takes the second.

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
def maximum_of_groups(x, T: tl.constexpr, G: tl.constexpr):
    """float32 [T]: the maximum of each G neighbours of x [T G], NaN where one is NaN; G is 4 or 8."""
    a, b = tl.split(tl.reshape(x, [T, G // 2, 2]))
    x = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    a, b = tl.split(tl.reshape(x, [T, G // 4, 2]))
    x = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    if G == 8:
        a, b = tl.split(x)
        x = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return tl.reshape(x, [T])


@triton.jit
def first_pass(groups, begin, end, maxima, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Write the maxima, NaN where there is NaN, of the chunks of places begin, a multiple of T G R, to end."""
    TILE: tl.constexpr = T * G * R
    offsets = tl.arange(0, T * G)
    lane = tl.arange(0, T)
    whole = begin + tl.maximum(end - begin, 0) // TILE * TILE
    for start in range(begin, whole, TILE):
        most = tl.load(groups + start + offsets).to(tl.float32)
        for r in tl.static_range(1, R):
            x = tl.load(groups + start + r * (T * G) + offsets).to(tl.float32)
            most = tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL)
        tl.store(maxima + start // (G * R) + lane, maximum_of_groups(most, T, G))
    if whole < end:
        last = tl.full([T * G], float("-inf"), tl.float32)
        for r in tl.static_range(R):
            place = whole + r * (T * G) + offsets
            y = tl.load(groups + place, mask=place // G * G < end, other=float("-inf")).to(tl.float32)
            last = tl.maximum(last, y, propagate_nan=tl.PropagateNan.ALL)
        tl.store(maxima + whole // (G * R) + lane, maximum_of_groups(last, T, G))


@triton.jit
def is_last_to_arrive(arrivals, programs):
    """Count one of a row's programs in. The atomic addition releases what it wrote, and acquires what others did."""
    tl.debug_barrier()
    return tl.atomic_add(arrivals, 1, sem="acq_rel") == programs - 1


@triton.jit
def row_maximum(good, groups, skip, full, vocab_size, banned, banned_count, maxima,
                T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """(the row's maximum without banned tokens, 1 where it holds NaN else 0); mends the banned chunks' maxima."""
    best = float("-inf")
    has_nan = 0
    if full < vocab_size:
        edge, on_edge = edge_tokens(skip, full, vocab_size, G)
        z = tl.load(good + edge, mask=on_edge, other=float("-inf")).to(tl.float32)
        has_nan = tl.max((z != z).to(tl.int32), 0)
        best = tl.max(tl.where(is_allowed(edge, banned, banned_count), z, float("-inf")), 0)

    for i in range(0, banned_count):  # the chunk of each banned token, looked at again without the banned ones
        spot = tl.load(banned + i).to(tl.int32) - skip
        if (spot >= 0) & (spot < full):
            chunk = spot // (T * G * R) * T + spot % (T * G) // G
            inside = place_in_chunk(chunk, tl.arange(0, R * G), T, G, R)
            counts = (inside < full) & is_allowed(inside + skip, banned, banned_count)
            rest = tl.load(groups + inside, mask=counts, other=float("-inf")).to(tl.float32)
            tl.debug_barrier()  # between this and what the ban before stored
            before = tl.load(maxima + chunk)
            tl.debug_barrier()
            tl.store(maxima + chunk, tl.where(before != before, before, tl.max(rest, 0)))
    if banned_count > 0:
        tl.debug_barrier()

    chunks = (full + T * G * R - 1) // (T * G * R) * T
    c = tl.arange(0, 8 * T)
    highest = tl.full([8 * T], float("-inf"), tl.float32)
    for start in range(0, chunks, 8 * T):
        some = tl.load(maxima + start + c, mask=start + c < chunks, other=float("-inf"))
        highest = tl.maximum(highest, some, propagate_nan=tl.PropagateNan.ALL)
    has_nan = tl.maximum(has_nan, tl.max((highest != highest).to(tl.int32), 0))
    return tl.maximum(best, tl.max(highest, 0)), has_nan


@triton.jit
def collect(good, token, valid, threshold, banned, banned_count, list_token, list_logit, count,
            CAPACITY: tl.constexpr):  # fmt: skip
    """Append the head tokens among `token` to the list, which has `count` so far; returns the new count."""
    z = tl.load(good + token, mask=valid, other=float("-inf")).to(tl.float32)
    hit = valid & (z >= threshold) & (z > float("-inf")) & is_allowed(token, banned, banned_count)
    slot = count + tl.cumsum(hit.to(tl.int32), 0) - 1
    tl.store(list_token + slot, token, mask=hit & (slot < CAPACITY))
    tl.store(list_logit + slot, z, mask=hit & (slot < CAPACITY))
    return count + tl.sum(hit.to(tl.int32), 0)


@triton.jit
def second_pass(good, groups, skip, full, vocab_size, threshold, banned, banned_count, maxima, hits, list_token,
                list_logit, CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Write the head's tokens and logits, in no particular order, as far as they fit; returns the head's size."""
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
        count = collect(good, edge, on_edge, threshold, banned, banned_count, list_token, list_logit, count, CAPACITY)
    i = tl.arange(0, 4 * T)
    for start in range(0, hit_count, 4 * T // (R * G)):
        which = start + i // (R * G)
        chunk = tl.load(hits + which, mask=which < hit_count, other=0)
        place = place_in_chunk(chunk, i % (R * G), T, G, R)
        valid = (which < hit_count) & (place < full)
        count = collect(
            good, place + skip, valid, threshold, banned, banned_count, list_token, list_logit, count, CAPACITY
        )
    tl.debug_barrier()
    return count


@triton.jit
def bound_by_chunks(maxima, chunks, best, scale, wanted, BY_MASS: tl.constexpr, T: tl.constexpr):
    """The greatest float32 reached by `wanted` of the chunks' maxima, or by so much of their mass; -inf if none is.

    The row's tokens from there on are then at least as many, or of as much mass: what top-k or top-p keeps is among
    them. Mass is exp((z - best) / scale). Found bit by bit on the order of the float's bits.
    """
    c = tl.arange(0, 8 * T)
    key = tl.full([], 0, tl.int64)
    for bit in range(0, 32):
        tried = key | (tl.full([], 1, tl.int64) << (31 - bit))
        reached = 0.0
        for start in range(0, chunks, 8 * T):
            z = tl.load(maxima + start + c, mask=start + c < chunks, other=float("-inf"))
            bits = z.to(tl.int32, bitcast=True)
            ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
            counts = (ordered >= tried) & (z > float("-inf"))
            if BY_MASS:
                reached += tl.sum(tl.where(counts, tl.exp((z - best) / scale), 0.0), 0)
            else:
                reached += tl.sum(counts.to(tl.float32), 0)
        key = tl.where(reached >= wanted, tried, key)
    bits = (key - 2147483648).to(tl.int32)
    bound = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key == 0, float("-inf"), bound)
