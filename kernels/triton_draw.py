"""From tokens of the head to a drawn one, in Triton: contrast, top-k, top-p, noise, log-probabilities."""

import triton
import triton.language as tl

from cdgen_kernels.triton_looks import is_allowed

NAN_GOOD = tl.constexpr(-1)  # the codes of reference.FAULTS
NOTHING_POSSIBLE = tl.constexpr(-2)
NAN_BAD = tl.constexpr(-3)


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
def contrast(good, bad, weight, strength, HAS_BAD: tl.constexpr):
    """(score, rank) of scaled logits: an infinite contrast outranks finite scores, among equals the rest decides."""
    score = weight * good
    rank = tl.zeros_like(score).to(tl.int32)
    if HAS_BAD:
        signed = bad * strength  # NaN where an infinite logit meets a strength of 0
        rank = tl.where(signed == float("-inf"), 1, tl.where(signed == float("inf"), -1, 0))
        score -= tl.where((bad == float("inf")) | (bad == float("-inf")), 0.0, signed)
    return score + 0.0, rank  # -0.0 becomes 0.0, so that equal scores have equal keys


@triton.jit
def order_key(score, rank, token):
    """62-bit number that orders tokens as they are kept: 2 bits of rank, 32 of score, 28 of the id, the lower first."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
    return ((rank + 1).to(tl.int64) << 60) | (ordered << 28) | (0xFFFFFFF - token).to(tl.int64)


@triton.jit
def score_tile(i, head, logits, weights, outside, HAS_BAD: tl.constexpr, OUTSIDE: tl.constexpr):
    """(token, score, rank, whether BAD had NaN) of slots i: of the head's list where it is `listed`, else of the row.

    A slot without a possible token has rank -2. The first of `outside` is added to the tail's scaled logits where
    OUTSIDE is 2, and is the tail's score where it is 1.
    """
    listed, count, found, threshold, best = head
    good, bad, vocab_size, banned, banned_count = logits
    weight, strength, scale = weights
    shift, good_log_sum, bad_log_sum, bad_at_infinity = outside
    inside = i < tl.where(listed, count, vocab_size)
    token = i
    if listed:
        token = tl.load(found + i, mask=inside, other=0)
    z = tl.load(good + token, mask=inside, other=float("-inf")).to(tl.float32)
    if not listed:
        inside = inside & (z > float("-inf")) & is_allowed(token, banned, banned_count)
    in_head = inside & (z >= threshold)
    y = tl.zeros_like(z)
    if HAS_BAD:
        strengths = tl.zeros_like(z) + strength  # the interpreter cannot spread the truth of a scalar comparison
        y = tl.load(bad + token, mask=in_head & (strengths != 0), other=0.0).to(tl.float32)
    has_nan = tl.max((y != y).to(tl.int32), 0)
    good_score = tl.where(best == float("inf"), 0.0, z / scale) - good_log_sum
    bad_score = log_probability(y / scale, bad_log_sum, bad_at_infinity)  # y / scale where no normaliser is needed
    score, rank = contrast(good_score, bad_score, weight, strength, HAS_BAD)
    if OUTSIDE == 0:
        inside = in_head
    else:
        inside = tl.where(best == float("inf"), in_head, inside)
        tail = shift if OUTSIDE == 1 else z / scale + shift
        score = tl.where(in_head, score, tail)
        rank = tl.where(in_head, rank, 0)
    return token, score, tl.where(inside, rank, -2), has_nan
