"""`sample` on GPUs in one launch: two looks at GOOD's logits, then the rest on the head's tokens.

Where there are fewer rows than the device has room for, several programs share a row's first look, and the last of
them to finish does the rest. A head longer than the list, or a mode that gives tokens outside the head a score, takes
the row instead of the list: the same code over the whole vocabulary, decided on the device.

Methods without a head (alpha = 0): top-k and top-p over the whole vocabulary keep only tokens above a bound that the
chunks' maxima give, so they become a short list too. Ancestral sampling needs noise for every token.
"""

import torch
import triton
import triton.language as tl

from cdgen_kernels.sampling_tensors import Samples
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.draw import (
    BAD_DENSE,
    NAN_BAD,
    NAN_GOOD,
    NO_BAD,
    NOTHING_POSSIBLE,
    draw_few,
    draw_many,
    log_probability,
    log_sum_exp,
    score_tile,
)
from cdgen_kernels.triton.passes import (
    bound_by_chunks,
    first_pass,
    is_allowed,
    is_last_to_arrive,
    row_layout,
    row_maximum,
    second_pass,
)


@triton.jit
def mass_of_row(good, vocab_size, best, scale, banned, banned_count, N: tl.constexpr):
    """Sum of exp((z - best) / scale) over the tokens that are not banned."""
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for start in range(0, vocab_size, N):
        inside = (start + i < vocab_size) & is_allowed(start + i, banned, banned_count)
        z = tl.load(good + start + i, mask=inside, other=float("-inf")).to(tl.float32)
        total += tl.exp((z - best) / scale)
    return tl.sum(total, 0)


