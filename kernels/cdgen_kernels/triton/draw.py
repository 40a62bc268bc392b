"""Draw a token in Triton, given tokens and logits: contrast, top-k, top-p, noise.

The tokens to draw from are called entries: a list of candidates, or the whole row, where entry i is token i. Up to T
entries, one per thread, are handled in registers, and top-k and top-p compare every pair. More entries are handled in
tiles, and top-k and top-p search for the lowest score that is kept, bit by bit. That needs no sorting and is exact for
any number of entries.

Compile-time constants: BAD is one of NO_BAD, BAD_DENSE and BAD_GATHERED, OUTSIDE one of MASK, CONSTANT and
SHIFTED_GOOD, T the number of threads, N the number of entries per tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from cdgen_kernels.triton.constants import BAD_GATHERED, CONSTANT, MASK, NO_BAD
from cdgen_kernels.triton.noise import gumbel, philox_word, philox_words
from cdgen_kernels.triton.passes import Bans, CandidateList, is_allowed


class Entries(NamedTuple):
    """The tokens to draw from."""

    listed: tl.tensor  # whether they are `candidates`; if not, they are the whole row
    count: tl.tensor  # int32, number of entries
    candidates: CandidateList


class Logits(NamedTuple):
    """Both models' logits of one row."""

    good_ptr: tl.tensor  # GOOD's [V]; not read if entries are listed
    bad_ptr: tl.tensor  # BAD's, [V] if BAD_DENSE, one per entry if BAD_GATHERED
    bans: Bans  # not read if entries are listed
    threshold: tl.tensor  # float32, the lowest logit that GOOD may give a candidate
    best: tl.tensor  # float32, GOOD's greatest logit


class Weights(NamedTuple):
    """Factors of the score: (good_weight * GOOD - contrast_strength * BAD) / scale; float32."""

    good_weight: tl.tensor
    contrast_strength: tl.tensor
    scale: tl.tensor  # the temperature, or 1 if that is 0


class Outside(NamedTuple):
    """Terms of the score that only a finite `outside_head` needs; float32. See `nothing_outside`."""

    shift: tl.tensor  # score of other tokens (CONSTANT), or what is added to their scaled logits (SHIFTED_GOOD)
    good_log_sum: tl.tensor  # log sum exp of GOOD's scaled logits
    bad_log_sum: tl.tensor
    bad_at_infinity: tl.tensor  # whether a logit of BAD is +inf


class Cuts(NamedTuple):
    """Top-k and top-p."""

    top_k: tl.tensor  # int32; 0: off
    top_p: tl.tensor  # float32; 1: off
    mass: tl.tensor  # float32, the total mass that top_p is a share of; -1: the mass of the entries


class Noise(NamedTuple):
    """Key and counter of the row's random numbers (int64), and the temperature (float32; 0: no noise)."""

    seed: tl.tensor
    sequence: tl.tensor
    position: tl.tensor
    temperature: tl.tensor


class Draw(NamedTuple):
    """A drawn token. Mass is exp(score - best_score)."""

    token: tl.tensor  # int32
    score: tl.tensor  # float32
    best_score: tl.tensor  # float32
    mass: tl.tensor  # float32, total mass of all entries that could have been drawn
    bad_has_nan: tl.tensor  # int32: 1 if a logit of BAD that was read is NaN, else 0


@triton.jit
def nothing_outside():
    """Return the :class:`Outside` that changes nothing."""
    return Outside(0.0, 0.0, 0.0, False)


@triton.jit
def log_sum_exp(logits_ptr, vocab_size, scale, bans, N: tl.constexpr):
    """Return (log sum exp of a row's logits / scale over the tokens that are not banned, whether one is at +inf).

    Tokens at +inf share all of the mass, so the sum is then the logarithm of their number. It is NaN if the row has
    NaN or nothing but -inf.
    """
    i = tl.arange(0, N)
    best = tl.full([N], float("-inf"), tl.float32)
    has_nan = 0
    for start in range(0, vocab_size, N):
        inside = (start + i < vocab_size) & is_allowed(start + i, bans)
        z = tl.load(logits_ptr + start + i, mask=inside, other=float("-inf")).to(tl.float32)
        has_nan = tl.maximum(has_nan, tl.max((z != z).to(tl.int32), 0))
        best = tl.maximum(best, z)
    top = tl.max(best, 0)
    total = tl.zeros([N], tl.float32)
    for start in range(0, vocab_size, N):
        inside = (start + i < vocab_size) & is_allowed(start + i, bans)
        z = tl.load(logits_ptr + start + i, mask=inside, other=float("-inf")).to(tl.float32)
        total += tl.where(top == float("inf"), (z == float("inf")).to(tl.float32), tl.exp((z - top) / scale))
    result = tl.where(top == float("inf"), 0.0, top / scale) + tl.log(tl.sum(total, 0))
    return tl.where((has_nan > 0) | (top == float("-inf")), float("nan"), result), top == float("inf")


