"""The tokens that would repeat an n-gram or complete a bad word."""

from collections.abc import Sequence

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


def word_table(words: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor | None:
    """Return token sequences as int64 [W, L], padded on the left with -1; None if there are none."""
    length = max(map(len, words), default=0)
    return torch.tensor([[-1] * (length - len(word)) + list(word) for word in words], device=device) if words else None


def bad_word_bans(
    words: torch.Tensor, history: torch.Tensor | None, position: torch.Tensor, output_from: torch.Tensor
) -> torch.Tensor:
    """Return the tokens that would complete a bad word, since a continuation ends with all of its other tokens.

    Shapes do not depend on the tokens, so that a CUDA graph can hold the computation.

    Args:
        words: int64 [W, L], see :func:`word_table`.
        history: int64 [B, M], the tokens of each sequence; only those before `position` are used. None if L is 1.
        position: int64 [B], positions of the tokens to be drawn, at most M.
        output_from: int64 [B], positions at which the continuations begin; tokens of the prompt do not count.
    Returns:
        int64 [B, W] token ids, -1 for no ban.
    """
    last = words[:, -1].expand(len(position), -1)
    if history is None or words.shape[1] == 1:
        return last
    at = position.unsqueeze(1) + torch.arange(1 - words.shape[1], 0, device=words.device)  # [B, L - 1]
    newest = torch.where(at >= output_from.unsqueeze(1), history.gather(1, at.clamp(min=0)), -2)
    before = words[:, :-1]
    completes = ((newest.unsqueeze(1) == before) | (before < 0)).all(2)
    return torch.where(completes, last, -1)
