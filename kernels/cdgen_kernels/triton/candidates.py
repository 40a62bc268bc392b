"""`select_candidates` and `sample_candidates` on GPUs in one launch each: the two halves of `contrastive_sample`."""

import torch
import triton
import triton.language as tl

from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors
from cdgen_kernels.triton import settings
from cdgen_kernels.triton.constants import (
    BAD_DENSE,
    BAD_GATHERED,
    CANDIDATES_OVERFLOW,
    INVALID_CANDIDATES,
    INVALID_PARAMETERS,
    MASK,
    NAN_BAD,
    NO_BAD,
    NOTHING_POSSIBLE,
)
from cdgen_kernels.triton.draw import Cuts, Noise, draw_few, draw_many
from cdgen_kernels.triton.lists import collect, second_pass
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
from cdgen_kernels.triton.scores import Entries, Logits, Weights, find_reference, nothing_outside


@triton.jit
def write_in_order(count, candidates, out, T: tl.constexpr):
    """Copy `count` entries of one :class:`CandidateList` to another in the order of the token ids.

    The new place of an entry is the number of entries with a lower id.
    """
    i = tl.arange(0, T)
    for start in range(0, count, T):
        inside = start + i < count
        token = tl.load(candidates.token_ptr + start + i, mask=inside, other=0)
        logit = tl.load(candidates.logit_ptr + start + i, mask=inside, other=0.0)
        place = tl.zeros([T], tl.int32)
        for j in range(0, count):
            place += (tl.load(candidates.token_ptr + j) < token).to(tl.int32)
        tl.store(out.token_ptr + place, token, mask=inside)
        tl.store(out.logit_ptr + place, logit, mask=inside)


