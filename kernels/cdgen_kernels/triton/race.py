"""Draw from a whole row by a race: the token with the greatest sum of score and Gumbel noise.

The programs of a row share the expensive part. Each computes upper bounds of the noisy scores in its segment and writes
the greatest one per chunk. The last program then computes exact scores and noise in the chunks that may hold the
winner, usually one to three. If top-k or top-p excludes the winner, the race is repeated without the winner and the
tokens below it.

Bounds are floats of the form rate * z + noise, rounded, so a chunk is skipped only if its bound is below the best
noisy score by more than the rounding errors. Exact scores are computed as in draw.py.

Chunks are counted from the row's first token here, not from its first multiple of 16 bytes: `token_row`. Four tokens
then share a block of random numbers.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from cdgen_kernels.triton.constants import NO_BAD
from cdgen_kernels.triton.lists import chunks_reaching, fours
from cdgen_kernels.triton.noise import gumbel, gumbel_bound, philox_block, philox_word
from cdgen_kernels.triton.passes import Row, chunk_count, is_allowed, leave_out_banned, place_in_chunk
from cdgen_kernels.triton.scores import Reference, finite, scaled_score

MOST_NOISE = tl.constexpr(23.0)  # more than the noise of any word


class Rates(NamedTuple):
    """A token's score is good * (GOOD's logit) - bad * (BAD's logit), up to a constant; float32."""

    good: tl.tensor
    bad: tl.tensor


class Leaders(NamedTuple):
    """The best tokens so far, one per thread, [T]."""

    noisy: tl.tensor  # float32; -inf: none
    token: tl.tensor  # int32
    score: tl.tensor  # float32


@triton.jit
def token_row(row, G: tl.constexpr):
    """Return the row as a :class:`Row` whose places are token ids."""
    return Row(row.logits_ptr, row.logits_ptr, row.skip * 0, row.vocab_size // G * G, row.vocab_size, row.bans)


@triton.jit
def greater(a, b):
    """Return the greater of two tensors; NaN wins."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rates_of(weights):
    """Return the :class:`Rates` of a row."""
    return Rates(weights.good_weight / weights.scale, weights.contrast_strength / weights.scale)


@triton.jit
def load_bad(bad_ptr, mask, rates):
    """Return BAD's logits, float32; 0 outside the mask, and everywhere if `rates.bad` is 0."""
    counts = tl.zeros_like(mask.to(tl.float32)) + rates.bad != 0  # the interpreter cannot broadcast a scalar comparison
    return tl.load(bad_ptr, mask=mask & counts, other=0.0).to(tl.float32)


@triton.jit
def score_bound(z, y, rates):
    """Return an upper bound of rates.good * z - rates.bad * y, rounding included; -inf if z is -inf."""
    good = z * rates.good
    bad = y * rates.bad
    return tl.where(z > float("-inf"), good - bad + 4e-7 * (tl.abs(good) + tl.abs(bad)), float("-inf"))


@triton.jit
def bound_of_block(z, block, rate, noise):
    """Return the greatest upper bound of rate * z + noise of four neighbours. z: four tensors; block: int32 tensor."""
    words = philox_block(block, noise.seed, noise.sequence, noise.position)
    a = greater(tl.fma(z[0], rate, gumbel_bound(words[0])), tl.fma(z[1], rate, gumbel_bound(words[1])))
    b = greater(tl.fma(z[2], rate, gumbel_bound(words[2])), tl.fma(z[3], rate, gumbel_bound(words[3])))
    return greater(a, b)


@triton.jit
def write_bounds(row, bad_ptr, bounds_ptr, begin, end, rates, noise,
                 BAD: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Write upper bounds of score + Gumbel noise in the chunks of places `begin`, a multiple of T G R, to `end`.

    Banned tokens are left out. Without BAD, the bound of a chunk with a banned token may be much too high.
    """
    full = tl.minimum(end, row.full)
    offsets = tl.arange(0, T * G)
    lane = tl.arange(0, T)
    rate = rates.good
    if BAD != NO_BAD:
        rate = tl.where(rates.bad != 0, 1.0, rate)  # score_bound has applied it
    for start in range(begin, full, T * G * R):
        most = tl.full([T], float("-inf"), tl.float32)
        for r in range(0, R):
            first = start + r * (T * G)
            place = first + offsets
            inside = place // G * G < full
            z = tl.load(row.logits_ptr + place, mask=inside, other=float("-inf")).to(tl.float32)
            if BAD != NO_BAD:
                if rates.bad != 0:
                    z = score_bound(z, load_bad(bad_ptr + place, inside, rates), rates)
                if row.bans.count > 0:
                    z = tl.where(is_allowed(place, row.bans), z, float("-inf"))
            block = (first + lane * G) // 4
            if G == 8:
                z0, z1, z2, z3 = fours(z, 2 * T)
                a0, b0 = tl.split(tl.reshape(z0, [T, 2]))
                a1, b1 = tl.split(tl.reshape(z1, [T, 2]))
                a2, b2 = tl.split(tl.reshape(z2, [T, 2]))
                a3, b3 = tl.split(tl.reshape(z3, [T, 2]))
                most = greater(most, bound_of_block((a0, a1, a2, a3), block, rate, noise))
                most = greater(most, bound_of_block((b0, b1, b2, b3), block + 1, rate, noise))
            else:
                most = greater(most, bound_of_block(fours(z, T), block, rate, noise))
        tl.store(bounds_ptr + start // (G * R) + lane, most)
    if BAD == NO_BAD:
        leave_out_banned(row, bounds_ptr, begin, end, rates.good, MOST_NOISE, T, G, R)


@triton.jit
def best_by_bound(token, valid, row, bad_ptr, rates):
    """Return (the greatest bound without noise, its token) of tokens [n], those in `valid` that are not banned."""
    valid = valid & is_allowed(token, row.bans)
    z = tl.load(row.logits_ptr + token, mask=valid, other=float("-inf")).to(tl.float32)
    bound = score_bound(z, load_bad(bad_ptr + token, valid, rates), rates)
    most = tl.max(bound, 0)
    return most, tl.min(tl.where(bound == most, token, 0x7FFFFFFF), 0)


@triton.jit
def reference_of_race(row, bad_ptr, bounds_ptr, top, rates, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Return a token whose score is less than the best by no more than the range of the noise, as a :class:`Reference`.

    It is the best token without noise of a chunk with the greatest bound, `top`, and of the edge.
    """
    chunks = chunk_count(row, T, G, R)
    c = tl.arange(0, 4 * T)
    first = tl.full([4 * T], 0x7FFFFFFF, tl.int32)
    for start in range(0, chunks, 4 * T):
        bound = tl.load(bounds_ptr + start + c, mask=start + c < chunks, other=float("-inf"))
        first = tl.minimum(first, tl.where(bound == top, start + c, 0x7FFFFFFF))
    place = place_in_chunk(tl.min(first, 0), tl.arange(0, R * G), T, G, R)
    most, token = best_by_bound(place, place < row.full, row, bad_ptr, rates)
    if row.full < row.vocab_size:
        edge = row.full + tl.arange(0, G)
        most_on_edge, edge_token = best_by_bound(edge, edge < row.vocab_size, row, bad_ptr, rates)
        token = tl.where(most_on_edge > most, edge_token, token)
    good = tl.load(row.logits_ptr + token).to(tl.float32)
    return Reference(good, load_bad(bad_ptr + token, token >= 0, rates), tl.full([], 0, tl.int32))


@triton.jit
def join_race(leaders, token, valid, row, bad_ptr, weights, reference, noise, outside_z, outside_token,
              BAD: tl.constexpr):  # fmt: skip
    """Return the :class:`Leaders` after tokens [T], those in `valid`, have joined the race.

    Tokens from (outside_z, outside_token) on, in the order of scores, are kept out.
    """
    z = tl.load(row.logits_ptr + token, mask=valid, other=float("-inf")).to(tl.float32)
    y = tl.zeros_like(z)
    if BAD != NO_BAD:
        y = load_bad(bad_ptr + token, valid, rates_of(weights))
    joins = valid & ((z > outside_z) | ((z == outside_z) & (token < outside_token))) & is_allowed(token, row.bans)
    score = finite(scaled_score(z, y, reference, weights, BAD))
    noisy = score
    if noise.temperature > 0:
        noisy = score + gumbel(philox_word(token, noise.seed, noise.sequence, noise.position))
    wins = joins & ((noisy > leaders.noisy) | ((noisy == leaders.noisy) & (token < leaders.token)))
    return Leaders(
        tl.where(wins, noisy, leaders.noisy),
        tl.where(wins, token, leaders.token),
        tl.where(wins, score, leaders.score),
    )


@triton.jit
def race(row, bad_ptr, bounds_ptr, top, hits_ptr, weights, reference, noise, outside_z, outside_token,
         BAD: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return (token, score) of the winner. `top` is the greatest bound, which is finite.

    Scores are relative to the `reference`, a token in the race.
    """
    chunks = chunk_count(row, T, G, R)
    lane = tl.arange(0, T)
    leaders = Leaders(
        tl.full([T], float("-inf"), tl.float32),
        tl.full([T], 0x7FFFFFFF, tl.int32),
        tl.full([T], float("-inf"), tl.float32),
    )
    rates = rates_of(weights)
    good = reference.good * rates.good
    bad = reference.bad * rates.bad
    shift = good - bad
    error = 3e-5 + 1e-6 * (tl.abs(top) + tl.abs(good) + tl.abs(bad))
    step = 0.25 + 2 * error  # more than rounding can absorb
    least = top + step  # chunks with a bound of at least this have been visited
    certain = tl.full([], float("-inf"), tl.float32)
    while certain < least:
        least = tl.maximum(certain, least - step)
        step *= 4  # visited chunks may hold only excluded tokens
        hit_count = chunks_reaching(bounds_ptr, chunks, least, hits_ptr, T)
        count = hit_count + (row.full < row.vocab_size).to(tl.int32)  # the edge follows the chunks
        for start in range(0, count, T // (R * G)):
            index = start + lane // (R * G)
            chunk = tl.load(hits_ptr + index, mask=index < hit_count, other=0)
            place = place_in_chunk(chunk, lane % (R * G), T, G, R)
            place = tl.where(index < hit_count, place, row.full + lane % (R * G))
            valid = (index < count) & (place < row.vocab_size)
            leaders = join_race(
                leaders, place, valid, row, bad_ptr, weights, reference, noise, outside_z, outside_token, BAD
            )  # fmt: skip
        tl.debug_barrier()  # the list of hits has been read
        certain = tl.max(leaders.noisy, 0) + shift - error
    highest = tl.max(leaders.noisy, 0)
    token = tl.min(tl.where(leaders.noisy == highest, leaders.token, 0x7FFFFFFF), 0)
    return token, tl.max(tl.where(leaders.token == token, leaders.score, float("-inf")), 0)


@triton.jit
def greatest_bound(row, bad_ptr, bounds_ptr, rates,
                   BAD: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return the greatest bound of a chunk; NaN or infinite if the row cannot be drawn by a race.

    A row has at least one chunk.
    """
    chunks = chunk_count(row, T, G, R)
    c = tl.arange(0, 8 * T)
    most = tl.full([8 * T], float("-inf"), tl.float32)
    for start in range(0, chunks, 8 * T):
        most = greater(most, tl.load(bounds_ptr + start + c, mask=start + c < chunks, other=float("-inf")))
    bound = tl.where(tl.max((most != most).to(tl.int32), 0) > 0, float("nan"), tl.max(most, 0))
    if BAD != NO_BAD:  # noqa: SIM102 (one condition is decided by the compiler, the other by the device)
        if row.full < row.vocab_size:
            edge = row.full + tl.arange(0, G)
            inside = (edge < row.vocab_size) & is_allowed(edge, row.bans)
            z = tl.load(row.logits_ptr + edge, mask=inside, other=float("-inf")).to(tl.float32)
            on_edge = score_bound(z, load_bad(bad_ptr + edge, inside, rates), rates)
            bound = tl.where(tl.min((on_edge < float("inf")).to(tl.int32), 0) > 0, bound, float("nan"))
    return bound
