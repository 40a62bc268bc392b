"""`contrastive_sample` on GPUs in one launch: two passes over GOOD's logits, then everything else on the candidates.

If there are fewer rows than the device has room for, several programs share a row's first pass, and the last one to
finish does the rest. If there are more candidates than the list holds, or tokens outside the candidates have a score,
the same code runs on the whole row instead of the list. The device decides that.

Methods without candidates (alpha = 0) use the chunk maxima, too: some list the few tokens above a bound, the others
need noise for every token and share that work among the row's programs. See whole_row.py.
"""

import torch
import triton
import triton.language as tl

from cdgen_kernels.sampling_tensors import Samples, SamplingTensors
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.constants import BAD_DENSE, CONSTANT, INVALID_PARAMETERS, MASK, NAN_BAD, NO_BAD, SHIFTED_GOOD
from cdgen_kernels.triton.draw import Cuts, Noise, draw_few, draw_many
from cdgen_kernels.triton.lists import second_pass
from cdgen_kernels.triton.passes import (
    Bans,
    CandidateList,
    arrive,
    candidate_threshold,
    find_row,
    first_pass,
    leave_out_banned,
    parameters_are_valid,
    row_maximum,
    with_fault,
)
from cdgen_kernels.triton.race import greatest_bound, rates_of, token_row
from cdgen_kernels.triton.scores import (
    Entries,
    Logits,
    Outside,
    Weights,
    effective,
    find_reference,
    finite,
    log_sum_exp,
    nothing_outside,
    score_tile,
)
from cdgen_kernels.triton.whole_row import (
    CANDIDATES,
    RACE,
    draw_by_race,
    method_of_row,
    share_work,
    threshold_of_row,
)


@triton.jit
def constant_outside(row, entries, logits, weights, value, BAD: tl.constexpr, N: tl.constexpr):
    """Return (:class:`Outside`, :class:`Reference`, whether BAD's normaliser is undefined) of the mode CONSTANT.

    Scores are relative to the reference's, and so is the constant. The reference's own score is the contrast of its
    log-probabilities.
    """
    scale = weights.scale
    good = log_sum_exp(row.logits_ptr, row.vocab_size, scale, row.bans, N)
    if BAD == NO_BAD:
        bad_at_infinity = False
        undefined = False
        reference = find_reference(entries, logits, weights, nothing_outside(), BAD, CONSTANT, N)
        bad_logprob = -tl.log(row.vocab_size.to(tl.float32))
    else:
        bad = log_sum_exp(logits.bad_ptr, row.vocab_size, scale, Bans(row.bans.token_ptr, 0), N)
        bad_at_infinity = bad.at_infinity
        undefined = (bad.log_sum != bad.log_sum) & (weights.contrast_strength != 0)
        reference = find_reference(entries, logits, weights, Outside(0.0, 0.0, bad_at_infinity), BAD, CONSTANT, N)
        bad_logprob = finite(finite(reference.bad - bad.top) / scale) - bad.log_sum
    good_logprob = finite(finite(reference.good - good.top) / scale) - good.log_sum
    contrasted = tl.where(weights.contrast_strength == 0, 0.0, weights.contrast_strength * bad_logprob)
    score = finite(weights.good_weight * good_logprob) - finite(contrasted)
    return Outside(finite(value - finite(score)), 0.0, bad_at_infinity), reference, undefined


