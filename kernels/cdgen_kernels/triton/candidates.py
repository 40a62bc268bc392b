"""`head` and `sample_candidates` on GPUs, one launch each: the two halves of `sample`, with the candidates between."""

import torch
import triton
import triton.language as tl

from cdgen_kernels.sampling_tensors import Candidates, Samples
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.draw import (
    BAD_DENSE,
    BAD_GATHERED,
    CANDIDATES_OVERFLOW,
    NAN_BAD,
    NAN_GOOD,
    NO_BAD,
    NOTHING_POSSIBLE,
    draw_few,
    draw_many,
)
from cdgen_kernels.triton.passes import (
    collect,
    first_pass,
    is_last_to_arrive,
    row_layout,
    row_maximum,
    second_pass,
)


@triton.jit
def write_in_order(count, list_token, list_logit, token_out, logit_out, T: tl.constexpr):
    """Copy a list of `count` to its place in the order of the token ids: each counts the ids below its own."""
    i = tl.arange(0, T)
    for start in range(0, count, T):
        inside = start + i < count
        token = tl.load(list_token + start + i, mask=inside, other=0)
        logit = tl.load(list_logit + start + i, mask=inside, other=0.0)
        place = tl.zeros([T], tl.int32)
        for j in range(0, count):
            place += (tl.load(list_token + j) < token).to(tl.int32)
        tl.store(token_out + place, token, mask=inside)
        tl.store(logit_out + place, logit, mask=inside)


