"""The definition of contrastive sampling in plain PyTorch, in float64 and over whole rows.

Every other implementation is tested against this file, op by op and under the same names. It is written for reading,
not for speed. With z the logits, T the temperature and the other parameters from
:class:`cdgen_kernels.SamplingTensors`:

    candidates = { x : z_GOOD(x) >= max z_GOOD - margin }                margin = -T ln(alpha)
    score(x)   = (good_weight * z_GOOD(x) - contrast_strength * z_BAD(x)) / T            for candidates x
    token      = argmax over the kept x of score(x) + Gumbel(seed, sequence, position, x)        ties: the lower id

Li et al. 2023 (arXiv 2210.15097, section 3) define candidates and score; Ulm, Du and Snaebjarnarson (arXiv 2510.08245)
generate corpora with them. `good_weight = 1 + beta, contrast_strength = beta` is O'Brien & Lewis 2023.

Conventions that every implementation follows:

* A banned token has z_GOOD = -inf before the candidates are selected (transformers also runs its processors before its
  warpers).
* The threshold is one float32 subtraction, so that every implementation selects exactly the same candidates.
* Scores are computed from differences to the logits of the best candidate, and the greatest score is subtracted before
  noise is added. Neither the noise nor a small difference is then lost next to large logits, such as the least finite
  float that masks tokens in transformers, and equal scores stay equal whatever the temperature.
* Infinite logits are taken literally. Tokens with z_GOOD = +inf share all of GOOD's probability. If z_BAD is infinite,
  so is the contrast, which outranks every finite score; the finite part decides between equals.
* The top_k highest scores are kept, then the fewest of them whose probabilities reach top_p of their sum.
* BAD is not read if its factor is 0. A NaN of BAD is a fault only if the score of a token that could be drawn needs it:
  at a candidate, or anywhere if scores need the normaliser (`outside_head` is a number). Asking for log-probabilities
  changes no token; those that a NaN leaves undefined are NaN.
* A negative token reports that none can be drawn: it is one of the codes of :data:`cdgen_kernels.codes.FAULTS`.
"""

import torch
from torch import Tensor

from cdgen_kernels.codes import (
    CANDIDATES_OVERFLOW,
    CONSTANT,
    INVALID_CANDIDATES,
    INVALID_PARAMETERS,
    MASK,
    NAN_BAD,
    NAN_GOOD,
    NOTHING_POSSIBLE,
    SHIFTED_GOOD,
)
from cdgen_kernels.reference.noise import columns, gumbel, philox
from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors


