"""Other ways to draw a token per row: PyTorch, the processors of transformers, and FlashInfer.

Every function takes GOOD's logits [B, V] and BAD's, which methods without contrast ignore, and returns tokens [B].
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ALPHA = 0.1
TOP_K, TOP_P_OF_TOP_K = 40, 0.9
TOP_P = 0.95

Rival = Callable[[Tensor, Tensor], Tensor]


def literal_chain(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by the formula of contrastive decoding (arXiv 2210.15097), computed literally over the whole vocabulary."""
    p_good = torch.softmax(good.float(), -1)
    p_bad = torch.softmax(bad.float(), -1)
    is_candidate = p_good >= ALPHA * p_good.amax(-1, keepdim=True)
    score = torch.where(is_candidate, torch.log(p_good) - torch.log(p_bad), -torch.inf)
    return _draw(torch.softmax(score, -1))


def strongest_torch(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by contrastive decoding without a softmax: an exponential race over a ragged list of the candidates.

    BAD's logits are read, and noise is drawn, for the candidates only.
    """
    best = good.amax(-1, keepdim=True).float()  # a bfloat16 threshold would let other tokens in
    row, token = (good >= best + math.log(ALPHA)).nonzero(as_tuple=True)
    score = good[row, token].float() - bad[row, token].float()
    time = torch.empty_like(score).exponential_().log_() - score  # the first arrival is a softmax sample
    first = score.new_full((good.shape[0],), torch.inf).scatter_reduce_(0, row, time, "amin")
    winner = time == first[row]
    return token.new_empty(good.shape[0]).scatter_(0, row[winner], token[winner])


def torch_min_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by min-p sampling."""
    p = torch.softmax(good.float(), -1)
    return _draw(torch.where(p >= ALPHA * p.amax(-1, keepdim=True), p, 0.0))


def torch_top_k_top_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by top-k, then top-p."""
    best, token = good.float().topk(TOP_K)
    p = torch.softmax(best, -1)
    p = torch.where(p.cumsum(-1) - p < TOP_P_OF_TOP_K, p, 0.0)
    return token.gather(1, _draw(p).unsqueeze(1)).squeeze(1)


def torch_top_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by top-p."""
    p, token = torch.softmax(good.float(), -1).sort(-1, descending=True)
    p = torch.where(p.cumsum(-1) - p < TOP_P, p, 0.0)
    return token.gather(1, _draw(p).unsqueeze(1)).squeeze(1)


def torch_ancestral(good: Tensor, bad: Tensor) -> Tensor:
    """Draw from the whole distribution."""
    return _draw(torch.softmax(good.float(), -1))


def _draw(probabilities: Tensor) -> Tensor:
    return torch.multinomial(probabilities, 1).squeeze(1)


def _processed(good: Tensor, *processors: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the scores [B, V] that processors of transformers make of logits, in float32 as in its `generate`."""
    scores = good.float()
    no_ids = torch.empty(len(good), 0, dtype=torch.int64, device=good.device)
    for processor in processors:
        scores = processor(no_ids, scores)
    return scores


def transformers_contrastive(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by contrastive decoding: the min-p processor selects the candidates, then BAD's part is subtracted."""
    from transformers import MinPLogitsWarper

    scores = _processed(good, MinPLogitsWarper(ALPHA)) - torch.log_softmax(bad.float(), -1)
    return _draw(torch.softmax(scores, -1))


def transformers_min_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by min-p sampling."""
    from transformers import MinPLogitsWarper

    return _draw(torch.softmax(_processed(good, MinPLogitsWarper(ALPHA)), -1))


def transformers_top_k_top_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by top-k, then top-p."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    scores = _processed(good, TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P_OF_TOP_K))
    return _draw(torch.softmax(scores, -1))


def transformers_top_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by top-p."""
    from transformers import TopPLogitsWarper

    return _draw(torch.softmax(_processed(good, TopPLogitsWarper(TOP_P)), -1))


# FlashInfer samples from one distribution, without contrast. Its kernels take float32.


def flashinfer_ancestral(good: Tensor, bad: Tensor) -> Tensor:
    """Draw from the whole distribution."""
    import flashinfer

    tokens: Tensor = flashinfer.sampling.sampling_from_logits(good.float())
    return tokens


def flashinfer_min_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by min-p sampling."""
    import flashinfer

    tokens: Tensor = flashinfer.sampling.min_p_sampling_from_probs(torch.softmax(good.float(), -1), ALPHA)
    return tokens


def flashinfer_top_k_top_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by top-k, then top-p."""
    import flashinfer

    tokens: Tensor = flashinfer.sampling.top_k_top_p_sampling_from_logits(
        good.float(), TOP_K, TOP_P_OF_TOP_K, filter_apply_order="top_k_first"
    )
    return tokens


def flashinfer_top_p(good: Tensor, bad: Tensor) -> Tensor:
    """Draw by top-p."""
    import flashinfer

    tokens: Tensor = flashinfer.sampling.top_p_sampling_from_probs(torch.softmax(good.float(), -1), TOP_P)
    return tokens
