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
* Infinite logits are taken literally. Tokens with z_GOOD = +inf share all of GOOD's probability. If z_BAD is infinite,
  so is the contrast, which outranks every finite score; the finite part decides between equals.
* The top_k highest scores are kept, then the fewest of them whose probabilities reach top_p of their sum.
* A negative token reports that none can be drawn: it is one of the codes of :data:`cdgen_kernels.codes.FAULTS`.
"""

import torch
from torch import Tensor

from cdgen_kernels.codes import CANDIDATES_OVERFLOW, CONSTANT, MASK, NAN_BAD, NAN_GOOD, NOTHING_POSSIBLE, SHIFTED_GOOD
from cdgen_kernels.reference.noise import columns, gumbel, philox
from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors


def _banned_mask(banned: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    mask = torch.zeros(shape[0], shape[1] + 1, dtype=torch.bool, device=device)
    if banned is not None:
        outside = (banned < 0) | (banned >= shape[1])
        mask.scatter_(1, torch.where(outside, shape[1], banned).long(), True)
    return mask[:, :-1]


def _allowed(good: Tensor, banned: Tensor | None, vocab_size: int) -> Tensor:
    """Return GOOD's logits [B, V] with banned tokens at -inf, in float32 (float64 for float64 logits)."""
    good = good[:, :vocab_size]
    good = good if good.dtype == torch.float64 else good.float()
    return good.masked_fill(_banned_mask(banned, good.shape, good.device), -torch.inf)


def _candidate_mask(good: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tokens are candidates, bool [B, V], and the largest logit of each row [B]."""
    max_logit = good.amax(1)
    threshold = torch.where(max_logit.isposinf(), max_logit, max_logit - margin.to(max_logit.dtype))
    return (good >= threshold.unsqueeze(1)) & (good > -torch.inf), max_logit


def log_softmax(x: Tensor) -> Tensor:
    """Compute log softmax over dim 1 in float64; entries at +inf share all probability, rows of -inf become NaN."""
    at_infinity = x.isposinf()
    x = torch.where(at_infinity.any(1, keepdim=True), torch.where(at_infinity, 0.0, -torch.inf), x.double())
    return torch.log_softmax(x, 1)


def contrastive_scores(good: Tensor, bad: Tensor, sampling: SamplingTensors, outside: int, value: float) -> Tensor:
    """Compute the scores of all tokens before top-k and top-p.

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
    is_candidate, max_logit = _candidate_mask(good, sampling.margin)
    # z / T. If the maximum is +inf, the tokens at +inf are equals and the others have no probability.
    at_infinity = torch.where(good.isposinf(), 0.0, -torch.inf)
    good = torch.where(max_logit.isposinf().unsqueeze(1), at_infinity, good.double())
    good, bad = good / temperature, bad.double() / temperature
    tail = ~is_candidate & (good > -torch.inf)
    if outside == CONSTANT:  # the one mode whose scores need the normalisers
        good, bad = log_softmax(good), log_softmax(bad)
    # An infinite contrast outranks every finite score.
    rank = torch.where(bad.isinf() & is_candidate & (strength != 0), -torch.sign(strength * bad), 0.0)
    finite_bad = torch.where(bad.isinf(), 0.0, bad)
    score = torch.where(is_candidate, weight * good - strength * finite_bad, -torch.inf)
    if outside == CONSTANT:
        score = torch.where(tail, value, score)
    elif outside == SHIFTED_GOOD:
        worst = torch.where(is_candidate, score, torch.inf).amin(1, keepdim=True)
        shift = worst - torch.where(tail, good, -torch.inf).amax(1, keepdim=True)
        score = torch.where(tail, good + shift, score)
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
    noisy = torch.where((sampling.temperature > 0).unsqueeze(1), score + noise, score)
    return torch.argmax(noisy, 1)  # the first of equals, which is the lower id


def _at(x: Tensor, token: Tensor) -> Tensor:
    return x.gather(1, token.unsqueeze(1)).squeeze(1)


def select_candidates(
    good: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> Candidates:
    """List the candidates of each row in the order of their ids. See :func:`cdgen_kernels.select_candidates`."""
    allowed = _allowed(good, banned, vocab_size)
    mask, max_logit = _candidate_mask(allowed, margin)
    count = mask.sum(1)
    count = torch.where(max_logit == -torch.inf, NOTHING_POSSIBLE, count)
    count = torch.where(good[:, :vocab_size].isnan().any(1), NAN_GOOD, count)
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
    allowed = _allowed(good, banned, vocab_size)
    bad = torch.zeros_like(allowed) if bad is None else bad[:, :vocab_size]
    score = keep_top(contrastive_scores(allowed, bad, sampling, outside, value), sampling.top_k, sampling.top_p)
    token = _draw(score, sampling)

    result = Samples(token)
    if logprobs:
        drawn_from = score - torch.logsumexp(score, 1, keepdim=True)
        each = (drawn_from, log_softmax(good[:, :vocab_size]), log_softmax(bad))
        result = Samples(token, *(_at(x, token).float() for x in each))

    if logprobs or outside == CONSTANT:
        bad_is_wrong = bad.isnan().any(1) | (bad == -torch.inf).all(1)
    else:
        read = _candidate_mask(allowed, sampling.margin)[0] & (sampling.contrast_strength != 0).unsqueeze(1)
        bad_is_wrong = (bad.isnan() & read).any(1)
    token = torch.where(bad_is_wrong, NAN_BAD, token)
    token = torch.where((allowed == -torch.inf).all(1), NOTHING_POSSIBLE, token)
    token = torch.where(good[:, :vocab_size].isnan().any(1), NAN_GOOD, token)
    return result._replace(token=token)


def sample_candidates(
    candidates: Candidates,
    bad: Tensor | None,
    sampling: SamplingTensors,
    vocab_size: int,
    gathered: bool,
    logprobs: bool,
) -> Samples:
    """Draw one token per row from its candidates. See :func:`cdgen_kernels.sample_candidates`."""
    listed = candidates.token >= 0
    index = torch.where(listed, candidates.token, vocab_size).long()
    good = candidates.logit.new_full((candidates.token.shape[0], vocab_size + 1), -torch.inf)
    good.scatter_(1, index, candidates.logit)
    if gathered and bad is not None:  # logits of the candidates alone, in the order of the list
        bad = torch.zeros_like(good, dtype=bad.dtype).scatter_(1, index, bad)[:, :vocab_size]
    every_candidate = sampling._replace(margin=torch.full_like(sampling.margin, torch.inf))
    drawn = contrastive_sample(good[:, :vocab_size], bad, every_candidate, None, vocab_size, MASK, 0.0, logprobs)
    token = torch.where(candidates.count > candidates.token.shape[1], CANDIDATES_OVERFLOW, drawn.token)
    token = torch.where(candidates.count < 0, candidates.count.long(), token)
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
