"""Draw a token in Triton from scored entries: top-k, top-p, noise.

Up to T entries, one per thread, are handled in registers, and top-k and top-p compare every pair. More entries are
handled in tiles, and top-k and top-p search for the lowest score that is kept, bit by bit. That needs no sorting and is
exact for any number of entries. The greatest score is subtracted before noise is added, since noise would be lost next
to large scores.

Compile-time constants: those of scores.py, T the number of threads, N the number of entries per tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from cdgen_kernels.triton.constants import CONSTANT, MASK, NAN_RANK, NO_BAD
from cdgen_kernels.triton.noise import gumbel, philox_word, philox_words
from cdgen_kernels.triton.scores import (
    contrast_key,
    finite,
    load_tile,
    nothing_outside,
    ordered_bits,
    reference_at,
    scaled_score,
    score_tile,
    uncontrasted_reference,
)


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
    """A drawn token. Scores are relative to the greatest, and mass is exp(score)."""

    token: tl.tensor  # int32
    score: tl.tensor  # float32
    mass: tl.tensor  # float32, total mass of all entries that could have been drawn
    bad_has_nan: tl.tensor  # whether a logit of BAD that was read is NaN


@triton.jit
def draw_few(entries, logits, weights, cuts, noise, scores_ptr, BAD: tl.constexpr, T: tl.constexpr):
    """Return the :class:`Draw` from at most T listed entries. `scores_ptr` is scratch, float32 [T]."""
    k = cuts.top_k
    i = tl.arange(0, T)
    token, z, y, rank, _ = load_tile(i, entries, logits, weights, nothing_outside(), BAD, MASK)
    reference = uncontrasted_reference(logits)
    if BAD != NO_BAD:
        key = contrast_key(z, y, rank, weights, BAD)
        best = tl.min(tl.where(key == tl.max(key, 0), i, T), 0)
        reference = reference_at(best, entries, logits, weights, nothing_outside(), BAD, MASK)
    kept = (rank == reference.rank) & (rank > -2)
    score = finite(scaled_score(z, y, reference, weights, BAD))
    score = tl.where(kept, score - tl.max(tl.where(kept, score, float("-inf")), 0), float("-inf"))
    mass = tl.where(kept, tl.exp(score), 0.0)
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
            better_mass += tl.where(is_better, tl.exp(other), 0.0)
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
    return Draw(drawn, drawn_score, tl.sum(mass, 0), reference.rank == NAN_RANK)


@triton.jit
def order_key(score, token):
    """Return 60-bit numbers in the order in which tokens are kept: 32 bits of score, then 28 of the id, lower first."""
    return ((ordered_bits(score).to(tl.int64) + 2147483648) << 28) | (0xFFFFFFF - token).to(tl.int64)


@triton.jit
def kept_amount(least, entries, logits, weights, outside, reference, top_rank, top,
                BY_MASS: tl.constexpr, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Return how many entries of rank `top_rank` have an order key of at least `least`, or their mass; float32."""
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for start in range(0, entries.count, N):
        token, score, rank = score_tile(start + i, entries, logits, weights, outside, reference, BAD, OUTSIDE)
        kept = (rank == top_rank) & (order_key(score, token) >= least)
        total += tl.where(kept, tl.exp(score - top) if BY_MASS else 1.0, 0.0)
    return tl.sum(total, 0)


@triton.jit
def search_cut(floor, wanted, entries, logits, weights, outside, reference, top_rank, top,
               BY_MASS: tl.constexpr, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Return the greatest order key, at least `floor`, that keeps `wanted` entries, or entries of mass `wanted`."""
    least = tl.full([], 0, tl.int64)
    for bit in range(0, 60):
        tried = least | (tl.full([], 1, tl.int64) << (59 - bit))
        from_here = tl.maximum(tried, floor)
        amount = kept_amount(
            from_here, entries, logits, weights, outside, reference, top_rank, top, BY_MASS, BAD, OUTSIDE, N
        )  # fmt: skip
        least = tl.where(amount >= wanted, tried, least)
    return tl.maximum(least, floor)


@triton.jit
def draw_many(entries, logits, weights, outside, reference, cuts, noise,
              BAD: tl.constexpr, OUTSIDE: tl.constexpr, MASS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Return the :class:`Draw` from any number of entries, N at a time. Its mass is 0 without MASS or a cut."""
    k = cuts.top_k
    i = tl.arange(0, N)
    ranks = tl.full([N], -2, tl.int32)
    tops = tl.full([N], float("-inf"), tl.float32)
    top_rank = -2
    top = 0.0  # the reference's score, which no score exceeds but for rounding, and in the mode CONSTANT
    least = tl.full([], 0, tl.int64)
    mass = 0.0
    cut_by_count = (k > 0) & (k < entries.count)
    if cut_by_count | (cuts.top_p < 1) | MASS | (OUTSIDE == CONSTANT):
        for start in range(0, entries.count, N):
            token, score, rank = score_tile(start + i, entries, logits, weights, outside, reference, BAD, OUTSIDE)
            tops = tl.where(rank > ranks, score, tl.where(rank == ranks, tl.maximum(tops, score), tops))
            ranks = tl.maximum(ranks, rank)
        top_rank = tl.max(ranks, 0)
        top = tl.max(tl.where(ranks == top_rank, tops, float("-inf")), 0)
        if cut_by_count:
            wanted = k.to(tl.float32)
            least = search_cut(
                least, wanted, entries, logits, weights, outside, reference, top_rank, top, False, BAD, OUTSIDE, N
            )  # fmt: skip
        if cut_by_count | (cuts.top_p < 1) | MASS:
            mass = kept_amount(
                least, entries, logits, weights, outside, reference, top_rank, top, True, BAD, OUTSIDE, N
            )  # fmt: skip
        if cuts.top_p < 1:
            wanted_mass = cuts.top_p * tl.where(cuts.mass < 0, mass, cuts.mass)
            least = search_cut(
                least, wanted_mass, entries, logits, weights, outside, reference, top_rank, top, True, BAD, OUTSIDE, N
            )  # fmt: skip
            mass = kept_amount(
                least, entries, logits, weights, outside, reference, top_rank, top, True, BAD, OUTSIDE, N
            )  # fmt: skip

    won = tl.full([N], float("-inf"), tl.float32)
    won_rank = tl.full([N], -2, tl.int32)
    won_token = tl.full([N], 0x7FFFFFFF, tl.int32)
    won_score = tl.full([N], float("-inf"), tl.float32)
    for start in range(0, entries.count, N):
        token, score, rank = score_tile(start + i, entries, logits, weights, outside, reference, BAD, OUTSIDE)
        rank = tl.where(order_key(score, token) >= least, rank, -2)
        score -= top
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
    return Draw(drawn, drawn_score, mass, reference.rank == NAN_RANK)
