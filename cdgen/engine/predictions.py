"""What logits of GOOD and BAD predict: probabilities, entropy, candidates, and the tokens most likely to be drawn."""

import torch
from torch import Tensor

from cdgen.engine.device_state import sampling_tensors
from cdgen.engine.distribution import kept_scores
from cdgen.engine.sampling_params import SamplingParams
from cdgen.viewer.explanation import Candidate, Prediction
from cdgen_kernels import select_candidates

_LISTED = 10  # number of tokens listed at each position
_SHORT = 1024  # number of candidates up to which scores are computed for them alone


def predictions(
    good: Tensor, bad: Tensor | None, targets: Tensor, params: SamplingParams, adjusted: Tensor, banned: Tensor
) -> list[Prediction]:
    """Return what the models predict at N positions.

    Args:
        good, bad: finite logits, float32 [N, V].
        targets: int64 [N], the tokens that follow.
        params: the sampling parameters.
        adjusted: GOOD's logits with biases and penalties, float32 [N, V].
        banned: int64 [N, B], tokens that may not be drawn, -1 for no ban.
    """
    ids, scores, candidates = _scores(adjusted, bad, params, banned)
    good_best = good.argmax(1)  # the lowest id of several
    drawable = (scores > -torch.inf).sum(1)
    best = torch.where(drawable > 0, ids.gather(1, scores.argmax(1, keepdim=True))[:, 0], good_best)
    top = scores.topk(min(_LISTED, scores.shape[1]))
    others = torch.where(top.values > -torch.inf, ids.gather(1, top.indices), targets[:, None])
    tokens = torch.cat([targets[:, None], good_best[:, None], best[:, None], others], 1)  # [N, 13]
    place = torch.searchsorted(ids, tokens).clamp(max=ids.shape[1] - 1)
    found = torch.where(ids.gather(1, place) == tokens, scores.gather(1, place), -torch.inf)
    log_sum = scores.logsumexp(1, keepdim=True)
    log_drawn = torch.where(found > -torch.inf, found - log_sum, -torch.inf)
    good_log_sum, entropy = _log_sum_and_entropy(good)
    each = [found, log_drawn, good.gather(1, tokens) - good_log_sum]
    if bad is not None:
        each.append(bad.gather(1, tokens) - bad.double().logsumexp(1, keepdim=True))
    values = torch.stack(each, 2)  # [N, 13, 3 or 4]
    columns = (x.tolist() for x in (entropy, candidates, drawable, tokens, values))
    return [_prediction(*row) for row in zip(*columns, strict=True)]


def _scores(good: Tensor, bad: Tensor | None, params: SamplingParams, banned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of all tokens that can be drawn.

    Returns:
        token ids in ascending order, int64 [N, C]; their scores, float64 [N, C], -inf for those that cannot be drawn
        and past the end of a list; the number of candidates, int32 [N].
    """
    vocab_size = good.shape[1]
    sampling = sampling_tensors(params, len(good), good.device)
    short = select_candidates(
        good, sampling, banned=banned, capacity=min(_SHORT, vocab_size), raise_faults=False
    )  # a row without candidates has a fault code
    count = short.count.clamp(min=0)
    most = max(1, int(count.max()))
    if params.outside_head != "mask" or most > _SHORT:
        every = torch.arange(vocab_size, device=good.device).repeat(len(good), 1)
        return every, kept_scores(good, bad, params, banned), count
    ids = short.token[:, :most].long()
    if bad is not None:
        bad = bad.gather(1, ids.clamp(min=0))
    return torch.where(ids < 0, vocab_size, ids), kept_scores(short.logit[:, :most], bad, params), count


def _log_sum_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log sum exp of logits, float64 [N, 1], and the entropy of their softmax in nats, float64 [N]."""
    greatest = logits.amax(1, keepdim=True).double()
    shifted = logits - greatest
    weights = shifted.exp()
    total = weights.sum(1, keepdim=True)
    mean = shifted.mul_(weights).sum(1, keepdim=True) / total
    return greatest + total.log(), (total.log() - mean)[:, 0]


def _prediction(
    entropy: float, candidates: int, drawable: int, tokens: list[int], values: list[list[float]]
) -> Prediction:
    """Return a prediction.

    Args:
        entropy: entropy of GOOD's distribution.
        candidates: number of candidates.
        drawable: number of tokens that can be drawn.
        tokens: the token that follows, GOOD's best, the one with the best score, and others with the best scores.
        values: their scores and log-probabilities: that of being drawn, GOOD's, and BAD's if there is one.
    """
    found = {
        token: Candidate(token, good, bad[0] if bad else None, logprob)
        for token, (_, logprob, good, *bad) in zip(tokens, values, strict=True)
    }
    target, good_best, best = tokens[:3]
    # By score, since tokens with different scores may have the same log-probability.
    scores = {token: score for token, (score, *_) in zip(tokens, values, strict=True) if score > -torch.inf}
    listed = sorted(scores, key=lambda token: (-scores[token], token))[:_LISTED]
    also = dict.fromkeys(token for token in (target, good_best) if token not in listed)
    drawn = found[target]
    return Prediction(
        good=drawn.good,
        bad=drawn.bad,
        logprob=drawn.logprob,
        entropy=entropy,
        candidates=candidates,
        drawable=drawable,
        listed=tuple(found[token] for token in (*listed, *also)),
        best_id=best,
        good_best_id=good_best,
    )
