"""Score tokens in Triton, given both models' logits.

The tokens to draw from are called entries: a list of candidates, or the whole row, where entry i is token i. Scores are
computed from differences to the logits of the best candidate, the reference. In float32, small differences would
otherwise be lost next to large logits.

Compile-time constants: BAD is one of NO_BAD, BAD_DENSE and BAD_GATHERED, OUTSIDE one of MASK, CONSTANT and
SHIFTED_GOOD, N the number of entries per tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from cdgen_kernels.triton.constants import BAD_GATHERED, CONSTANT, LOWEST, MASK, NAN_RANK, NO_BAD, SHIFTED_GOOD
from cdgen_kernels.triton.passes import Bans, CandidateList, is_allowed


class Entries(NamedTuple):
    """The tokens to draw from."""

    listed: tl.tensor  # whether they are `candidates`; if not, they are the whole row
    count: tl.tensor  # int32, number of entries
    candidates: CandidateList


class Logits(NamedTuple):
    """Both models' logits of one row."""

    good_ptr: tl.tensor  # GOOD's [V]; unused if entries are listed
    bad_ptr: tl.tensor  # BAD's, [V] if BAD_DENSE, one per entry if BAD_GATHERED
    bans: Bans  # unused if entries are listed
    threshold: tl.tensor  # float32, the lowest logit that GOOD may give a candidate
    best: tl.tensor  # float32, GOOD's greatest logit


class Weights(NamedTuple):
    """Factors of the score: (good_weight * GOOD - contrast_strength * BAD) / scale; float32."""

    good_weight: tl.tensor
    contrast_strength: tl.tensor
    scale: tl.tensor  # the temperature, or 1 if that is 0


class Outside(NamedTuple):
    """What only a finite `outside_head` needs; float32. See `nothing_outside`."""

    shift: tl.tensor  # score of other tokens (CONSTANT), or of the best of them (SHIFTED_GOOD)
    below: tl.tensor  # greatest of GOOD's logits of other tokens (SHIFTED_GOOD)
    bad_at_infinity: tl.tensor  # whether a logit of BAD is +inf (CONSTANT)


class Reference(NamedTuple):
    """The candidate that scores are relative to, whose score is 0. It has the best rank, and about the best score."""

    good: tl.tensor  # float32, GOOD's logit
    bad: tl.tensor  # float32, BAD's
    rank: tl.tensor  # int32


class Normaliser(NamedTuple):
    """Result of `log_sum_exp`: the log-probability of a logit x is (x - top) / scale - log_sum."""

    top: tl.tensor  # float32, the greatest logit; 0 if that is +inf
    log_sum: tl.tensor  # float32; NaN if the row has NaN or nothing but -inf
    at_infinity: tl.tensor  # whether a logit is +inf; x is then 0 for such logits, and -inf for the others


@triton.jit
def nothing_outside():
    """Return the :class:`Outside` that changes nothing."""
    return Outside(0.0, 0.0, False)


@triton.jit
def finite(x):
    """Return x, with infinities as the greatest and the least finite float32."""
    return tl.minimum(tl.maximum(x, LOWEST), -LOWEST)


@triton.jit
def effective(x, at_infinity):
    """Return logits x of a row, or their limit if a logit of the row is +inf: 0 at +inf, -inf elsewhere."""
    return tl.where(at_infinity, tl.where(x == float("inf"), 0.0, float("-inf")), x)


@triton.jit
def log_sum_exp(logits_ptr, vocab_size, scale, bans, N: tl.constexpr):
    """Return the :class:`Normaliser` of a row's logits / scale over the tokens that are not banned.

    Tokens at +inf share all of the mass, so the sum is then the logarithm of their number.
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
    log_sum = tl.where((has_nan > 0) | (top == float("-inf")), float("nan"), tl.log(tl.sum(total, 0)))
    return Normaliser(tl.where(top == float("inf"), 0.0, top), log_sum, top == float("inf"))


@triton.jit
def contrast(good, bad, weights, BAD: tl.constexpr):
    """Return the contrast of finite logits or differences of logits, not yet scaled; may be infinite, but not NaN."""
    score = weights.good_weight * good
    if BAD != NO_BAD:
        score = finite(score) - finite(weights.contrast_strength * bad)
    return score


@triton.jit
def scaled_score(good, bad, reference, weights, BAD: tl.constexpr):
    """Return the score of a candidate with these finite logits, relative to the reference's; may be infinite."""
    return contrast(finite(good - reference.good), finite(bad - reference.bad), weights, BAD) / weights.scale