@triton.jit(
    do_not_specialize=["vocab_size", "banned_count", "chunks_stride", "capacity"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def select_candidates_kernel(
    good, margin, banned, arrivals, maxima, hits, list_token, list_logit, token_out, logit_out, count_out, max_out,
    vocab_size, good_stride, banned_count, chunks_stride, segment, capacity,
    SPLIT: tl.constexpr, CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    skip, full = row_layout(row, good_stride, vocab_size, G)
    groups = good + (row * good_stride + skip) // G * G
    good += row * good_stride
    banned += row * banned_count
    maxima += row * chunks_stride
    hits += row * chunks_stride
    list_token += row * CAPACITY
    list_logit += row * CAPACITY
    token_out += row * capacity
    logit_out += row * capacity

    begin = tl.program_id(1) * segment
    first_pass(groups, begin, tl.minimum(begin + segment, full), maxima, T, G, R)
    if SPLIT and not is_last_to_arrive(arrivals + row, tl.num_programs(1)):
        return
    tl.debug_barrier()
    best, nan_good = row_maximum(good, groups, skip, full, vocab_size, banned, banned_count, maxima, T, G, R)
    fault = tl.where(best == float("-inf"), NOTHING_POSSIBLE, 0)
    fault = tl.where(nan_good > 0, NAN_GOOD, fault)
    best = tl.where(fault == NAN_GOOD, float("nan"), best)  # which no logit reaches
    threshold = tl.where(best == float("inf"), best, best - tl.load(margin + row))
    count = second_pass(
        good, groups, skip, full, vocab_size, threshold, banned, banned_count, maxima, hits, list_token, list_logit,
        CAPACITY, T, G, R,
    )  # fmt: skip

    i = tl.arange(0, T)
    for start in range(tl.minimum(count, capacity), capacity, T):
        tl.store(token_out + start + i, -1, mask=start + i < capacity)
        tl.store(logit_out + start + i, float("-inf"), mask=start + i < capacity)
    if (count <= CAPACITY) & (count <= capacity):
        write_in_order(count, list_token, list_logit, token_out, logit_out, T)
    else:  # the whole row in order, which needs no sorting
        written = 0
        for start in range(0, vocab_size, T):
            token = start + i
            written = collect(
                good,
                token,
                token < vocab_size,
                threshold,
                banned,
                banned_count,
                token_out,
                logit_out,
                written,
                capacity,
            )
    tl.store(count_out + row, tl.where(fault < 0, fault, count))
    tl.store(max_out + row, best)


def select_candidates(good, margin, banned, vocab_size, capacity):
    """:func:`cdgen_kernels.reference.sampling.head` in one launch; same arguments."""
    batch = good.shape[0]
    token = good.new_empty((batch, capacity), dtype=torch.int32)
    logit = good.new_empty((batch, capacity), dtype=torch.float32)
    count = good.new_empty(batch, dtype=torch.int32)
    best = good.new_empty(batch, dtype=torch.float32)
    if batch:
        shape = settings.split(good, vocab_size)
        select_candidates_kernel[(batch, shape.programs)](
            good, margin, token if banned is None else banned, *shape.scratch(good), token, logit, count, best,
            vocab_size, good.stride(0), 0 if banned is None else banned.shape[1],
            shape.chunks, shape.segment, capacity,
            SPLIT=shape.programs > 1, CAPACITY=settings.CAPACITY, T=settings.THREADS, G=shape.group, R=settings.GROUPS,
            **settings.launch_options(),
        )  # fmt: skip
    return Candidates(token, logit, count, best)


@triton.jit(do_not_specialize=["capacity"], do_not_specialize_on_alignment=settings.SCALAR_POINTERS)
def sample_candidates_kernel(
    token, logit, count, maximum, bad, good_weight, contrast_strength, temperature, top_p, top_k, seed, sequence,
    position, scores, token_out, logprob_out, bad_stride, capacity,
    BAD: tl.constexpr, LOGPROBS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    size = tl.load(count + row)
    n = tl.minimum(tl.maximum(size, 0), capacity)
    t = tl.load(temperature + row)
    slots = (True, n, token + row * capacity, logit + row * capacity)
    best = tl.load(maximum + row)
    logits = (logit, bad + row * bad_stride, token, 0, float("-inf"), best)
    weights = (tl.load(good_weight + row), tl.load(contrast_strength + row), tl.where(t == 0, 1.0, t))
    cuts = (tl.load(top_k + row), tl.load(top_p + row), -1.0)
    noise = (tl.load(seed + row), tl.load(sequence + row), tl.load(position + row), t)
    if n <= T:
        drawn, score, top, mass, nan_bad = draw_few(slots, logits, weights, cuts, noise, scores + row * T, BAD, T)
    else:
        drawn, score, top, mass, nan_bad = draw_many(
            slots, logits, weights, (0.0, 0.0, 0.0, False), cuts, noise, BAD, 0, LOGPROBS, 4 * T
        )
    if LOGPROBS:
        tl.store(logprob_out + row, score - top - tl.log(mass))
    result = tl.where(nan_bad > 0, NAN_BAD, drawn)
    result = tl.where(size > capacity, CANDIDATES_OVERFLOW, result)
    tl.store(token_out + row, tl.where(size < 0, size, result).to(tl.int64))


def sample_candidates(candidates, bad, sampling, vocab_size, gathered, logprobs):
    """:func:`cdgen_kernels.reference.sampling.sample_candidates` in one launch; same arguments, float32 arithmetic.

    It follows the list, and so has no need of vocab_size.
    """
    batch, capacity = candidates.token.shape
    token = candidates.token.new_empty(batch, dtype=torch.int64)
    logprob = candidates.logit.new_empty(batch if logprobs else 0)
    if batch:
        sample_candidates_kernel[(batch,)](
            *candidates, candidates.logit if bad is None else bad, *sampling[1:],
            candidates.logit.new_empty((batch, settings.THREADS)), token, logprob,
            0 if bad is None else bad.stride(0), capacity,
            BAD=(NO_BAD if bad is None else BAD_GATHERED if gathered else BAD_DENSE).value,
            LOGPROBS=logprobs, T=settings.THREADS, **settings.launch_options(),
        )  # fmt: skip
    return Samples(token, logprob if logprobs else None)
