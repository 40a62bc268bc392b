"""What one would write in PyTorch for one step of contrastive sampling (alpha-head, temperature 1), three ways."""

import math

import torch


def literal_chain(good: torch.Tensor, bad: torch.Tensor, alpha: float = 0.1, strength: float = 1.0) -> torch.Tensor:
    """The formula as it stands in the papers, token by token over the whole vocabulary."""
    p_good = torch.softmax(good.float(), -1)
    p_bad = torch.softmax(bad.float(), -1)
    head = p_good >= alpha * p_good.amax(-1, keepdim=True)
    score = torch.where(head, torch.log(p_good) - strength * torch.log(p_bad), -torch.inf)
    return torch.multinomial(torch.softmax(score, -1), 1).squeeze(1)


def strongest_torch(good: torch.Tensor, bad: torch.Tensor, alpha: float = 0.1, strength: float = 1.0) -> torch.Tensor:
    """No softmax, BAD read at the head only, noise drawn for the head only: an exponential race over a ragged list."""
    best = good.amax(-1, keepdim=True).float()  # a bfloat16 threshold would let other tokens in
    row, token = (good >= best + math.log(alpha)).nonzero(as_tuple=True)
    score = good[row, token].float() - strength * bad[row, token].float()
    time = torch.empty_like(score).exponential_().log_() - score  # the first arrival is a softmax sample
    first = torch.full((good.shape[0],), torch.inf).scatter_reduce_(0, row, time, "amin")
    winner = time == first[row]
    return torch.empty(good.shape[0], dtype=torch.int64).scatter_(0, row[winner], token[winner])
