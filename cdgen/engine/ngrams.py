"""Bans that depend on the text so far: no n-gram twice."""

import torch


def repeated_ngram_bans(history, start, size):
    """Tokens that would complete an n-gram already in the text.

    Args:
        history: int64 [B, L], each row's text so far, right-aligned. start: int64 [B], where the row's text begins.
        size: n-gram length, 1 or more.
    Returns:
        int64 [B, max(L - size + 1, 0)] token ids, -1 where there is no ban.
    """
    length = history.shape[1]
    if length < size:
        return history.new_empty(history.shape[0], 0)
    windows = history.unfold(1, size, 1)  # [B, L - size + 1, size]
    prefix = history[:, length - size + 1 :].unsqueeze(1)  # [B, 1, size - 1]
    first = torch.arange(windows.shape[1], device=history.device)
    repeats = (windows[:, :, :-1] == prefix).all(2) & (first >= start.unsqueeze(1))
    return torch.where(repeats, windows[:, :, -1], -1)
