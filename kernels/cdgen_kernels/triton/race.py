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

from cdgen_kernels.triton.noise import add_gumbel_bound, gumbel, philox_block, philox_word
from cdgen_kernels.triton.passes import Row, chunk_count, chunks_reaching, is_allowed, leave_out_banned, place_in_chunk
from cdgen_kernels.triton.scores import finite

MOST_NOISE = tl.constexpr(23.0)  # more than the noise of any word


class Scale(NamedTuple):
    """How a token's score follows from its logit z: weight * (z - best) / temperature; float32."""

    best: tl.tensor
    weight: tl.tensor
    temperature: tl.tensor


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
def fours(x, T: tl.constexpr):
    """Return four tensors [T]: element 0, 1, 2 and 3 of each four neighbours of x [4 T]."""
    even, odd = tl.split(tl.reshape(x, [2 * T, 2]))
    x0, x2 = tl.split(tl.reshape(even, [T, 2]))
    x1, x3 = tl.split(tl.reshape(odd, [T, 2]))
    return x0, x1, x2, x3


@triton.jit
def greater(a, b):
    """Return the greater of two tensors; NaN wins."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def bound_of_block(z, block, rate, noise):
    """Return the greatest upper bound of rate * z + noise of four neighbours. z: four tensors; block: int32 tensor."""
    words = philox_block(block, noise.seed, noise.sequence, noise.position)
    a = greater(add_gumbel_bound(z[0], rate, words[0]), add_gumbel_bound(z[1], rate, words[1]))
    b = greater(add_gumbel_bound(z[2], rate, words[2]), add_gumbel_bound(z[3], rate, words[3]))
    return greater(a, b)


@triton.jit
def write_bounds(row, bounds_ptr, begin, end, rate, noise, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Write upper bounds of rate * z + Gumbel noise in the chunks of places `begin`, a multiple of T G R, to `end`.

    Banned tokens are left out. The bound of a chunk with a banned token may be much too high.
    """
    full = tl.minimum(end, row.full)
    offsets = tl.arange(0, T * G)
    lane = tl.arange(0, T)
    for start in range(begin, full, T * G * R):
        most = tl.full([T], float("-inf"), tl.float32)
        for r in range(0, R):
            first = start + r * (T * G)
            place = first + offsets
            z = tl.load(row.logits_ptr + place, mask=place // G * G < full, other=float("-inf")).to(tl.float32)
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
    leave_out_banned(row, bounds_ptr, begin, end, rate, MOST_NOISE, T, G, R)


@triton.jit
def join_race(leaders, token, valid, row, scale, noise, outside_z, outside_token):
    """Return the :class:`Leaders` after tokens [T], those in `valid`, have joined the race.

    Tokens from (outside_z, outside_token) on, in the order of scores, are kept out.
    """
    z = tl.load(row.logits_ptr + token, mask=valid, other=float("-inf")).to(tl.float32)
    joins = valid & ((z > outside_z) | ((z == outside_z) & (token < outside_token))) & is_allowed(token, row.bans)
    score = finite(finite(scale.weight * finite(z - scale.best)) / scale.temperature)
    noisy = score + gumbel(philox_word(token, noise.seed, noise.sequence, noise.position))
    wins = joins & ((noisy > leaders.noisy) | ((noisy == leaders.noisy) & (token < leaders.token)))
    return Leaders(
        tl.where(wins, noisy, leaders.noisy),
        tl.where(wins, token, leaders.token),
        tl.where(wins, score, leaders.score),
    )


@triton.jit
def race(row, bounds_ptr, top, hits_ptr, scale, noise, outside_z, outside_token,
         T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return (token, score) of the winner. `top` is the greatest bound, which is finite.

    The best token must be in the race.
    """
    chunks = chunk_count(row, T, G, R)
    lane = tl.arange(0, T)
    leaders = Leaders(
        tl.full([T], float("-inf"), tl.float32),
        tl.full([T], 0x7FFFFFFF, tl.int32),
        tl.full([T], float("-inf"), tl.float32),
    )
    edge = row.full + lane  # fewer than G tokens, which belong to no chunk
    leaders = join_race(leaders, edge, edge < row.vocab_size, row, scale, noise, outside_z, outside_token)
    shift = scale.best * (scale.weight / scale.temperature)
    error = 3e-5 + 1e-6 * (tl.abs(top) + tl.abs(shift))
    step = 2 + 2 * error  # more than rounding can absorb
    least = top + step  # chunks with a bound of at least this have been visited
    certain = tl.max(leaders.noisy, 0) + shift - error
    while certain < least:
        least = tl.maximum(certain, least - step)
        hit_count = chunks_reaching(bounds_ptr, chunks, least, hits_ptr, 2 * T)
        for start in range(0, hit_count, T // (R * G)):
            index = start + lane // (R * G)
            chunk = tl.load(hits_ptr + index, mask=index < hit_count, other=0)
            place = place_in_chunk(chunk, lane % (R * G), T, G, R)
            valid = (index < hit_count) & (place < row.full)
            leaders = join_race(leaders, place, valid, row, scale, noise, outside_z, outside_token)
        tl.debug_barrier()  # the list of hits has been read
        certain = tl.max(leaders.noisy, 0) + shift - error
    highest = tl.max(leaders.noisy, 0)
    token = tl.min(tl.where(leaders.noisy == highest, leaders.token, 0x7FFFFFFF), 0)
    return token, tl.max(tl.where(leaders.token == token, leaders.score, float("-inf")), 0)


@triton.jit
def greatest_bound(row, bounds_ptr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Return the greatest bound, NaN if one is NaN. Rows have at least one chunk."""
    chunks = chunk_count(row, T, G, R)
    c = tl.arange(0, 8 * T)
    most = tl.full([8 * T], float("-inf"), tl.float32)
    for start in range(0, chunks, 8 * T):
        most = greater(most, tl.load(bounds_ptr + start + c, mask=start + c < chunks, other=float("-inf")))
    return tl.where(tl.max((most != most).to(tl.int32), 0) > 0, float("nan"), tl.max(most, 0))