@triton.jit
def shifted_outside(entries, logits, weights, vocab_size, BAD: tl.constexpr, N: tl.constexpr):
    """Return (:class:`Outside`, :class:`Reference`) of the mode SHIFTED_GOOD.

    The best other token gets the worst candidate's score.
    """
    reference = find_reference(entries, logits, weights, nothing_outside(), BAD, SHIFTED_GOOD, N)
    i = tl.arange(0, N)
    worst = tl.full([N], float("inf"), tl.float32)
    below = tl.full([N], float("-inf"), tl.float32)
    for start in range(0, vocab_size, N):
        token, score, rank = score_tile(
            start + i, entries, logits, weights, nothing_outside(), reference, BAD, SHIFTED_GOOD
        )  # fmt: skip
        z = tl.load(logits.good_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
        worst = tl.minimum(worst, tl.where((rank > -2) & (z >= logits.threshold), score, float("inf")))
        below = tl.maximum(below, tl.where((rank > -2) & (z < logits.threshold), z, float("-inf")))
    return Outside(tl.min(worst, 0), tl.max(below, 0), False), reference


@triton.jit
def log_probability_of(token, logits_ptr, vocab_size, bans, N: tl.constexpr):
    """Return the log-probability of a token under logits [vocab_size]; NaN if that is undefined."""
    row = log_sum_exp(logits_ptr, vocab_size, 1.0, bans, N)
    z = tl.load(logits_ptr + token, mask=token < vocab_size, other=0.0).to(tl.float32)
    return effective(z, row.at_infinity) - row.top - row.log_sum


@triton.jit
def store_logprobs(drawn, row, bad_ptr, logprobs_ptr, batch, BAD: tl.constexpr, N: tl.constexpr):
    """Write three log-probabilities of the drawn token to column 0 of logprobs [3, batch].

    The first is that of the sampled distribution, the others are GOOD's and BAD's, without bans and at temperature 1.
    """
    no_bans = Bans(row.bans.token_ptr, 0)
    bad_logprob = -tl.log(row.vocab_size.to(tl.float32))
    if BAD != NO_BAD:
        bad_logprob = log_probability_of(drawn.token, bad_ptr, row.vocab_size, no_bans, N)
    tl.store(logprobs_ptr, drawn.score - tl.log(drawn.mass))
    tl.store(logprobs_ptr + batch, log_probability_of(drawn.token, row.logits_ptr, row.vocab_size, no_bans, N))
    tl.store(logprobs_ptr + 2 * batch, bad_logprob)


@triton.jit
def parameters_of_row(good_weight_ptr, contrast_strength_ptr, temperature_ptr, top_p_ptr, top_k_ptr,
                      seed_ptr, sequence_ptr, position_ptr):  # fmt: skip
    """Return (:class:`Weights`, :class:`Cuts`, :class:`Noise`) of row program_id(0)."""
    number = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + number)
    weights = Weights(
        tl.load(good_weight_ptr + number),
        tl.load(contrast_strength_ptr + number),
        tl.where(temperature == 0, 1.0, temperature),
    )
    noise = Noise(
        tl.load(seed_ptr + number), tl.load(sequence_ptr + number), tl.load(position_ptr + number), temperature
    )
    cuts = Cuts(tl.load(top_k_ptr + number).to(tl.int32), tl.load(top_p_ptr + number), -1.0)
    return weights, cuts, noise


