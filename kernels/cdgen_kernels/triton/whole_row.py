"""Methods without candidates: greedy decoding, top-k, top-p and ancestral sampling over the whole vocabulary.

Each program computes what the method needs for its segment of the row, and the last program merges the results. Only
GOOD's logits count here, except that BAD's may count in a race without top-k, top-p and log-probabilities.

* Greedy decoding without BAD lists the tokens at the row's maximum.
* Top-k with a small k lists the tokens down to the k-th greatest chunk maximum, or a little below it. No other token
  can be kept.
* The other methods are a race (race.py). If top-k or top-p does not keep the winner, another race replaces it. Whether
  it is kept follows from the number or the mass of the tokens above it.
* Log-probabilities need the mass of the kept tokens. With them, top-k and top-p always use a list. For top-p, it goes
  down to a bound that chunk maxima of enough mass reach.
"""

import triton
import triton.language as tl

from cdgen_kernels.triton.constants import LOWEST, NO_BAD
from cdgen_kernels.triton.draw import Draw
from cdgen_kernels.triton.lists import chunks_reaching
from cdgen_kernels.triton.passes import chunk_count, edge_tokens, is_allowed, place_in_chunk
from cdgen_kernels.triton.race import race, rates_of, reference_of_race, token_row, write_bounds
from cdgen_kernels.triton.scores import Reference

CANDIDATES = tl.constexpr(0)  # GOOD's maximum and the margin, or BAD, decide which tokens can be drawn
GREEDY = tl.constexpr(1)
TOP_K = tl.constexpr(2)
TOP_P = tl.constexpr(3)
RACE = tl.constexpr(4)