def _banned_mask(banned: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    mask = torch.zeros(shape[0], shape[1] + 1, dtype=torch.bool, device=device)
    if banned is not None:
        outside = (banned < 0) | (banned >= shape[1])
        mask.scatter_(1, torch.where(outside, shape[1], banned).long(), True)
    return mask[:, :-1]


def allowed_logits(good: Tensor, banned: Tensor | None, vocab_size: int) -> Tensor:
    """Return GOOD's logits [B, V] with banned tokens at -inf, in float32 (float64 for float64 logits).

    Args:
        good: logits [B, V'].
        banned: int64 [B, N], banned token ids; those out of range, such as -1, ban nothing. Or None.
        vocab_size: number of tokens V, at most V'.
    """
    good = good[:, :vocab_size]
    good = good if good.dtype == torch.float64 else good.float()
    return good.masked_fill(_banned_mask(banned, good.shape, good.device), -torch.inf)


def _candidate_mask(good: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tokens are candidates, bool [B, V], and the largest logit of each row [B]."""
    max_logit = good.amax(1)
    threshold = torch.where(max_logit.isposinf(), max_logit, max_logit - margin.to(max_logit.dtype))
    return (good >= threshold.unsqueeze(1)) & (good > -torch.inf), max_logit


def _effective(x: Tensor) -> Tensor:
    """Return logits in float64, with rows that reach +inf as their limit: 0 at +inf, -inf elsewhere; NaN stays NaN."""
    at_infinity = x.isposinf()
    limit = torch.where(at_infinity, 0.0, -torch.inf).masked_fill(x.isnan(), torch.nan)
    return torch.where(at_infinity.any(1, keepdim=True), limit, x.double())


def log_softmax(x: Tensor) -> Tensor:
    """Compute log softmax over dim 1 in float64; entries at +inf share all probability, rows of -inf become NaN."""
    x = _effective(x)
    return torch.log_softmax(x - x.amax(1, keepdim=True), 1)


def _log_sum(x: Tensor, temperature: Tensor) -> Tensor:
    """Return log sum exp((x - max x) / temperature) over dim 1, [B, 1]."""
    return torch.exp((x - x.amax(1, keepdim=True)) / temperature).sum(1, keepdim=True).log()


def contrastive_scores(good: Tensor, bad: Tensor, sampling: SamplingTensors, outside: int, value: float) -> Tensor:
    """Compute the scores of all tokens before top-k and top-p, up to a constant per row.

    Args:
        good, bad: logits [B, V], before the temperature; banned tokens have GOOD logits of -inf.
        sampling: the row parameters.
        outside: how tokens that are not candidates are scored: MASK, CONSTANT or SHIFTED_GOOD.
        value: their score if `outside` is CONSTANT.
    Returns:
        float64 [B, V], -inf for tokens that cannot be drawn.
    """
    parameters = columns(sampling.good_weight, sampling.contrast_strength, sampling.temperature)
    weight, strength, temperature = (x.double() for x in parameters)
    temperature = torch.where(temperature == 0, 1.0, temperature)
    is_candidate = _candidate_mask(good, sampling.margin)[0]
    good = _effective(good)
    bad = torch.where(strength == 0, 0.0, _effective(bad) if outside == CONSTANT else bad.double())
    tail = ~is_candidate & (good > -torch.inf)
    # An infinite contrast outranks every finite score.
    rank = torch.where(bad.isinf() & is_candidate, -torch.sign(strength * bad), 0.0)
    finite_bad = torch.where(bad.isinf(), 0.0, bad)
    best_rank = torch.where(is_candidate, rank, -torch.inf).amax(1, keepdim=True)
    rough = torch.where(is_candidate & (rank == best_rank), weight * good - strength * finite_bad, -torch.inf)
    best = rough.argmax(1, keepdim=True)
    best_good, best_bad = good.gather(1, best), finite_bad.gather(1, best)
    score = (weight * (good - best_good) - strength * (finite_bad - best_bad)) / temperature
    score = torch.where(is_candidate, score, -torch.inf)
    if outside == CONSTANT:  # the one mode whose scores need the normalisers
        best_logprob = [
            (logit - x.amax(1, keepdim=True)) / temperature - _log_sum(x, temperature)
            for logit, x in ((best_good, good), (best_bad, bad))
        ]
        score = torch.where(tail, value - (weight * best_logprob[0] - strength * best_logprob[1]), score)
    elif outside == SHIFTED_GOOD:
        worst = torch.where(is_candidate, score, torch.inf).amin(1, keepdim=True)
        below = torch.where(tail, good, -torch.inf).amax(1, keepdim=True)
        score = torch.where(tail, worst + (good - below) / temperature, score)
    possible = score > -torch.inf
    best_rank = torch.where(possible, rank, -torch.inf).amax(1, keepdim=True)
    return torch.where(rank == best_rank, score, -torch.inf)


def keep_top(score: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set all but the top_k highest scores, then all but the top_p nucleus of those, to -inf.

    Args:
        score: float64 [B, V].
        top_k: int32 [B]; 0 keeps all.
        top_p: float32 [B]; 1 keeps all.
    Returns:
        float64 [B, V].
    """
    order = torch.sort(score, dim=1, descending=True, stable=True)  # stable: the lower id comes first among ties
    rank = torch.arange(score.shape[1], device=score.device)
    k = torch.where(top_k <= 0, score.shape[1], top_k.long()).unsqueeze(1)
    kept = torch.where(rank < k, order.values, -torch.inf)
    cumulative = torch.cumsum(torch.exp(kept - kept[:, :1]), 1)
    before = torch.nn.functional.pad(cumulative[:, :-1], (1, 0))
    p = top_p.double().unsqueeze(1)
    inside = (before < p * cumulative[:, -1:]) | (p >= 1)
    return torch.full_like(score, -torch.inf).scatter(1, order.indices, torch.where(inside, kept, -torch.inf))


def _draw(score: Tensor, sampling: SamplingTensors) -> Tensor:
    noise = gumbel(philox(sampling.seed, sampling.sequence, sampling.position, score.shape[1]))
    score = score - score.amax(1, keepdim=True)
    noisy = torch.where((sampling.temperature > 0).unsqueeze(1), score + noise, score)
    return torch.argmax(noisy, 1)  # the first of equals, which is the lower id


def _invalid(sampling: SamplingTensors) -> Tensor:
    """Return which rows have a parameter out of range, bool [B]. Each comparison is false for NaN."""
    weight, strength, temperature, top_p = sampling[1:5]
    valid = (sampling.margin >= 0) & (weight >= 0) & weight.isfinite() & strength.isfinite()
    valid &= (temperature >= 0) & temperature.isfinite() & (top_p > 0) & (top_p <= 1) & (sampling.top_k >= 0)
    return ~valid


def _at(x: Tensor, token: Tensor) -> Tensor:
    return x.gather(1, token.unsqueeze(1)).squeeze(1)


def select_candidates(
    good: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> Candidates:
    """List the candidates of each row in the order of their ids. See :func:`cdgen_kernels.select_candidates`."""
    allowed = allowed_logits(good, banned, vocab_size)
    mask, max_logit = _candidate_mask(allowed, margin)
    count = mask.sum(1)
    count = torch.where(max_logit == -torch.inf, NOTHING_POSSIBLE, count)
    count = torch.where(good[:, :vocab_size].isnan().any(1), NAN_GOOD, count)
    count = torch.where(margin >= 0, count, INVALID_PARAMETERS)
    first = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices[:, :capacity]  # candidates first, by id
    first = torch.nn.functional.pad(first, (0, capacity - first.shape[1]))
    listed = torch.arange(capacity, device=good.device) < count.unsqueeze(1)
    token = torch.where(listed, first, -1).int()
    logit = torch.where(listed, allowed.gather(1, first), -torch.inf).float()
    return Candidates(token, logit, count.int(), max_logit.float())


def contrastive_sample(
    good: Tensor,
    bad: Tensor | None,
    sampling: SamplingTensors,
    banned: Tensor | None,
    vocab_size: int,
    outside: int,
    value: float,
    logprobs: bool,
) -> Samples:
    """Draw one token per row from the logits of both models. See :func:`cdgen_kernels.contrastive_sample`."""
    allowed = allowed_logits(good, banned, vocab_size)
    bad = torch.zeros_like(allowed) if bad is None else bad[:, :vocab_size]
    score = keep_top(contrastive_scores(allowed, bad, sampling, outside, value), sampling.top_k, sampling.top_p)
    token = _draw(score, sampling)

    result = Samples(token)
    if logprobs:
        each = (log_softmax(score), log_softmax(good[:, :vocab_size]), log_softmax(bad))
        result = Samples(token, *(_at(x, token).float() for x in each))

    bad_is_wrong = (bad.isnan() & _candidate_mask(allowed, sampling.margin)[0]).any(1)
    if outside == CONSTANT:
        bad_is_wrong = bad.isnan().any(1) | (bad == -torch.inf).all(1)
    bad_is_wrong &= sampling.contrast_strength != 0
    token = torch.where(bad_is_wrong, NAN_BAD, token)
    token = torch.where((allowed == -torch.inf).all(1), NOTHING_POSSIBLE, token)
    token = torch.where(good[:, :vocab_size].isnan().any(1), NAN_GOOD, token)
    token = torch.where(_invalid(sampling), INVALID_PARAMETERS, token)
    return result._replace(token=token)


def _check_lists(candidates: Candidates, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return which entries of each list can be used, bool [B, C], and why a row has no list, a code or 0 [B].

    A list made by hand may hold anything.
    """
    token, logit, count, max_logit = candidates
    entry = torch.arange(token.shape[1], device=token.device)
    listed = entry < count.unsqueeze(1)
    in_range = (token >= 0) & (token < vocab_size)
    ascending = torch.nn.functional.pad(token[:, 1:] > token[:, :-1], (1, 0), value=True)
    fits = (logit == -torch.inf) | (logit.isinf() == max_logit.isinf().unsqueeze(1)) & ~logit.isnan()
    sound = (in_range & ascending & fits | ~listed).all(1) & (max_logit > -torch.inf) & (count > 0)
    fault = torch.where(sound, 0, INVALID_CANDIDATES)
    fault = torch.where(count > token.shape[1], CANDIDATES_OVERFLOW, fault)
    known = (count < 0) & (count >= INVALID_CANDIDATES)
    return listed & in_range, torch.where(known, count.long(), fault)


def sample_candidates(
    candidates: Candidates,
    bad: Tensor | None,
    sampling: SamplingTensors,
    vocab_size: int,
    gathered: bool,
    logprobs: bool,
) -> Samples:
    """Draw one token per row from its candidates. See :func:`cdgen_kernels.sample_candidates`."""
    listed, fault = _check_lists(candidates, vocab_size)
    index = torch.where(listed, candidates.token, vocab_size).long()
    good = candidates.logit.new_full((candidates.token.shape[0], vocab_size + 1), -torch.inf)
    good.scatter_(1, index, candidates.logit)
    if gathered and bad is not None:  # logits of the candidates alone, in the order of the list
        bad = torch.zeros_like(good, dtype=bad.dtype).scatter_(1, index, bad)[:, :vocab_size]
    every_candidate = sampling._replace(margin=torch.full_like(sampling.margin, torch.inf))
    drawn = contrastive_sample(good[:, :vocab_size], bad, every_candidate, None, vocab_size, MASK, 0.0, logprobs)
    token = torch.where((fault < 0) & (drawn.token != INVALID_PARAMETERS), fault, drawn.token)
    return drawn._replace(token=token)


def _output_layer(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return logits [B, V], accumulated in float32 (float64 for float64 inputs)."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return hidden.to(wide) @ weight.to(wide).T


def select_candidates_linear(
    hidden: Tensor, weight: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> Candidates:
    """List the candidates of the logits hidden @ weight.T. See :func:`cdgen_kernels.select_candidates_linear`."""
    return select_candidates(_output_layer(hidden, weight[:vocab_size]), margin, banned, vocab_size, capacity)


def gather_logits(hidden: Tensor, weight: Tensor, token: Tensor, count: Tensor) -> Tensor:
    """Compute hidden . weight[token] for the first `count` tokens of each list.

    See :func:`cdgen_kernels.gather_logits`.

    Args:
        hidden: [B, D].
        weight: [V, D].
        token: int32 [B, C], those of :class:`Candidates`.
        count: int32 [B], those of :class:`Candidates`; may exceed C, and a negative one (a fault code) means no tokens.
    Returns:
        float32 [B, C], -inf past the end of each list.
    """
    listed = torch.arange(token.shape[1], device=token.device) < count.unsqueeze(1)
    logit = _output_layer(hidden, weight).gather(1, torch.where(listed, token, 0).long())
    return torch.where(listed, logit, -torch.inf).float()


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Compute the cross entropy of an output layer. See :func:`cdgen_kernels.linear_cross_entropy`."""
    counts = target != ignore_index
    logprob = torch.log_softmax(hidden @ weight.T, -1)  # [..., V]
    at_target = logprob.gather(-1, torch.where(counts, target, 0).unsqueeze(-1)).squeeze(-1)
    loss = -torch.where(counts, at_target, 0).sum()
    return loss / counts.sum() if reduction == "mean" else loss
