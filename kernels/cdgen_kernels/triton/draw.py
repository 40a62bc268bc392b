"""From tokens and logits to a drawn token, in Triton: contrast, top-k, top-p, noise.

Tokens stand in slots: of a list, or of the whole row, where slot i is token i. As many slots as threads are drawn from
in registers, and cut by comparing every pair. More are gone over in tiles, and cut by searching for the least score
that is kept, bit by bit: no sorting, exact for any number.
"""

import triton
import triton.language as tl

from cdgen_kernels.triton.noise import gumbel, philox_word, philox_words
from cdgen_kernels.triton.passes import is_allowed

NAN_GOOD = tl.constexpr(-1)  # the codes of codes.FAULTS
NOTHING_POSSIBLE = tl.constexpr(-2)
NAN_BAD = tl.constexpr(-3)
CANDIDATES_OVERFLOW = tl.constexpr(-4)

NO_BAD = tl.constexpr(0)  # where BAD's logits are
BAD_DENSE = tl.constexpr(1)
BAD_GATHERED = tl.constexpr(2)


@triton.jit
def log_sum_exp(x, vocab_size, scale, banned, banned_count, N: tl.constexpr):
    """log sum exp of a row / scale over the tokens that are not banned.

    Returns (it, whether a token is at +inf). Tokens at +inf share all the mass, and then it is the log of their
    number. NaN where the row holds one, or nothing but -inf.
    """
    i = tl.arange(0, N)
    best = tl.full([N], float("-inf"), tl.float32)
    has_nan = 0
    for start in range(0, vocab_size, N):
        inside = (start + i < vocab_size) & is_allowed(start + i, banned, banned_count)
        z = tl.load(x + start + i, mask=inside, other=float("-inf")).to(tl.float32)
        has_nan = tl.maximum(has_nan, tl.max((z != z).to(tl.int32), 0))
        best = tl.maximum(best, z)
    top = tl.max(best, 0)
    total = tl.zeros([N], tl.float32)
    for start in range(0, vocab_size, N):
        inside = (start + i < vocab_size) & is_allowed(start + i, banned, banned_count)
        z = tl.load(x + start + i, mask=inside, other=float("-inf")).to(tl.float32)
        total += tl.where(top == float("inf"), (z == float("inf")).to(tl.float32), tl.exp((z - top) / scale))
    result = tl.where(top == float("inf"), 0.0, top / scale) + tl.log(tl.sum(total, 0))
    return tl.where((has_nan > 0) | (top == float("-inf")), float("nan"), result), top == float("inf")


@triton.jit
def log_probability(x, log_sum, at_infinity):
    """Log-probability of scaled logits x, given what :func:`log_sum_exp` found of their row."""
    return tl.where(at_infinity, tl.where(x == float("inf"), -log_sum, float("-inf")), x - log_sum)


@triton.jit
def contrast(good, bad, weight, strength, BAD: tl.constexpr):
    """(score, rank) of scaled logits: an infinite contrast outranks finite scores, among equals the rest decides."""
    score = weight * good
    rank = tl.zeros_like(score).to(tl.int32)
    if BAD != NO_BAD:
        signed = bad * strength  # NaN where an infinite logit meets a strength of 0
        rank = tl.where(signed == float("-inf"), 1, tl.where(signed == float("inf"), -1, 0))
        score -= tl.where((bad == float("inf")) | (bad == float("-inf")), 0.0, signed)
    return score + 0.0, rank  # -0.0 becomes 0.0, so that equal scores have equal keys


