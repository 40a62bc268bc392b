"""Two ways to write a step of contrastive sampling in PyTorch, with candidates by alpha and temperature 1."""

import math

import torch


def literal_chain(good: torch.Tensor, bad: torch.Tensor, alpha: float = 0.1, strength: float = 1.0) -> torch.Tensor:
    """Return tokens [B] sampled by the papers' formula, computed literally over the whole vocabulary.

    Args:
        good, bad: logits [B, V].
    """
    p_good = torch.softmax(good.float(), -1)
    p_bad = torch.softmax(bad.float(), -1)
    is_candidate = p_good >= alpha * p_good.amax(-1, keepdim=True)
    score = torch.where(is_candidate, torch.log(p_good) - strength * torch.log(p_bad), -torch.inf)
    return torch.multinomial(torch.softmax(score, -1), 1).squeeze(1)


def strongest_torch(good: torch.Tensor, bad: torch.Tensor, alpha: float = 0.1, strength: float = 1.0) -> torch.Tensor:
    """Return tokens [B] sampled without a softmax: an exponential race over a ragged list of the candidates.

    BAD's logits are read, and noise is drawn, for the candidates only.
    """
    best = good.amax(-1, keepdim=True).float()  # a bfloat16 threshold would let other tokens in
    row, token = (good >= best + math.log(alpha)).nonzero(as_tuple=True)
    score = good[row, token].float() - strength * bad[row, token].float()
    time = torch.empty_like(score).exponential_().log_() - score  # the first arrival is a softmax sample
    first = torch.full((good.shape[0],), torch.inf).scatter_reduce_(0, row, time, "amin")
    winner = time == first[row]
    return torch.empty(good.shape[0], dtype=torch.int64).scatter_(0, row[winner], token[winner])
