"""The definition: contrastive sampling in plain PyTorch, float64, over dense rows.

Every other implementation answers to this file, op by op and under the same names. It is written to be read, not to
be fast. With z the logits, T the temperature and `rows` the per-row parameters of
:class:`cdgen_kernels.sampling_tensors.SamplingTensors`:

    head     = { x : z_GOOD(x) >= max z_GOOD - margin }             margin = -T ln(alpha)      (the alpha-head)
    score(x) = good_weight * z_GOOD(x) / T - contrast_strength * z_BAD(x) / T                  for x in the head
    token    = argmax over the kept x of score(x) + Gumbel(seed, sequence, position, x)        ties: the lower id

Li et al. 2023 (arXiv 2210.15097, section 3) define head and score; Ulm, Du and Snaebjarnarson (arXiv 2510.08245) use
them to write corpora. `good_weight = 1 + beta, contrast_strength = beta` is O'Brien & Lewis 2023.

What is decided once, here:

* A banned token has z_GOOD = -inf, before the head is taken (as transformers runs its processors before its warpers).
* The threshold is one float32 subtraction, so that every implementation has the very same head.
* Infinite logits mean what they say. Tokens of z_GOOD = +inf share all of GOOD's probability. Where z_BAD is infinite
  the contrast is, and outranks every finite score; among equals the finite rest decides.
* Kept are the top_k highest scores, then the fewest of them that reach top_p of their sum.
* A token below 0 reports a row that has no answer: one of the codes of :data:`FAULTS`.
"""

import torch

from cdgen_kernels.codes import CANDIDATES_OVERFLOW, CONSTANT, MASK, NAN_BAD, NAN_GOOD, NOTHING_POSSIBLE, SHIFTED_GOOD
from cdgen_kernels.reference.noise import columns, gumbel, philox
from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors


def _banned_mask(banned, shape, device):
    mask = torch.zeros(shape[0], shape[1] + 1, dtype=torch.bool, device=device)
    if banned is not None:
        outside = (banned < 0) | (banned >= shape[1])
        mask.scatter_(1, torch.where(outside, shape[1], banned).long(), True)
    return mask[:, :-1]


def _allowed(good, banned, vocab_size):
    """GOOD's logits [B, V], banned tokens at -inf; float32, or float64 where they came so."""
    good = good[:, :vocab_size]
    good = good if good.dtype == torch.float64 else good.float()
    return good.masked_fill(_banned_mask(banned, good.shape, good.device), -torch.inf)


def _in_head(good, margin):
    """bool [B, V]: the alpha-head of `good`, and float [B]: its maximum."""
    best = good.amax(1)
    threshold = torch.where(best.isposinf(), best, best - margin.to(best.dtype))
    return (good >= threshold.unsqueeze(1)) & (good > -torch.inf), best


def log_softmax(x):
    """log softmax over dim 1, float64, in which entries at +inf share all the mass and an all -inf row is NaN."""
    at_infinity = x.isposinf()
    x = torch.where(at_infinity.any(1, keepdim=True), torch.where(at_infinity, 0.0, -torch.inf), x.double())
    return torch.log_softmax(x, 1)


def contrastive_scores(good, bad, sampling, outside, value):
    """float64 [B, V] scores before top-k and top-p, impossible tokens at -inf, from logits as the models gave them."""
    weight, strength, temperature = (x.double() for x in columns(*sampling[1:4]))
    temperature = torch.where(temperature == 0, 1.0, temperature)
    head, best = _in_head(good, sampling.margin)
    # z / T; at a maximum of +inf the tokens there are equals, and the others have no probability
    good = torch.where(best.isposinf().unsqueeze(1), torch.where(good.isposinf(), 0.0, -torch.inf), good.double())
    good, bad = good / temperature, bad.double() / temperature
    tail = ~head & (good > -torch.inf)
    if outside == CONSTANT:  # the one mode whose scores need the normalisers
        good, bad = log_softmax(good), log_softmax(bad)
    # an infinite contrast outranks every finite score
    rank = torch.where(bad.isinf() & head & (strength != 0), -torch.sign(strength * bad), 0.0)
    finite_bad = torch.where(bad.isinf(), 0.0, bad)
    score = torch.where(head, weight * good - strength * finite_bad, -torch.inf)
    if outside == CONSTANT:
        score = torch.where(tail, value, score)
    elif outside == SHIFTED_GOOD:
        worst = torch.where(head, score, torch.inf).amin(1, keepdim=True)
        shift = worst - torch.where(tail, good, -torch.inf).amax(1, keepdim=True)
        score = torch.where(tail, good + shift, score)
    possible = score > -torch.inf
    best_rank = torch.where(possible, rank, -torch.inf).amax(1, keepdim=True)
    return torch.where(rank == best_rank, score, -torch.inf)