@triton.jit
def log_probability(x, log_sum, at_infinity):
    """Return the log-probability of scaled logits x, given what :func:`log_sum_exp` returned for their row."""
    return tl.where(at_infinity, tl.where(x == float("inf"), -log_sum, float("-inf")), x - log_sum)


@triton.jit
def contrast(good, bad, good_weight, contrast_strength, BAD: tl.constexpr):
    """Return (score, rank) of scaled logits. A higher rank wins; within a rank the higher score wins.

    An infinite contrast decides the rank: 1 if it favours the token, -1 if it rules against it, else 0.
    """
    score = good_weight * good
    rank = tl.zeros_like(score).to(tl.int32)
    if BAD != NO_BAD:
        signed = bad * contrast_strength  # NaN if an infinite logit meets a strength of 0
        rank = tl.where(signed == float("-inf"), 1, tl.where(signed == float("inf"), -1, 0))
        score -= tl.where((bad == float("inf")) | (bad == float("-inf")), 0.0, signed)
    return score + 0.0, rank  # -0.0 becomes 0.0, so that equal scores have equal keys


@triton.jit
def score_tile(i, entries, logits, weights, outside, BAD: tl.constexpr, OUTSIDE: tl.constexpr):
    """Score entries i (int32 tensor).

    Returns:
        (token, score, rank, 1 if BAD has NaN among them else 0); an entry that cannot be drawn has rank -2.
    """
    inside = i < entries.count
    token = i
    z = tl.full(i.shape, float("-inf"), tl.float32)
    if entries.listed:
        token = tl.load(entries.candidates.token_ptr + i, mask=inside, other=0)
        z = tl.load(entries.candidates.logit_ptr + i, mask=inside, other=float("-inf"))
        inside = inside & (z > float("-inf"))
    else:
        z = tl.load(logits.good_ptr + i, mask=inside, other=float("-inf")).to(tl.float32)
        inside = inside & (z > float("-inf")) & is_allowed(token, logits.bans)
    is_candidate = inside & (z >= logits.threshold)
    y = tl.zeros_like(z)
    if BAD != NO_BAD:
        # The interpreter cannot broadcast the result of a scalar comparison.
        strengths = tl.zeros_like(z) + weights.contrast_strength
        place = i if BAD == BAD_GATHERED else token
        y = tl.load(logits.bad_ptr + place, mask=is_candidate & (strengths != 0), other=0.0).to(tl.float32)
    has_nan = tl.max((y != y).to(tl.int32), 0)
    at_infinity = logits.best == float("inf")
    good_score = tl.where(at_infinity, 0.0, z / weights.scale) - outside.good_log_sum
    bad_score = log_probability(y / weights.scale, outside.bad_log_sum, outside.bad_at_infinity)
    score, rank = contrast(good_score, bad_score, weights.good_weight, weights.contrast_strength, BAD)
    if OUTSIDE == MASK:
        inside = is_candidate
    else:
        inside = tl.where(at_infinity, is_candidate, inside)
        tail = outside.shift if OUTSIDE == CONSTANT else z / weights.scale + outside.shift
        score = tl.where(is_candidate, score, tail)
        rank = tl.where(is_candidate, rank, 0)
    return token, score, tl.where(inside, rank, -2), has_nan


@triton.jit
def draw_few(entries, logits, weights, cuts, noise, scores_ptr, BAD: tl.constexpr, T: tl.constexpr):
    """Return the :class:`Draw` from at most T listed entries. `scores_ptr` is scratch, float32 [T]."""
    k = cuts.top_k
    i = tl.arange(0, T)
    token, score, rank, has_nan = score_tile(i, entries, logits, weights, nothing_outside(), BAD, MASK)
    kept = (rank == tl.max(rank, 0)) & (rank > -2)
    score = tl.where(kept, score, float("-inf"))
    top = tl.max(score, 0)
    mass = tl.where(kept, tl.exp(score - top), 0.0)
    if ((k > 0) & (k < entries.count)) | (cuts.top_p < 1):
        tl.store(scores_ptr + i, score)
        tl.debug_barrier()
        better = tl.zeros([T], tl.int32)
        better_mass = tl.zeros([T], tl.float32)
        for j in range(0, entries.count):
            other = tl.load(scores_ptr + j)
            other_token = tl.load(entries.candidates.token_ptr + j)
            is_better = (other > score) | ((other == score) & (other_token < token))
            better += is_better.to(tl.int32)
            better_mass += tl.where(is_better, tl.exp(other - top), 0.0)
        kept = kept & ((better < k) | (tl.zeros([T], tl.int32) + k <= 0))
        if cuts.top_p < 1:
            own_mass = tl.sum(tl.where(kept, mass, 0.0), 0)
            kept = kept & (better_mass < cuts.top_p * tl.where(cuts.mass < 0, own_mass, cuts.mass))
        mass = tl.where(kept, mass, 0.0)
    noisy = score
    if noise.temperature > 0:
        noisy = score + gumbel(philox_word(token, noise.seed, noise.sequence, noise.position))
    highest = tl.max(tl.where(kept, noisy, float("-inf")), 0)
    drawn = tl.min(tl.where(kept & (noisy == highest), token, 0x7FFFFFFF), 0)
    drawn_score = tl.max(tl.where(kept & (token == drawn), score, float("-inf")), 0)
    return Draw(drawn, drawn_score, top, tl.sum(mass, 0), has_nan)