@triton.jit
def load_tile(i, entries, logits, weights, outside, BAD: tl.constexpr, OUTSIDE: tl.constexpr):
    """Load entries i (int32 tensor).

    A higher rank wins, and within a rank the higher score wins. An infinite contrast decides the rank: 1 if it favours
    the token, -1 if it rules against it, else 0.

    Returns:
        (token, GOOD's logit, BAD's logit if it is finite else 0, rank, whether it is a candidate). An entry that cannot
        be drawn has rank -2, one whose logit of BAD is NaN has rank NAN_RANK.
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
    rank = tl.zeros_like(z).to(tl.int32)
    if BAD != NO_BAD:
        # The interpreter cannot broadcast the result of a scalar comparison.
        strengths = tl.zeros_like(z) + weights.contrast_strength
        is_read = is_candidate & (strengths != 0)
        place = i if BAD == BAD_GATHERED else token
        y = tl.load(logits.bad_ptr + place, mask=is_read, other=0.0).to(tl.float32)
        if OUTSIDE == CONSTANT:
            y = tl.where(is_read, effective(y, outside.bad_at_infinity), 0.0)
        favoured = tl.where(strengths > 0, 1, -1)
        rank = tl.where(y == float("-inf"), favoured, tl.where(y == float("inf"), -favoured, 0))
        rank = tl.where(y == y, rank, NAN_RANK)
        y = tl.where(rank == 0, y, 0.0)
    at_infinity = logits.best == float("inf")
    inside = is_candidate if OUTSIDE == MASK else tl.where(at_infinity, is_candidate, inside)
    return token, tl.where(at_infinity, 0.0, z), y, tl.where(inside, rank, -2), is_candidate


@triton.jit
def score_tile(i, entries, logits, weights, outside, reference, BAD: tl.constexpr, OUTSIDE: tl.constexpr):
    """Score entries i (int32 tensor); return (token, score, rank). See :func:`load_tile`."""
    token, z, y, rank, is_candidate = load_tile(i, entries, logits, weights, outside, BAD, OUTSIDE)
    score = scaled_score(z, y, reference, weights, BAD)
    if OUTSIDE == CONSTANT:
        score = tl.where(is_candidate, score, outside.shift)
    elif OUTSIDE == SHIFTED_GOOD:
        score = tl.where(is_candidate, score, finite(z - outside.below) / weights.scale + outside.shift)
    return token, finite(score) + 0.0, rank  # -0.0 becomes 0.0, so that equal scores have equal keys


@triton.jit
def ordered_bits(x):
    """Return int32 numbers in the order of floats x: their bits, with the magnitude bits of negative ones flipped."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def contrast_key(good, bad, rank, weights, BAD: tl.constexpr):
    """Return int32 numbers in the order of the contrast, infinities included; NaN counts as the greatest."""
    rough = finite(contrast(good, bad, weights, BAD))
    rough = tl.where(rank == 0, rough, tl.where(rank < 0, float("-inf"), float("inf")))
    return tl.where(rank == -2, -2147483648, tl.where(rank == NAN_RANK, 0x7FFFFFFF, ordered_bits(rough)))


@triton.jit
def uncontrasted_reference(logits):
    """Return the :class:`Reference` if BAD does not matter: GOOD's best token."""
    good = tl.where(logits.best == float("inf"), 0.0, logits.best)
    return Reference(good, tl.full([], 0.0, tl.float32), tl.full([], 0, tl.int32))


@triton.jit
def reference_at(i, entries, logits, weights, outside, BAD: tl.constexpr, OUTSIDE: tl.constexpr):
    """Return entry i (int32 scalar) as a :class:`Reference`."""
    _, good, bad, rank, _ = load_tile(i, entries, logits, weights, outside, BAD, OUTSIDE)
    return Reference(good, bad, rank)


@triton.jit
def find_reference(entries, logits, weights, outside, BAD: tl.constexpr, OUTSIDE: tl.constexpr, N: tl.constexpr):
    """Return the :class:`Reference` of any number of entries, N at a time."""
    reference = uncontrasted_reference(logits)
    if BAD != NO_BAD:  # noqa: SIM102 (one condition is decided by the compiler, the other by the device)
        if weights.contrast_strength != 0:
            i = tl.arange(0, N)
            keys = tl.full([N], -2147483648, tl.int32)
            entry = tl.zeros([N], tl.int32)
            for start in range(0, entries.count, N):
                _, z, y, rank, is_candidate = load_tile(start + i, entries, logits, weights, outside, BAD, OUTSIDE)
                key = contrast_key(z, y, tl.where(is_candidate, rank, -2), weights, BAD)
                entry = tl.where(key > keys, start + i, entry)
                keys = tl.maximum(keys, key)
            best = tl.min(tl.where(keys == tl.max(keys, 0), entry, 0x7FFFFFFF), 0)
            reference = reference_at(best, entries, logits, weights, outside, BAD, OUTSIDE)
    return reference