def keep_top(score, top_k, top_p):
    """Scores [B, V] with all but the top_k highest (0: all), then all but the top_p nucleus of those, at -inf."""
    order = torch.sort(score, dim=1, descending=True, stable=True)  # stable: ties keep the lower id first
    rank = torch.arange(score.shape[1], device=score.device)
    k = torch.where(top_k <= 0, score.shape[1], top_k.long()).unsqueeze(1)
    kept = torch.where(rank < k, order.values, -torch.inf)
    upto = torch.cumsum(torch.exp(kept - kept[:, :1]), 1)
    before = torch.nn.functional.pad(upto[:, :-1], (1, 0))
    p = top_p.double().unsqueeze(1)
    inside = (before < p * upto[:, -1:]) | (p >= 1)
    return torch.full_like(score, -torch.inf).scatter(1, order.indices, torch.where(inside, kept, -torch.inf))


def _draw(score, sampling):
    noise = gumbel(philox(sampling.seed, sampling.sequence, sampling.position, score.shape[1]))
    noisy = torch.where((sampling.temperature > 0).unsqueeze(1), score + noise, score)
    return torch.argmax(noisy, 1)  # on ties argmax gives the first, the lower id


def _at(x, token):
    return x.gather(1, token.unsqueeze(1)).squeeze(1)


def select_candidates(good, margin, banned, vocab_size, capacity):
    """The alpha-head of each row, compacted. See :func:`cdgen_kernels.ops.head`."""
    allowed = _allowed(good, banned, vocab_size)
    mask, best = _in_head(allowed, margin)
    count = mask.sum(1)
    count = torch.where(best == -torch.inf, NOTHING_POSSIBLE, count)
    count = torch.where(good[:, :vocab_size].isnan().any(1), NAN_GOOD, count)
    first = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices[:, :capacity]  # head tokens, by id
    first = torch.nn.functional.pad(first, (0, capacity - first.shape[1]))
    listed = torch.arange(capacity, device=good.device) < count.unsqueeze(1)
    token = torch.where(listed, first, -1).int()
    logit = torch.where(listed, allowed.gather(1, first), -torch.inf).float()
    return Candidates(token, logit, count.int(), best.float())


def contrastive_sample(good, bad, sampling: SamplingTensors, banned, vocab_size, outside, value, logprobs):
    """Draw one token a row from both models' logits. See :func:`cdgen_kernels.ops.sample`."""
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
        read = _in_head(allowed, sampling.margin)[0] & (sampling.contrast_strength != 0).unsqueeze(1)
        bad_is_wrong = (bad.isnan() & read).any(1)
    token = torch.where(bad_is_wrong, NAN_BAD, token)
    token = torch.where((allowed == -torch.inf).all(1), NOTHING_POSSIBLE, token)
    token = torch.where(good[:, :vocab_size].isnan().any(1), NAN_GOOD, token)
    return result._replace(token=token)


def sample_candidates(candidates: Candidates, bad, sampling: SamplingTensors, vocab_size, gathered, logprobs):
    """Draw one token a row from head candidates. See :func:`cdgen_kernels.ops.sample_candidates`."""
    listed = candidates.token >= 0
    place = torch.where(listed, candidates.token, vocab_size).long()
    good = candidates.logit.new_full((candidates.token.shape[0], vocab_size + 1), -torch.inf)
    good.scatter_(1, place, candidates.logit)
    if gathered:  # BAD's logits of the candidates, slot by slot
        bad = torch.zeros_like(good, dtype=bad.dtype).scatter_(1, place, bad)[:, :vocab_size]
    every_candidate = sampling._replace(margin=torch.full_like(sampling.margin, torch.inf))
    drawn = contrastive_sample(good[:, :vocab_size], bad, every_candidate, None, vocab_size, MASK, 0.0, logprobs)
    token = torch.where(candidates.count > candidates.token.shape[1], CANDIDATES_OVERFLOW, drawn.token)
    token = torch.where(candidates.count < 0, candidates.count.long(), token)
    return drawn._replace(token=token)


def _output_layer(hidden, weight):
    """Logits [B, V]: products of the stored numbers, summed in float32, or in float64 where they came so."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return hidden.to(wide) @ weight.to(wide).T


def select_candidates_linear(hidden, weight, margin, banned, vocab_size, capacity):
    """:func:`head` of the logits hidden @ weight.T, from hidden states [B, D] and an output layer [V', D]."""
    return select_candidates(_output_layer(hidden, weight[:vocab_size]), margin, banned, vocab_size, capacity)


def gather_logits(hidden, weight, token, count):
    """float32 [B, C]: hidden [B, D] . weight[token], with weight [V, D], for the first count tokens of each row.

    `token` int32 [B, C] and `count` int32 [B] are those of :class:`Candidates`: a count may exceed C, and below 0
    it is a fault, of no tokens. -inf past the end.
    """
    listed = torch.arange(token.shape[1], device=token.device) < count.unsqueeze(1)
    score = _output_layer(hidden, weight).gather(1, torch.where(listed, token, 0).long())
    return torch.where(listed, score, -torch.inf).float()


def linear_cross_entropy(hidden, weight, target, ignore_index, reduction):
    """Cross entropy of an output layer. See :func:`cdgen_kernels.cross_entropy.linear_cross_entropy`."""
    counts = target != ignore_index
    logprob = torch.log_softmax(hidden @ weight.T, -1)  # [..., V]
    at_target = logprob.gather(-1, torch.where(counts, target, 0).unsqueeze(-1)).squeeze(-1)
    loss = -torch.where(counts, at_target, 0).sum()
    return loss / counts.sum() if reduction == "mean" else loss
