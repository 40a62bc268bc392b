"""`sample` on GPUs in one launch, one program a row: two looks at GOOD's logits, then the rest on the head's tokens.

A head longer than the list, or a mode that gives tokens outside the head a score, takes the row instead of the list:
the same code over the whole vocabulary, decided on the device.
"""

import torch
import triton
import triton.language as tl

from cdgen_kernels.rows import Samples
from cdgen_kernels.triton_draw import (
    NAN_BAD,
    NAN_GOOD,
    NOTHING_POSSIBLE,
    log_probability,
    log_sum_exp,
    order_key,
    score_tile,
)
from cdgen_kernels.triton_looks import first_look, row_layout, second_look
from cdgen_kernels.triton_noise import gumbel, philox_word

# Launch settings; none has been measured on a GPU yet.
NUM_WARPS = 4
GROUPS = 4  # of 16 bytes, read by a thread at once
CAPACITY = 256  # tokens of a head that take the short path


@triton.jit(do_not_specialize=["vocab_size", "banned_count", "chunks_stride", "batch"])
def sample_kernel(
    good, bad, margin, good_weight, contrast_strength, temperature, top_p, top_k, seed, sequence, position, banned,
    maxima, hits, found, token_out, logprobs_out,
    vocab_size, good_stride, bad_stride, banned_count, chunks_stride, batch, value,
    HAS_BAD: tl.constexpr, OUTSIDE: tl.constexpr, LOGPROBS: tl.constexpr,
    CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    skip, full = row_layout(row, good_stride, vocab_size, G)
    groups = good + (row * good_stride + skip) // G * G
    good += row * good_stride
    bad += row * bad_stride
    banned += row * banned_count
    maxima += row * chunks_stride
    hits += row * chunks_stride
    found += row * CAPACITY

    best, nan_good = first_look(good, groups, skip, full, vocab_size, banned, banned_count, maxima, T, G, R)
    threshold = tl.where(best == float("inf"), best, best - tl.load(margin + row))
    count = second_look(
        good, groups, skip, full, vocab_size, threshold, banned, banned_count, maxima, hits, found, CAPACITY, T, G, R
    )

    weight = tl.load(good_weight + row)
    strength = tl.load(contrast_strength + row)
    t = tl.load(temperature + row)
    scale = tl.where(t == 0, 1.0, t)
    p = tl.load(top_p + row)
    k = tl.load(top_k + row).to(tl.int32)
    listed = (count <= CAPACITY) & (OUTSIDE == 0)
    n = tl.where(listed, count, vocab_size)
    head = (listed, count, found, threshold, best)
    logits = (good, bad, vocab_size, banned, banned_count)
    weights = (weight, strength, scale)
    i = tl.arange(0, T)
    nan_bad = 0
    shift = value
    good_log_sum = 0.0
    bad_log_sum = 0.0
    bad_at_infinity = False
    if OUTSIDE == 1:
        good_log_sum, _ = log_sum_exp(good, vocab_size, scale, banned, banned_count, T * G)
        bad_log_sum = tl.log(vocab_size.to(tl.float32))
        if HAS_BAD:
            bad_log_sum, bad_at_infinity = log_sum_exp(bad, vocab_size, scale, banned, 0, T * G)
            nan_bad = (bad_log_sum != bad_log_sum).to(tl.int32)
    if OUTSIDE == 2:
        worst = tl.full([T], float("inf"), tl.float32)
        below = tl.full([T], float("-inf"), tl.float32)
        for start in range(0, n, T):
            unshifted = (0.0, 0.0, 0.0, False)
            token, score, rank, has_nan = score_tile(start + i, head, logits, weights, unshifted, HAS_BAD, 2)
            z = tl.load(good + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
            worst = tl.minimum(worst, tl.where((rank > -2) & (z >= threshold), score, float("inf")))
            below = tl.maximum(below, tl.where((rank > -2) & (z < threshold), z / scale, float("-inf")))
        shift = tl.min(worst, 0) - tl.max(below, 0)

    outside = (shift, good_log_sum, bad_log_sum, bad_at_infinity)

    # what is kept: the tokens whose order key is at least `least`
    top_rank = -2
    top_score = float("-inf")
    least = tl.full([], 0, tl.int64)
    cut_by_count = (k > 0) & (k < n)
    if cut_by_count | (p < 1) | LOGPROBS:
        ranks = tl.full([T], -2, tl.int32)
        scores = tl.full([T], float("-inf"), tl.float32)
        for start in range(0, n, T):
            token, score, rank, has_nan = score_tile(start + i, head, logits, weights, outside, HAS_BAD, OUTSIDE)
            scores = tl.where(rank > ranks, score, tl.where(rank == ranks, tl.maximum(scores, score), scores))
            ranks = tl.maximum(ranks, rank)
        top_rank = tl.max(ranks, 0)
        top_score = tl.max(tl.where(ranks == top_rank, scores, float("-inf")), 0)
    # Both cuts are the greatest key at which enough is kept, found bit by bit: exact for any number of tokens.
    if cut_by_count:
        for bit in range(0, 62):
            tried = least | (tl.full([], 1, tl.int64) << (61 - bit))
            reached = 0
            for start in range(0, n, T):
                token, score, rank, has_nan = score_tile(start + i, head, logits, weights, outside, HAS_BAD, OUTSIDE)
                key = order_key(score, rank, token)
                reached += tl.sum(((rank > -2) & (key >= tried)).to(tl.int32), 0)
            least = tl.where(reached >= k, tried, least)
    mass = 0.0
    if (p < 1) | LOGPROBS:
        for start in range(0, n, T):
            token, score, rank, has_nan = score_tile(start + i, head, logits, weights, outside, HAS_BAD, OUTSIDE)
            kept = (rank == top_rank) & (order_key(score, rank, token) >= least)
            mass += tl.sum(tl.where(kept, tl.exp(score - top_score), 0.0), 0)
    if p < 1:
        counted = least
        nucleus = tl.full([], 0, tl.int64)
        wanted = p * mass
        for bit in range(0, 62):
            tried = nucleus | (tl.full([], 1, tl.int64) << (61 - bit))
            reached_mass = 0.0
            for start in range(0, n, T):
                token, score, rank, has_nan = score_tile(start + i, head, logits, weights, outside, HAS_BAD, OUTSIDE)
                key = order_key(score, rank, token)
                kept = (rank == top_rank) & (key >= counted) & (key >= tried)
                reached_mass += tl.sum(tl.where(kept, tl.exp(score - top_score), 0.0), 0)
            better = reached_mass >= wanted
            nucleus = tl.where(better, tried, nucleus)
            mass = tl.where(better, reached_mass, mass)
        least = tl.maximum(least, nucleus)

    # the draw
    key_of_noise = tl.load(seed + row)
    text = tl.load(sequence + row)
    at = tl.load(position + row)
    won = tl.full([T], float("-inf"), tl.float32)
    won_rank = tl.full([T], -2, tl.int32)
    won_token = tl.full([T], 0x7FFFFFFF, tl.int32)
    won_score = tl.full([T], float("-inf"), tl.float32)
    for start in range(0, n, T):
        token, score, rank, has_nan = score_tile(start + i, head, logits, weights, outside, HAS_BAD, OUTSIDE)
        nan_bad = tl.maximum(nan_bad, has_nan)
        rank = tl.where(order_key(score, rank, token) >= least, rank, -2)
        noisy = score
        if t > 0:
            noisy = score + gumbel(philox_word(token, key_of_noise, text, at))
        better = (rank > won_rank) | ((rank == won_rank) & ((noisy > won) | ((noisy == won) & (token < won_token))))
        won = tl.where(better, noisy, won)
        won_score = tl.where(better, score, won_score)
        won_token = tl.where(better, token, won_token)
        won_rank = tl.maximum(won_rank, rank)
    in_play = won_rank == tl.max(won_rank, 0)
    highest = tl.max(tl.where(in_play, won, float("-inf")), 0)
    drawn = tl.min(tl.where(in_play & (won == highest), won_token, 0x7FFFFFFF), 0)

    if LOGPROBS:
        at_drawn = tl.max(tl.where(in_play & (won_token == drawn), won_score, float("-inf")), 0)
        z = tl.load(good + drawn, mask=drawn < vocab_size, other=0.0).to(tl.float32)
        all_good, at_infinity = log_sum_exp(good, vocab_size, 1.0, banned, 0, T * G)
        y_logprob = -tl.log(vocab_size.to(tl.float32))
        if HAS_BAD:
            y = tl.load(bad + drawn, mask=drawn < vocab_size, other=0.0).to(tl.float32)
            all_bad, bad_infinite = log_sum_exp(bad, vocab_size, 1.0, banned, 0, T * G)
            nan_bad = tl.maximum(nan_bad, (all_bad != all_bad).to(tl.int32))
            y_logprob = log_probability(y, all_bad, bad_infinite)
        tl.store(logprobs_out + row, at_drawn - top_score - tl.log(mass))
        tl.store(logprobs_out + batch + row, log_probability(z, all_good, at_infinity))
        tl.store(logprobs_out + 2 * batch + row, y_logprob)

    result = drawn.to(tl.int64)
    result = tl.where(nan_bad > 0, NAN_BAD, result)
    result = tl.where(best == float("-inf"), NOTHING_POSSIBLE, result)
    result = tl.where(nan_good > 0, NAN_GOOD, result)
    tl.store(token_out + row, result)


def sample(good, bad, rows, banned, vocab_size, outside, value, logprobs):
    """:func:`cdgen_kernels.reference.sample` in one launch; same arguments, float32 arithmetic."""
    batch = good.shape[0]
    if vocab_size >= 1 << 28:
        raise ValueError(f"vocab_size = {vocab_size}: the Triton kernel orders tokens by 28 bits of their id")
    threads = 32 * NUM_WARPS
    group = 16 // good.element_size()
    chunks = triton.cdiv(vocab_size, threads * group * GROUPS) * threads
    maxima = good.new_empty((batch, chunks), dtype=torch.float32)
    hits = good.new_empty((batch, chunks), dtype=torch.int32)
    found = good.new_empty((batch, CAPACITY), dtype=torch.int32)
    token = good.new_empty(batch, dtype=torch.int64)
    out = good.new_empty((3, batch if logprobs else 0), dtype=torch.float32)
    if batch:
        sample_kernel[(batch,)](
            good, good if bad is None else bad, *rows, token if banned is None else banned,
            maxima, hits, found, token, out,
            vocab_size, good.stride(0), 0 if bad is None else bad.stride(0), 0 if banned is None else banned.shape[1],
            chunks, batch, float(value),
            HAS_BAD=bad is not None, OUTSIDE=outside, LOGPROBS=logprobs,
            CAPACITY=CAPACITY, T=threads, G=group, R=GROUPS,
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return Samples(token, *out.unbind(0)) if logprobs else Samples(token)