@triton.jit(
    do_not_specialize=["vocab_size", "banned_count", "chunks_stride", "batch"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def sample_kernel(
    good, bad, margin, good_weight, contrast_strength, temperature, top_p, top_k, seed, sequence, position, banned,
    arrivals, maxima, hits, list_token, list_logit, scores, token_out, logprobs_out,
    vocab_size, good_stride, bad_stride, banned_count, chunks_stride, batch, segment, value,
    BAD: tl.constexpr, OUTSIDE: tl.constexpr, LOGPROBS: tl.constexpr, SPLIT: tl.constexpr,
    CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = 4 * T
    row = tl.program_id(0).to(tl.int64)
    skip, full = row_layout(row, good_stride, vocab_size, G)
    groups = good + (row * good_stride + skip) // G * G
    good += row * good_stride
    bad += row * bad_stride
    banned += row * banned_count
    maxima += row * chunks_stride
    hits += row * chunks_stride
    list_token += row * CAPACITY
    list_logit += row * CAPACITY
    scores += row * T

    begin = tl.program_id(1) * segment
    first_pass(groups, begin, tl.minimum(begin + segment, full), maxima, T, G, R)
    if SPLIT and not is_last_to_arrive(arrivals + row, tl.num_programs(1)):
        return
    tl.debug_barrier()
    best, nan_good = row_maximum(good, groups, skip, full, vocab_size, banned, banned_count, maxima, T, G, R)
    chunks = (full + T * G * R - 1) // (T * G * R) * T

    m = tl.load(margin + row)
    weight = tl.load(good_weight + row)
    strength = tl.load(contrast_strength + row)
    t = tl.load(temperature + row)
    scale = tl.where(t == 0, 1.0, t)
    p = tl.load(top_p + row)
    k = tl.load(top_k + row).to(tl.int32)

    # A cut of GOOD's own scores over the whole vocabulary: a bound below which nothing is kept serves as the threshold.
    threshold = tl.where(best == float("inf"), best, best - m)
    total = -1.0
    if OUTSIDE == 0:
        of_good_alone = (weight > 0) & (best < float("inf")) & (best > float("-inf"))
        if BAD != NO_BAD:
            of_good_alone = of_good_alone & (strength == 0)
        if (m == float("inf")) & of_good_alone & (vocab_size > CAPACITY):
            if (k > 0) & (k < vocab_size):
                threshold = bound_by_chunks(maxima, chunks, best, scale / weight, k.to(tl.float32), False, T)
            elif p < 1:
                total = mass_of_row(good, vocab_size, best, scale / weight, banned, banned_count, N)
                wanted = p * total * 1.0001  # more than any difference in rounding
                threshold = bound_by_chunks(maxima, chunks, best, scale / weight, wanted, True, T)
    count = vocab_size
    if (threshold > float("-inf")) | (vocab_size <= CAPACITY):
        count = second_pass(
            good, groups, skip, full, vocab_size, threshold, banned, banned_count, maxima, hits, list_token,
            list_logit, CAPACITY, T, G, R,
        )  # fmt: skip

    listed = (count <= CAPACITY) & (OUTSIDE == 0)
    slots = (listed, tl.where(listed, count, vocab_size), list_token, list_logit)
    logits = (good, bad, banned, banned_count, threshold, best)
    weights = (weight, strength, scale)
    noise = (tl.load(seed + row), tl.load(sequence + row), tl.load(position + row), t)
    nan_bad = 0
    if OUTSIDE == 0:
        if listed & (count <= T):
            drawn, score, top, mass, nan_bad = draw_few(slots, logits, weights, (k, p, total), noise, scores, BAD, T)
        else:
            drawn, score, top, mass, nan_bad = draw_many(
                slots, logits, weights, (0.0, 0.0, 0.0, False), (k, p, total), noise, BAD, OUTSIDE, LOGPROBS, N
            )
    else:
        shift = value
        good_log_sum = 0.0
        bad_log_sum = 0.0
        bad_at_infinity = False
        if OUTSIDE == 1:
            good_log_sum, _ = log_sum_exp(good, vocab_size, scale, banned, banned_count, N)
            bad_log_sum = tl.log(vocab_size.to(tl.float32))
            if BAD != NO_BAD:
                bad_log_sum, bad_at_infinity = log_sum_exp(bad, vocab_size, scale, banned, 0, N)
                nan_bad = (bad_log_sum != bad_log_sum).to(tl.int32)
        else:
            i = tl.arange(0, N)
            worst = tl.full([N], float("inf"), tl.float32)
            below = tl.full([N], float("-inf"), tl.float32)
            for start in range(0, vocab_size, N):
                unshifted = (0.0, 0.0, 0.0, False)
                token, score_here, rank, _ = score_tile(start + i, slots, logits, weights, unshifted, BAD, 2)
                z = tl.load(good + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
                worst = tl.minimum(worst, tl.where((rank > -2) & (z >= threshold), score_here, float("inf")))
                below = tl.maximum(below, tl.where((rank > -2) & (z < threshold), z / scale, float("-inf")))
            shift = tl.min(worst, 0) - tl.max(below, 0)
        outside = (shift, good_log_sum, bad_log_sum, bad_at_infinity)
        drawn, score, top, mass, nan_drawn = draw_many(
            slots, logits, weights, outside, (k, p, total), noise, BAD, OUTSIDE, LOGPROBS, N
        )
        nan_bad = tl.maximum(nan_bad, nan_drawn)

    if LOGPROBS:
        z = tl.load(good + drawn, mask=drawn < vocab_size, other=0.0).to(tl.float32)
        all_good, at_infinity = log_sum_exp(good, vocab_size, 1.0, banned, 0, N)
        y_logprob = -tl.log(vocab_size.to(tl.float32))
        if BAD != NO_BAD:
            y = tl.load(bad + drawn, mask=drawn < vocab_size, other=0.0).to(tl.float32)
            all_bad, bad_infinite = log_sum_exp(bad, vocab_size, 1.0, banned, 0, N)
            nan_bad = tl.maximum(nan_bad, (all_bad != all_bad).to(tl.int32))
            y_logprob = log_probability(y, all_bad, bad_infinite)
        tl.store(logprobs_out + row, score - top - tl.log(mass))
        tl.store(logprobs_out + batch + row, log_probability(z, all_good, at_infinity))
        tl.store(logprobs_out + 2 * batch + row, y_logprob)

    result = drawn.to(tl.int64)
    result = tl.where(nan_bad > 0, NAN_BAD, result)
    result = tl.where(best == float("-inf"), NOTHING_POSSIBLE, result)
    result = tl.where(nan_good > 0, NAN_GOOD, result)
    tl.store(token_out + row, result)


def contrastive_sample(good, bad, sampling, banned, vocab_size, outside, value, logprobs):
    """:func:`cdgen_kernels.reference.sampling.sample` in one launch; same arguments, float32 arithmetic."""
    batch = good.shape[0]
    if vocab_size >= 1 << 28:
        raise ValueError(f"vocab_size = {vocab_size}: the Triton kernel orders tokens by 28 bits of their id")
    token = good.new_empty(batch, dtype=torch.int64)
    out = good.new_empty((3, batch if logprobs else 0), dtype=torch.float32)
    if batch:
        shape = settings.split(good, vocab_size)
        sample_kernel[(batch, shape.programs)](
            good, good if bad is None else bad, *sampling, token if banned is None else banned,
            *shape.scratch(good), good.new_empty((batch, settings.THREADS), dtype=torch.float32), token, out,
            vocab_size, good.stride(0), 0 if bad is None else bad.stride(0), 0 if banned is None else banned.shape[1],
            shape.chunks, batch, shape.segment, float(value),
            BAD=(NO_BAD if bad is None else BAD_DENSE).value, OUTSIDE=outside, LOGPROBS=logprobs,
            SPLIT=shape.programs > 1, CAPACITY=settings.CAPACITY, T=settings.THREADS, G=shape.group, R=settings.GROUPS,
            **settings.launch_options(),
        )  # fmt: skip
    return Samples(token, *out.unbind(0)) if logprobs else Samples(token)