@triton.jit(
    do_not_specialize=["vocab_size", "banned_count", "batch"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def contrastive_sample_kernel(
    # GOOD's and BAD's logits, [B, V'] and [B, V''], with unit stride along V'
    good_ptr, bad_ptr,
    # SamplingTensors, each [B]
    margin_ptr, good_weight_ptr, contrast_strength_ptr, temperature_ptr, top_p_ptr, top_k_ptr,
    seed_ptr, sequence_ptr, position_ptr,
    # banned tokens, int64 [B, banned_count]
    banned_ptr,
    # scratch: settings.Scratch, float32 [B, chunks] and [B, 2 * the greater of T and the number of programs]
    arrivals_ptr, maxima_ptr, hits_ptr, list_token_ptr, list_logit_ptr, bounds_ptr, scores_ptr,
    # results: int64 [B], and if LOGPROBS float32 [3, B]
    token_out_ptr, logprobs_out_ptr,
    # sizes; a segment is what one program reads in the first pass, and value the score of the mode CONSTANT
    vocab_size, good_stride, bad_stride, banned_count, chunks_stride, batch, segment, value,
    BAD: tl.constexpr, OUTSIDE: tl.constexpr, LOGPROBS: tl.constexpr, SPLIT: tl.constexpr,
    CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Draw one token per row. Grid: (B, programs per row; more than 1 if SPLIT)."""
    N: tl.constexpr = 4 * T
    number = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(1)
    bad_ptr += number * bad_stride
    maxima_ptr += number * chunks_stride
    bounds_ptr += number * chunks_stride
    hits_ptr += number * chunks_stride
    candidates = CandidateList(list_token_ptr + number * CAPACITY, list_logit_ptr + number * CAPACITY)
    scores_ptr += number * 2 * tl.maximum(T, programs)
    row = find_row(good_ptr, good_stride, vocab_size, banned_ptr, banned_count, G)
    begin = tl.program_id(1) * segment
    first_pass(row.groups_ptr, begin, tl.minimum(begin + segment, row.full), maxima_ptr, T, G, R)
    method = 0
    if OUTSIDE == MASK:
        leave_out_banned(row, maxima_ptr, begin, begin + segment, 1.0, 0.0, T, G, R)
        if tl.load(margin_ptr + number) == float("inf"):
            weights, cuts, noise = parameters_of_row(
                good_weight_ptr, contrast_strength_ptr, temperature_ptr, top_p_ptr, top_k_ptr,
                seed_ptr, sequence_ptr, position_ptr,
            )  # fmt: skip
            method = method_of_row(vocab_size, weights, cuts, noise.temperature, BAD, LOGPROBS, CAPACITY, T)
            mass_ptr = scores_ptr + 2 * tl.program_id(1)
            share_work(
                row, bad_ptr, method, maxima_ptr, bounds_ptr, mass_ptr, begin, begin + segment, weights, cuts, noise,
                BAD, LOGPROBS, T, G, R,
            )  # fmt: skip
    if not arrive(arrivals_ptr, SPLIT):
        return
    if OUTSIDE != MASK:
        leave_out_banned(row, maxima_ptr, 0, vocab_size, 1.0, 0.0, T, G, R)

    best, nan_good = row_maximum(row, maxima_ptr, T, G, R)
    margin = tl.load(margin_ptr + number)
    weights, cuts, noise = parameters_of_row(
        good_weight_ptr, contrast_strength_ptr, temperature_ptr, top_p_ptr, top_k_ptr,
        seed_ptr, sequence_ptr, position_ptr,
    )  # fmt: skip
    valid = (margin >= 0) & parameters_are_valid(
        weights.good_weight, weights.contrast_strength, noise.temperature, cuts.top_p, cuts.top_k
    )
    fault = tl.where(valid, with_fault(0, best, nan_good), INVALID_PARAMETERS)
    tl.store(token_out_ptr + number, fault.to(tl.int64))  # stored until the end, since registers are scarce
    rates = rates_of(weights)
    mass = -1.0
    threshold = candidate_threshold(best, margin)
    top = 0.0
    if method != CANDIDATES:
        if (best > float("-inf")) & (best < float("inf")):
            threshold, mass = threshold_of_row(
                row, method, threshold, maxima_ptr, scores_ptr, programs, best, rates.good, cuts, LOGPROBS, T, G, R
            )
            if method == RACE:
                top = greatest_bound(token_row(row, G), bad_ptr, bounds_ptr, rates, BAD, T, G, R)
        is_finite = (tl.abs(best) < float("inf")) & (tl.abs(top) < float("inf"))
        method = tl.where(is_finite, method, CANDIDATES)  # infinite logits or scores are not raced
    count = vocab_size
    if (threshold > float("-inf")) | (vocab_size <= CAPACITY):
        count = second_pass(row, threshold, maxima_ptr, hits_ptr, candidates, CAPACITY, T, G, R)

    listed = (count <= CAPACITY) & (OUTSIDE == MASK)
    entries = Entries(listed, tl.where(listed, count, vocab_size), candidates)
    logits = Logits(row.logits_ptr, bad_ptr, row.bans, threshold, best)
    cuts = Cuts(cuts.top_k, cuts.top_p, mass)
    undefined = False
    if OUTSIDE == MASK:
        if listed & (count <= T):
            drawn = draw_few(entries, logits, weights, cuts, noise, scores_ptr, BAD, T)
        elif method == RACE:
            drawn = draw_by_race(
                row, bad_ptr, bounds_ptr, maxima_ptr, hits_ptr, top, best, weights, cuts, noise, BAD, T, G, R
            )
        else:
            outside = nothing_outside()
            reference = find_reference(entries, logits, weights, outside, BAD, MASK, N)
            drawn = draw_many(entries, logits, weights, outside, reference, cuts, noise, BAD, MASK, LOGPROBS, N)
    else:
        if OUTSIDE == CONSTANT:
            outside, reference, undefined = constant_outside(row, entries, logits, weights, value, BAD, N)
        else:
            outside, reference = shifted_outside(entries, logits, weights, vocab_size, BAD, N)
        drawn = draw_many(entries, logits, weights, outside, reference, cuts, noise, BAD, OUTSIDE, LOGPROBS, N)
    if LOGPROBS:
        store_logprobs(drawn, row, bad_ptr, logprobs_out_ptr + number, batch, BAD, N)
    result = tl.where(drawn.bad_has_nan | undefined, NAN_BAD, drawn.token.to(tl.int64))
    tl.debug_barrier()
    fault = tl.load(token_out_ptr + number)
    tl.debug_barrier()
    tl.store(token_out_ptr + number, tl.where(fault < 0, fault, result))


def contrastive_sample(
    good: torch.Tensor,
    bad: torch.Tensor | None,
    sampling: SamplingTensors,
    banned: torch.Tensor | None,
    vocab_size: int,
    outside: int,
    value: float,
    logprobs: bool,
) -> Samples:
    """Compute :func:`cdgen_kernels.reference.sampling.contrastive_sample` in one launch, in float32 arithmetic.

    Args:
        good, bad: logits [B, V'] and [B, V''], float16, bfloat16 or float32, with unit stride along V'.
        sampling: the rows' parameters. banned: int64 [B, N], contiguous, or None.
        outside, value: a mode of :mod:`cdgen_kernels.codes`, and the score of its CONSTANT.
    Raises:
        ValueError: the vocabulary has 2^28 or more tokens.
    """
    batch = good.shape[0]
    if vocab_size >= 1 << 28:
        raise ValueError(f"vocab_size = {vocab_size}: the Triton kernel orders tokens by 28 bits of their id")
    token = good.new_empty(batch, dtype=torch.int64)
    out = good.new_empty((3, batch if logprobs else 0), dtype=torch.float32)
    if batch:
        shape = settings.split(good, vocab_size)
        contrastive_sample_kernel[(batch, shape.programs)](
            good, good if bad is None else bad, *sampling, token if banned is None else banned,
            *shape.scratch(good), good.new_empty((batch, shape.chunks), dtype=torch.float32),
            good.new_empty((batch, 2 * max(settings.THREADS, shape.programs)), dtype=torch.float32), token, out,
            vocab_size, good.stride(0), 0 if bad is None else bad.stride(0), 0 if banned is None else banned.shape[1],
            shape.chunks, batch, shape.segment, float(value),
            BAD=(NO_BAD if bad is None else BAD_DENSE).value, OUTSIDE=outside, LOGPROBS=logprobs,
            SPLIT=shape.programs > 1, CAPACITY=settings.CAPACITY, T=settings.THREADS, G=shape.group, R=settings.GROUPS,
            **settings.launch_options(),
        )  # fmt: skip
    return Samples(token, *out.unbind(0)) if logprobs else Samples(token)