@triton.jit
def score_tile(i, slots, row, weights, outside, BAD: tl.constexpr, OUTSIDE: tl.constexpr):
    """(token, score, rank, whether BAD had NaN) of slots i.

    A slot without a possible token has rank -2. The first of `outside` is added to the tail's scaled logits where
    OUTSIDE is 2, and is the tail's score where it is 1.
    """
    listed, n, list_token, list_logit = slots
    good, bad, banned, banned_count, threshold, best = row
    weight, strength, scale = weights
    shift, good_log_sum, bad_log_sum, bad_at_infinity = outside
    inside = i < n
    token = i
    z = tl.full(i.shape, float("-inf"), tl.float32)
    if listed:
        token = tl.load(list_token + i, mask=inside, other=0)
        z = tl.load(list_logit + i, mask=inside, other=float("-inf"))
        inside = inside & (z > float("-inf"))
    else:
        z = tl.load(good + i, mask=inside, other=float("-inf")).to(tl.float32)
        inside = inside & (z > float("-inf")) & is_allowed(token, banned, banned_count)
    in_head = inside & (z >= threshold)
    y = tl.zeros_like(z)
    if BAD != NO_BAD:
        strengths = tl.zeros_like(z) + strength  # the interpreter cannot spread the truth of a scalar comparison
        place = i if BAD == BAD_GATHERED else token
        y = tl.load(bad + place, mask=in_head & (strengths != 0), other=0.0).to(tl.float32)
    has_nan = tl.max((y != y).to(tl.int32), 0)
    good_score = tl.where(best == float("inf"), 0.0, z / scale) - good_log_sum
    bad_score = log_probability(y / scale, bad_log_sum, bad_at_infinity)  # y / scale where no normaliser is needed
    score, rank = contrast(good_score, bad_score, weight, strength, BAD)
    if OUTSIDE == 0:
        inside = in_head
    else:
        inside = tl.where(best == float("inf"), in_head, inside)
        tail = shift if OUTSIDE == 1 else z / scale + shift
        score = tl.where(in_head, score, tail)
        rank = tl.where(in_head, rank, 0)
    return token, score, tl.where(inside, rank, -2), has_nan


@triton.jit
def draw_few(slots, row, weights, cuts, noise, scores, BAD: tl.constexpr, T: tl.constexpr):
    """(token, its score, the best score, the mass of what was kept, whether BAD had NaN) from at most T slots.

    `scores` is scratch for T numbers. Mass is exp(score - best score). `total` in `cuts` is the mass of which top-p
    keeps its part, or -1 for that of the slots.
    """
    k, p, total = cuts
    i = tl.arange(0, T)
    token, score, rank, has_nan = score_tile(i, slots, row, weights, (0.0, 0.0, 0.0, False), BAD, 0)
    kept = (rank == tl.max(rank, 0)) & (rank > -2)
    score = tl.where(kept, score, float("-inf"))
    top = tl.max(score, 0)
    weight = tl.where(kept, tl.exp(score - top), 0.0)
    n, list_token = slots[1], slots[2]
    if ((k > 0) & (k < n)) | (p < 1):
        tl.store(scores + i, score)
        tl.debug_barrier()
        better = tl.zeros([T], tl.int32)
        better_mass = tl.zeros([T], tl.float32)
        for j in range(0, n):
            other = tl.load(scores + j)
            other_token = tl.load(list_token + j)
            is_better = (other > score) | ((other == score) & (other_token < token))
            better += is_better.to(tl.int32)
            better_mass += tl.where(is_better, tl.exp(other - top), 0.0)
        kept = kept & ((better < k) | (tl.zeros([T], tl.int32) + k <= 0))
        if p < 1:
            of_slots = tl.sum(tl.where(kept, weight, 0.0), 0)
            kept = kept & (better_mass < p * tl.where(total < 0, of_slots, total))
        weight = tl.where(kept, weight, 0.0)
    seed, sequence, position, temperature = noise
    noisy = score
    if temperature > 0:
        noisy = score + gumbel(philox_word(token, seed, sequence, position))
    highest = tl.max(tl.where(kept, noisy, float("-inf")), 0)
    drawn = tl.min(tl.where(kept & (noisy == highest), token, 0x7FFFFFFF), 0)
    drawn_score = tl.max(tl.where(kept & (token == drawn), score, float("-inf")), 0)
    return drawn, drawn_score, top, tl.sum(weight, 0), has_nan


