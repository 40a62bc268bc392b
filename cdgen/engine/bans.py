"""The tokens that would repeat an n-gram."""

import torch


def repeated_ngram_bans(history: torch.Tensor, position: torch.Tensor, size: int) -> torch.Tensor:
    """Return the tokens that would complete an n-gram that a sequence already contains.

    Shapes depend on neither the tokens nor their number, so that a CUDA graph can hold the computation.

    Args:
        history: int64 [B, L], the tokens of each sequence; only those before `position` are used.
        position: int64 [B], positions of the tokens to be drawn, at most L.
        size: n-gram length, 1 or more.
    Returns:
        int64 [B, max(L - size + 1, 0)] token ids, -1 for no ban.
    """
    length = history.shape[1]
    if length < size:
        return history.new_empty(history.shape[0], 0)
    windows = history.unfold(1, size, 1)  # [B, L - size + 1, size]
    at = position.unsqueeze(1) + torch.arange(1 - size, 0, device=history.device)  # the size - 1 newest tokens
    prefix = history.gather(1, at.clamp(min=0)).unsqueeze(1)  # [B, 1, size - 1]
    end = torch.arange(size, length + 1, device=history.device)  # the position after each window
    repeats = (windows[:, :, :-1] == prefix).all(2) & (end <= position.unsqueeze(1))
    return torch.where(repeats, windows[:, :, -1], -1)