@triton.jit
def order_key(score, token):
    """Return 60-bit numbers in the order in which tokens are kept: 32 bits of score, then 28 of the id, lower first."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
    return (ordered << 28) | (0xFFFFFFF - token).to(tl.int64)


@triton.jit
def kept_amount(least, entries, logits, weights, outside, top_rank, top,
                BY_MASS: tl.constexpr, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Return how many entries of rank `top_rank` have an order key of at least `least`, or their mass; float32."""
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for start in range(0, entries.count, N):
        token, score, rank, _ = score_tile(start + i, entries, logits, weights, outside, BAD, OUTSIDE)
        kept = (rank == top_rank) & (order_key(score, token) >= least)
        total += tl.where(kept, tl.exp(score - top) if BY_MASS else 1.0, 0.0)
    return tl.sum(total, 0)


@triton.jit
def search_cut(floor, wanted, entries, logits, weights, outside, top_rank, top,
               BY_MASS: tl.constexpr, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Return the greatest order key, at least `floor`, that keeps `wanted` entries, or entries of mass `wanted`."""
    least = tl.full([], 0, tl.int64)
    for bit in range(0, 60):
        tried = least | (tl.full([], 1, tl.int64) << (59 - bit))
        from_here = tl.maximum(tried, floor)
        amount = kept_amount(from_here, entries, logits, weights, outside, top_rank, top, BY_MASS, BAD, OUTSIDE, N)
        least = tl.where(amount >= wanted, tried, least)
    return tl.maximum(least, floor)


@triton.jit
def draw_many(entries, logits, weights, outside, cuts, noise,
              BAD: tl.constexpr, OUTSIDE: tl.constexpr, MASS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Return the :class:`Draw` from any number of entries, N at a time. Its mass is 0 without MASS or a cut."""
    k = cuts.top_k
    i = tl.arange(0, N)
    has_nan = 0
    ranks = tl.full([N], -2, tl.int32)
    tops = tl.full([N], float("-inf"), tl.float32)
    top_rank = -2
    top = float("-inf")
    least = tl.full([], 0, tl.int64)
    mass = 0.0
    cut_by_count = (k > 0) & (k < entries.count)
    if cut_by_count | (cuts.top_p < 1) | MASS:
        for start in range(0, entries.count, N):
            token, score, rank, _ = score_tile(start + i, entries, logits, weights, outside, BAD, OUTSIDE)
            tops = tl.where(rank > ranks, score, tl.where(rank == ranks, tl.maximum(tops, score), tops))
            ranks = tl.maximum(ranks, rank)
        top_rank = tl.max(ranks, 0)
        top = tl.max(tl.where(ranks == top_rank, tops, float("-inf")), 0)
        if cut_by_count:
            wanted = k.to(tl.float32)
            least = search_cut(
                least, wanted, entries, logits, weights, outside, top_rank, top, False, BAD, OUTSIDE, N
            )  # fmt: skip
        mass = kept_amount(least, entries, logits, weights, outside, top_rank, top, True, BAD, OUTSIDE, N)
        if cuts.top_p < 1:
            wanted_mass = cuts.top_p * tl.where(cuts.mass < 0, mass, cuts.mass)
            least = search_cut(
                least, wanted_mass, entries, logits, weights, outside, top_rank, top, True, BAD, OUTSIDE, N
            )  # fmt: skip
            mass = kept_amount(least, entries, logits, weights, outside, top_rank, top, True, BAD, OUTSIDE, N)

    won = tl.full([N], float("-inf"), tl.float32)
    won_rank = tl.full([N], -2, tl.int32)
    won_token = tl.full([N], 0x7FFFFFFF, tl.int32)
    won_score = tl.full([N], float("-inf"), tl.float32)
    for start in range(0, entries.count, N):
        token, score, rank, nan_here = score_tile(start + i, entries, logits, weights, outside, BAD, OUTSIDE)
        has_nan = tl.maximum(has_nan, nan_here)
        rank = tl.where(order_key(score, token) >= least, rank, -2)
        noisy = score
        if noise.temperature > 0:
            if entries.listed:
                word = philox_word(token, noise.seed, noise.sequence, noise.position)
            else:
                word = philox_words(start, noise.seed, noise.sequence, noise.position, N)
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
    return Draw(drawn, drawn_score, top, mass, has_nan)