@triton.jit
def order_key(score, token):
    """60-bit number that orders tokens as they are kept: 32 bits of score, then 28 of the id, the lower first."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
    return (ordered << 28) | (0xFFFFFFF - token).to(tl.int64)


@triton.jit
def reached(least, slots, row, weights, outside, top_rank, top,
            BY_MASS: tl.constexpr, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """How many slots have an order key of at least `least`, or how much mass they have; float32."""
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for start in range(0, slots[1], N):
        token, score, rank, _ = score_tile(start + i, slots, row, weights, outside, BAD, OUTSIDE)
        kept = (rank == top_rank) & (order_key(score, token) >= least)
        total += tl.where(kept, tl.exp(score - top) if BY_MASS else 1.0, 0.0)
    return tl.sum(total, 0)


@triton.jit
def search(floor, wanted, slots, row, weights, outside, top_rank, top,
           BY_MASS: tl.constexpr, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """The greatest order key, `floor` at least, at which `wanted` slots or mass are reached."""
    least = tl.full([], 0, tl.int64)
    for bit in range(0, 60):
        tried = least | (tl.full([], 1, tl.int64) << (59 - bit))
        from_here = tl.maximum(tried, floor)
        enough = reached(from_here, slots, row, weights, outside, top_rank, top, BY_MASS, BAD, OUTSIDE, N) >= wanted
        least = tl.where(enough, tried, least)
    return tl.maximum(least, floor)


@triton.jit
def draw_many(slots, row, weights, outside, cuts, noise,
              BAD: tl.constexpr, OUTSIDE: tl.constexpr, MASS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """:func:`draw_few` for any number of slots, N at a time; the mass is found where MASS asks for it."""
    k, p, total = cuts
    listed, n = slots[0], slots[1]
    i = tl.arange(0, N)
    has_nan = 0
    ranks = tl.full([N], -2, tl.int32)
    tops = tl.full([N], float("-inf"), tl.float32)
    top_rank = -2
    top = float("-inf")
    least = tl.full([], 0, tl.int64)
    mass = 0.0
    cut_by_count = (k > 0) & (k < n)
    if cut_by_count | (p < 1) | MASS:
        for start in range(0, n, N):
            token, score, rank, _ = score_tile(start + i, slots, row, weights, outside, BAD, OUTSIDE)
            tops = tl.where(rank > ranks, score, tl.where(rank == ranks, tl.maximum(tops, score), tops))
            ranks = tl.maximum(ranks, rank)
        top_rank = tl.max(ranks, 0)
        top = tl.max(tl.where(ranks == top_rank, tops, float("-inf")), 0)
        if cut_by_count:
            wanted = k.to(tl.float32)
            least = search(least, wanted, slots, row, weights, outside, top_rank, top, False, BAD, OUTSIDE, N)
        mass = reached(least, slots, row, weights, outside, top_rank, top, True, BAD, OUTSIDE, N)
        if p < 1:
            wanted_mass = p * tl.where(total < 0, mass, total)
            least = search(least, wanted_mass, slots, row, weights, outside, top_rank, top, True, BAD, OUTSIDE, N)
            mass = reached(least, slots, row, weights, outside, top_rank, top, True, BAD, OUTSIDE, N)

    seed, sequence, position, temperature = noise
    won = tl.full([N], float("-inf"), tl.float32)
    won_rank = tl.full([N], -2, tl.int32)
    won_token = tl.full([N], 0x7FFFFFFF, tl.int32)
    won_score = tl.full([N], float("-inf"), tl.float32)
    for start in range(0, n, N):
        token, score, rank, nan_here = score_tile(start + i, slots, row, weights, outside, BAD, OUTSIDE)
        has_nan = tl.maximum(has_nan, nan_here)
        rank = tl.where(order_key(score, token) >= least, rank, -2)
        noisy = score
        if temperature > 0:
            if listed:
                word = philox_word(token, seed, sequence, position)
            else:
                word = philox_words(start, seed, sequence, position, N)
            noisy = score + gumbel(word)
        better = (rank > won_rank) | ((rank == won_rank) & ((noisy > won) | ((noisy == won) & (token < won_token))))
        won = tl.where(better, noisy, won)
        won_score = tl.where(better, score, won_score)
        won_token = tl.where(better, token, won_token)
        won_rank = tl.maximum(won_rank, rank)
    in_play = won_rank == tl.max(won_rank, 0)
    highest = tl.max(tl.where(in_play, won, float("-inf")), 0)
    drawn = tl.min(tl.where(in_play & (won == highest), won_token, 0x7FFFFFFF), 0)
    drawn_score = tl.max(tl.where(in_play & (won_token == drawn), won_score, float("-inf")), 0)
    return drawn, drawn_score, top, mass, has_nan
