"""The tokens that are most likely to be drawn at a step, and their log-probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor

from cdgen_kernels import SamplingTensors
from cdgen_kernels.checks import outside_mode
from cdgen_kernels.codes import OutsideHead
from cdgen_kernels.reference import allowed_logits, contrastive_scores, keep_top, log_softmax

_TIE = 1e-13  # times the token id, subtracted from float64 scores: of equal tokens, the lower id is listed first


class TopTokens(NamedTuple):
    """The n tokens that are most likely to be drawn, for each of A sequences."""

    token: Tensor  # int64 [A, n]; -1 if fewer tokens can be drawn
    logprobs: Tensor  # float32 [A, n, 3]: in the distribution that is drawn from, under GOOD, and under BAD


def top_tokens(
    good: Tensor,
    bad: Tensor | None,
    sampling: SamplingTensors,
    *,
    adjusted: Tensor,
    vocab_size: int,
    outside_head: OutsideHead,
    banned: Tensor | None,
    count: int,
    is_cut: bool,
) -> TopTokens:
    """Return the best tokens of each row, as the reference ops define the distribution, without a host sync.

    Args:
        good, bad: logits [A, V'] as the models compute them.
        sampling: row parameters [A].
        adjusted: GOOD's logits [A, V'] from which the token is drawn.
        vocab_size, outside_head, banned: see :func:`cdgen_kernels.contrastive_sample`.
        count: number of tokens n.
        is_cut: whether top_k or top_p of a row may leave tokens out; otherwise they are not read, which saves a sort.
    """
    allowed = allowed_logits(adjusted, banned, vocab_size)
    read = torch.zeros_like(allowed) if bad is None else bad[:, :vocab_size].float()
    scores = contrastive_scores(allowed, read, sampling, *outside_mode(outside_head))
    if is_cut:
        scores = keep_top(scores, sampling.top_k, sampling.top_p)
    order = scores - _TIE * torch.arange(vocab_size, device=scores.device)
    token = order.topk(min(count, vocab_size)).indices
    score = scores.gather(1, token)
    columns = [
        score - scores.logsumexp(1, keepdim=True),
        log_softmax(good[:, :vocab_size]).gather(1, token),
        torch.zeros_like(score) if bad is None else log_softmax(read).gather(1, token),
    ]
    return TopTokens(torch.where(score > -torch.inf, token, -1), torch.stack(columns, 2).float())