@triton.jit(
    do_not_specialize=["vocab_size", "banned_count", "capacity"],
    do_not_specialize_on_alignment=settings.SCALAR_POINTERS,
)
def select_candidates_kernel(
    # GOOD's logits [B, V'] with unit stride along V', float32 [B], int64 [B, banned_count]
    good_ptr, margin_ptr, banned_ptr,
    # scratch: settings.Scratch
    arrivals_ptr, maxima_ptr, hits_ptr, list_token_ptr, list_logit_ptr,
    # results: Candidates, [B, capacity] or [B]
    token_out_ptr, logit_out_ptr, count_out_ptr, max_out_ptr,
    # sizes; a segment is what one program reads in the first pass
    vocab_size, good_stride, banned_count, chunks_stride, segment, capacity,
    SPLIT: tl.constexpr, CAPACITY: tl.constexpr, T: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Write the candidates of each row. Grid: (B, programs per row; more than 1 if SPLIT)."""
    number = tl.program_id(0).to(tl.int64)
    maxima_ptr += number * chunks_stride
    hits_ptr += number * chunks_stride
    candidates = CandidateList(list_token_ptr + number * CAPACITY, list_logit_ptr + number * CAPACITY)
    out = CandidateList(token_out_ptr + number * capacity, logit_out_ptr + number * capacity)
    row = find_row(good_ptr, good_stride, vocab_size, banned_ptr, banned_count, G)
    begin = tl.program_id(1) * segment
    first_pass(row.groups_ptr, begin, tl.minimum(begin + segment, row.full), maxima_ptr, T, G, R)
    if not arrive(arrivals_ptr, SPLIT):
        return
    leave_out_banned(row, maxima_ptr, 0, vocab_size, 1.0, 0.0, T, G, R)
    best, has_nan = row_maximum(row, maxima_ptr, T, G, R)
    best = tl.where(has_nan > 0, float("nan"), best)  # no logit reaches NaN, so the list stays empty
    margin = tl.load(margin_ptr + number)
    threshold = candidate_threshold(best, margin)
    count = second_pass(row, threshold, maxima_ptr, hits_ptr, candidates, CAPACITY, T, G, R)

    i = tl.arange(0, T)
    for start in range(tl.minimum(count, capacity), capacity, T):
        tl.store(out.token_ptr + start + i, -1, mask=start + i < capacity)
        tl.store(out.logit_ptr + start + i, float("-inf"), mask=start + i < capacity)
    if (count <= CAPACITY) & (count <= capacity):
        write_in_order(count, candidates, out, T)
    else:  # read the whole row, which is in order already
        written = 0
        for start in range(0, vocab_size, T):
            token = start + i
            z_ptr = row.logits_ptr + token
            written = collect(z_ptr, token, token < vocab_size, threshold, row.bans, out, written, capacity)
    tl.store(count_out_ptr + number, tl.where(margin >= 0, with_fault(count, best, has_nan), INVALID_PARAMETERS))
    tl.store(max_out_ptr + number, best)


def select_candidates(
    good: torch.Tensor, margin: torch.Tensor, banned: torch.Tensor | None, vocab_size: int, capacity: int
) -> Candidates:
    """Compute :func:`cdgen_kernels.reference.sampling.select_candidates` in one launch.

    Args:
        good: logits [B, V'], float16, bfloat16 or float32, with unit stride along V'.
        margin: float32 [B]. banned: int64 [B, N], contiguous, or None.
    """
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


@triton.jit
def check_list(count, best, candidates, vocab_size, T: tl.constexpr):
    """Return (whether `count` entries could come from `select_candidates`, their greatest logit).

    A list made by hand may hold anything. Ids must ascend within the vocabulary, and logits must be -inf, finite or, if
    the list's `max`, `best`, is, +inf. Otherwise nothing depends on `best`: candidates may have been excluded.
    """
    i = tl.arange(0, T)
    wrong = tl.zeros([T], tl.int32)
    greatest = tl.full([T], float("-inf"), tl.float32)
    for start in range(0, count, T):
        inside = start + i < count
        token = tl.load(candidates.token_ptr + start + i, mask=inside, other=0)
        before = tl.load(candidates.token_ptr + start + i - 1, mask=inside & (start + i > 0), other=-1)
        z = tl.load(candidates.logit_ptr + start + i, mask=inside, other=float("-inf"))
        fits = (z == float("-inf")) | tl.where(best == float("inf"), z == float("inf"), z < float("inf"))
        fits = fits & (token > before) & (token < vocab_size)
        wrong |= tl.where(inside & (fits == 0), 1, 0)
        greatest = tl.maximum(greatest, z)
    return (tl.max(wrong, 0) == 0) & (best > float("-inf")) & (count > 0), tl.max(greatest, 0)


@triton.jit(do_not_specialize=["vocab_size", "capacity"], do_not_specialize_on_alignment=settings.SCALAR_POINTERS)
def sample_candidates_kernel(
    # Candidates, [B, capacity] or [B]
    token_ptr, logit_ptr, count_ptr, max_ptr,
    # BAD's logits, [B, V] or [B, capacity], with unit stride along the second dimension
    bad_ptr,
    # SamplingTensors without the margin, each [B]
    good_weight_ptr, contrast_strength_ptr, temperature_ptr, top_p_ptr, top_k_ptr,
    seed_ptr, sequence_ptr, position_ptr,
    # scratch, float32 [B, T]
    scores_ptr,
    # results: int64 [B], and if LOGPROBS float32 [B]
    token_out_ptr, logprob_out_ptr,
    bad_stride, vocab_size, capacity,
    BAD: tl.constexpr, LOGPROBS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Draw one token per row from its list of candidates. Grid: (B,)."""
    number = tl.program_id(0).to(tl.int64)
    size = tl.load(count_ptr + number)
    n = tl.minimum(tl.maximum(size, 0), capacity)
    temperature = tl.load(temperature_ptr + number)
    candidates = CandidateList(token_ptr + number * capacity, logit_ptr + number * capacity)
    sound, best = check_list(n, tl.load(max_ptr + number), candidates, vocab_size, T)
    n = tl.where(sound, n, 0)  # nothing is read at ids that may not exist
    entries = Entries(True, n, candidates)
    no_bans = Bans(token_ptr, 0)
    logits = Logits(logit_ptr, bad_ptr + number * bad_stride, no_bans, float("-inf"), best)
    weights = Weights(
        tl.load(good_weight_ptr + number),
        tl.load(contrast_strength_ptr + number),
        tl.where(temperature == 0, 1.0, temperature),
    )
    cuts = Cuts(tl.load(top_k_ptr + number), tl.load(top_p_ptr + number), -1.0)
    noise = Noise(
        tl.load(seed_ptr + number), tl.load(sequence_ptr + number), tl.load(position_ptr + number), temperature
    )
    if n <= T:
        drawn = draw_few(entries, logits, weights, cuts, noise, scores_ptr + number * T, BAD, T)
    else:
        outside = nothing_outside()
        reference = find_reference(entries, logits, weights, outside, BAD, MASK, 4 * T)
        drawn = draw_many(entries, logits, weights, outside, reference, cuts, noise, BAD, MASK, LOGPROBS, 4 * T)
    if LOGPROBS:
        tl.store(logprob_out_ptr + number, drawn.score - tl.log(drawn.mass))
    result = tl.where(drawn.token == 0x7FFFFFFF, NOTHING_POSSIBLE, drawn.token)
    result = tl.where(drawn.bad_has_nan, NAN_BAD, result)
    result = tl.where(sound, result, INVALID_CANDIDATES)
    result = tl.where(size > capacity, CANDIDATES_OVERFLOW, result)
    result = tl.where((size < 0) & (size >= INVALID_CANDIDATES), size, result)
    valid = parameters_are_valid(weights.good_weight, weights.contrast_strength, temperature, cuts.top_p, cuts.top_k)
    tl.store(token_out_ptr + number, tl.where(valid, result, INVALID_PARAMETERS).to(tl.int64))


def sample_candidates(
    candidates: Candidates,
    bad: torch.Tensor | None,
    sampling: SamplingTensors,
    vocab_size: int,
    gathered: bool,
    logprobs: bool,
) -> Samples:
    """Compute :func:`cdgen_kernels.reference.sampling.sample_candidates` in one launch, in float32 arithmetic.

    Args:
        candidates: contiguous.
        bad: logits [B, V], or [B, C] if `gathered`, with unit stride along the second dimension.
        sampling: the rows' parameters; the margin is not used.
        vocab_size: upper bound of the ids.
    """
    batch, capacity = candidates.token.shape
    token = candidates.token.new_empty(batch, dtype=torch.int64)
    logprob = candidates.logit.new_empty(batch if logprobs else 0)
    if batch:
        sample_candidates_kernel[(batch,)](
            *candidates, candidates.logit if bad is None else bad, *sampling[1:],
            candidates.logit.new_empty((batch, settings.THREADS)), token, logprob,
            0 if bad is None else bad.stride(0), vocab_size, capacity,
            BAD=(NO_BAD if bad is None else BAD_GATHERED if gathered else BAD_DENSE).value,
            LOGPROBS=logprobs, T=settings.THREADS, **settings.launch_options(),
        )  # fmt: skip
    return Samples(token, logprob if logprobs else None)