@triton.jit
def method_of_row(vocab_size, weights, cuts, temperature,
                  BAD: tl.constexpr, LOGPROBS: tl.constexpr, CAPACITY: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Return which of the methods above draws the token of a row that has no margin, int32."""
    by_count = (cuts.top_k > 0) & (cuts.top_k < vocab_size)
    by_mass = cuts.top_p < 1
    if LOGPROBS:
        method = tl.where(by_count, TOP_K, tl.where(by_mass, TOP_P, tl.where(temperature > 0, RACE, CANDIDATES)))
    else:
        method = tl.where(by_count & ((cuts.top_k <= 3 * T // 4) | by_mass), TOP_K, RACE)
        method = tl.where(temperature == 0, GREEDY, method)
    if BAD != NO_BAD:
        alone = CANDIDATES if LOGPROBS else tl.where(by_count | by_mass, CANDIDATES, RACE)
        method = tl.where(weights.contrast_strength == 0, method, alone)
    rates = rates_of(weights)
    usual = (rates.good > 1e-30) & (rates.good < 1e30) & (tl.abs(rates.bad) < 1e30)
    usual = usual & ((rates.bad != 0) | (weights.contrast_strength == 0))  # BAD's NaN and infinities count all the same
    usual = usual & (cuts.top_p > 0)  # no race ends if no token is kept
    return tl.where(usual & (vocab_size > CAPACITY), method, CANDIDATES)


@triton.jit
def share_work(row, bad_ptr, method, maxima_ptr, bounds_ptr, mass_ptr, begin, end, weights, cuts, noise,
               BAD: tl.constexpr, LOGPROBS: tl.constexpr,
               T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Compute what a method needs to know about the tokens at places `begin` to `end` after the first pass."""
    rates = rates_of(weights)
    if needs_mass(method, cuts, LOGPROBS):
        write_mass(row, maxima_ptr, mass_ptr, begin, end, rates.good, T, G, R)
    if method == RACE:
        write_bounds(token_row(row, G), bad_ptr, bounds_ptr, begin, end, rates, noise, BAD, T, G, R)


@triton.jit
def needs_mass(method, cuts, LOGPROBS: tl.constexpr):
    """Return whether a method needs the mass of all tokens."""
    return (method == TOP_P) | ((method == RACE) & ((cuts.top_p < 1) | LOGPROBS))


@triton.jit
def write_mass(row, maxima_ptr, mass_ptr, begin, end, rate, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):
    """Write (most, sum of exp(rate * (z - most))) of the tokens at places `begin` to `end`, without banned ones.

    `most` is the greatest of their logits, from the chunk maxima, or the least finite number.
    """
    full = tl.minimum(end, row.full)
    offsets = tl.arange(0, T * G)
    lane = tl.arange(0, T)
    tl.debug_barrier()  # the maxima have been stored
    most = tl.full([T], LOWEST, tl.float32)
    for start in range(begin, full, T * G * R):
        most = tl.maximum(most, tl.load(maxima_ptr + start // (G * R) + lane))
    top = tl.max(most, 0)
    per_bit = rate * 1.4426950408889634  # exp(x) = 2^(x log2 e)
    total = tl.zeros([T * G], tl.float32)
    for start in range(begin, full, T * G):
        place = start + offsets
        z = tl.load(row.groups_ptr + place, mask=place // G * G < full, other=float("-inf")).to(tl.float32)
        mass = tl.exp2((z - top) * per_bit)
        if row.bans.count > 0:
            mass = tl.where(is_allowed(place + row.skip, row.bans), mass, 0.0)
        total += mass
    tl.store(mass_ptr, top)
    tl.store(mass_ptr + 1, tl.sum(total, 0))


@triton.jit
def read_mass(row, mass_ptr, parts, best, rate, T: tl.constexpr, G: tl.constexpr):
    """Return the sum of exp(rate * (z - best)) over the tokens that are not banned."""
    lane = tl.arange(0, T)
    total = tl.zeros([T], tl.float32)
    for start in range(0, parts, T):
        inside = start + lane < parts
        top = tl.load(mass_ptr + 2 * (start + lane), mask=inside, other=float("-inf"))
        mass = tl.load(mass_ptr + 2 * (start + lane) + 1, mask=inside, other=0.0)
        total += tl.exp((top - best) * rate) * mass
    edge, on_edge = edge_tokens(row, G)
    z = tl.load(row.logits_ptr + edge, mask=on_edge & is_allowed(edge, row.bans), other=float("-inf")).to(tl.float32)
    return tl.sum(total, 0) + tl.sum(tl.exp((z - best) * rate), 0)


@triton.jit
def bound_by_maxima(maxima_ptr, chunks, best, rate, wanted, BY_MASS: tl.constexpr, T: tl.constexpr):
    """Return a logit that `wanted` tokens reach, or tokens of mass `wanted`; -inf if none is found.

    Top-k or top-p then keeps no token below it. Chunks whose numbers are equal modulo 8 T count as one token, the
    greatest. The bound is a score's distance from the best score, found bit by bit, 5 bits of the exponent and 5 of the
    mantissa: at most 3 % more than needed. Mass is exp(-distance).
    """
    c = tl.arange(0, 8 * T)
    z = tl.full([8 * T], float("-inf"), tl.float32)
    for start in range(0, chunks, 8 * T):
        z = tl.maximum(z, tl.load(maxima_ptr + start + c, mask=start + c < chunks, other=float("-inf")))
    distance = (best - z) * rate
    amount = tl.where(z > float("-inf"), tl.exp(-distance) if BY_MASS else 1.0, 0.0)
    key = tl.full([], 0, tl.int32)
    for bit in range(0, 10):
        tried = key + (512 >> bit)
        reached = tl.sum(tl.where(distance < float_of_key(tried), amount, 0.0), 0)
        key = tl.where(reached < wanted, tried, key)
    # `key` is the greatest key that is not enough, so the next one is. No key follows 1023: there is no bound.
    limit = float_of_key(key + 1) / rate
    bound = best - limit * 1.00001 - 1e-6 * tl.abs(best)
    return tl.where(key == 1023, float("-inf"), bound)


@triton.jit
def float_of_key(key):
    """Return the positive float with the bits `key`, int32: 5 of an exponent from -16 on, 5 of the mantissa."""
    return ((key + (111 << 5)) << 18).to(tl.float32, bitcast=True)


@triton.jit
def next_above(z):
    """Return the least float32 above a finite one."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)  # -0.0 becomes 0.0
    return tl.where(bits >= 0, bits + 1, bits - 1).to(tl.float32, bitcast=True)


@triton.jit
def amount_above(z_ptr, other, valid, z, above_z, token, bans, best, per_bit):
    """Return 2^(per_bit * (y - best)) for each other token, of logit y, that precedes `token` by score; 0 for the rest.

    Args:
        z_ptr, other, valid: pointers to the logits y of the other tokens, their ids, and a mask of those that exist.
        z, above_z, token: logit of the token, the next float above it, and its id.
    """
    y = tl.load(z_ptr, mask=valid, other=float("-inf")).to(tl.float32)
    if bans.count > 0:
        y = tl.where(is_allowed(other, bans), y, float("-inf"))
    return tl.where(y >= tl.where(other < token, z, above_z), tl.exp2((y - best) * per_bit), 0.0)


@triton.jit
def is_cut_off(row, z, token, maxima_ptr, hits_ptr, best, rate, cuts,
               T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return whether top-k, or else top-p, does not keep a token with logit z. One of them is on.

    The chunk maxima above z may be enough to know. If not, the chunks that reach it are read.
    """
    by_count = (cuts.top_k > 0) & (cuts.top_k < row.vocab_size)
    most = tl.where(by_count, cuts.top_k.to(tl.float32), cuts.top_p * cuts.mass)
    per_bit = tl.where(by_count, 0.0, rate * 1.4426950408889634)  # 2^0 = 1 per token, or exp(x) = 2^(x log2 e)
    chunks = chunk_count(row, T, G, R)
    i = tl.arange(0, 4 * T)
    least = tl.zeros([4 * T], tl.float32)
    for start in range(0, chunks, 4 * T):
        y = tl.load(maxima_ptr + start + i, mask=start + i < chunks, other=float("-inf"))
        least += tl.where(y > z, tl.exp2((y - best) * per_bit), 0.0)
    result = tl.sum(least, 0) * 0.9999 >= most  # less by more than any difference in rounding
    if not result:
        above_z = next_above(z)
        edge, on_edge = edge_tokens(row, G)
        z_ptr = row.logits_ptr + edge
        on_edges = tl.sum(amount_above(z_ptr, edge, on_edge, z, above_z, token, row.bans, best, per_bit), 0)
        hit_count = chunks_reaching(maxima_ptr, chunks, z, hits_ptr, T)
        total = tl.zeros([T, G], tl.float32)
        lane = tl.arange(0, T)  # one thread reads a group
        for start in range(0, hit_count, T // R):
            index = start + lane // R
            chunk = tl.load(hits_ptr + index, mask=index < hit_count, other=0)
            place = place_in_chunk(chunk, lane % R * G, T, G, R)
            valid = (index < hit_count) & (place < row.full)
            group = place[:, None] + tl.arange(0, G)[None, :]
            total += amount_above(
                row.groups_ptr + group, group + row.skip, valid[:, None], z, above_z, token, row.bans, best, per_bit
            )  # fmt: skip
        tl.debug_barrier()  # the list of hits has been read
        result = tl.sum(tl.sum(total, 1), 0) + on_edges >= most
    return result


@triton.jit
def draw_by_race(row, bad_ptr, bounds_ptr, maxima_ptr, hits_ptr, top, best, weights, cuts, noise,
                 BAD: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return the :class:`Draw` of a race: one of top-k and top-p may be on if BAD does not count, but not both.

    The winner of a race without top-k and top-p is drawn if they keep it. If not, they keep none of the tokens from
    there on in the order of scores, and the others race again.
    """
    rates = rates_of(weights)
    tokens = token_row(row, G)
    reference = Reference(best, tl.full([], 0.0, tl.float32), tl.full([], 0, tl.int32))
    if BAD != NO_BAD:  # noqa: SIM102 (one condition is decided by the compiler, the other by the device)
        if weights.contrast_strength != 0:
            reference = reference_of_race(tokens, bad_ptr, bounds_ptr, top, rates, T, G, R)
    token = tl.full([], 0, tl.int32)
    score = tl.full([], 0.0, tl.float32)
    outside_z = tl.full([], float("-inf"), tl.float32)
    outside_token = tl.full([], 0, tl.int32)
    racing = tl.full([], 1, tl.int32)
    while racing > 0:
        token, score = race(
            tokens, bad_ptr, bounds_ptr, top, hits_ptr, weights, reference, noise, outside_z, outside_token,
            BAD, T, G, R,
        )  # fmt: skip
        racing = tl.full([], 0, tl.int32)
        if ((cuts.top_k > 0) & (cuts.top_k < row.vocab_size)) | (cuts.top_p < 1):
            outside_z = tl.load(row.logits_ptr + token).to(tl.float32)
            outside_token = token
            cut_off = is_cut_off(row, outside_z, token, maxima_ptr, hits_ptr, best, rates.good, cuts, T, G, R)
            racing = cut_off.to(tl.int32)
    return Draw(token, score, cuts.mass, token < 0)


@triton.jit
def threshold_of_row(row, method, threshold, maxima_ptr, mass_ptr, parts, best, rate, cuts,
                     LOGPROBS: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return (the threshold of the second pass, -inf if there is none; the mass of all tokens, or -1)."""
    mass = -1.0
    chunks = chunk_count(row, T, G, R)
    if needs_mass(method, cuts, LOGPROBS):
        mass = read_mass(row, mass_ptr, parts, best, rate, T, G)
    if method == GREEDY:
        threshold = best
    if method == TOP_K:
        threshold = bound_by_maxima(maxima_ptr, chunks, best, rate, cuts.top_k.to(tl.float32), False, T)
    if LOGPROBS:  # noqa: SIM102 (one condition is decided by the compiler, the other by the device)
        if method == TOP_P:
            wanted = cuts.top_p * mass * 1.0001  # more than any difference in rounding
            threshold = bound_by_maxima(maxima_ptr, chunks, best, rate, wanted, True, T)
    return threshold, mass
