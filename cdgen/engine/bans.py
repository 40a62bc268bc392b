"""The tokens that a sequence may not draw next: stop tokens before `min_tokens`, and repeated n-grams."""

from collections.abc import Iterable, Sequence

import torch

from cdgen.engine.requests import RunningBatch
from cdgen.engine.sampling_params import SamplingParams


class Bans:
    """The bans that follow from the sampling parameters.

    Args:
        params: `min_tokens` and `no_repeat_ngram_size` are used.
        stop_token_ids: tokens that end a sequence.
        max_length: number of tokens of the longest sequence, including its prompt.
        device: device of the result.
    """

    def __init__(
        self, params: SamplingParams, stop_token_ids: Iterable[int], max_length: int, device: torch.device
    ) -> None:
        self._min_tokens, self._ngram_size = params.min_tokens, params.no_repeat_ngram_size
        self._stop = torch.tensor(sorted(stop_token_ids), dtype=torch.long, device=device)
        self._max_length, self._device = max_length, device

    def new_history(self, prompts: Sequence[list[int]]) -> torch.Tensor | None:
        """Return the tokens of these prompts, int64 [A, max_length], with room for more; None if not needed."""
        if not self._ngram_size:
            return None
        return torch.tensor([ids + [0] * (self._max_length - len(ids)) for ids in prompts], device=self._device)

    def next_tokens(self, batch: RunningBatch) -> torch.Tensor | None:
        """Return the bans for the tokens at `batch.position`, which are to be drawn.

        Returns:
            int64 [A, N] token ids, -1 for no ban; or None.
        """
        bans = []
        if self._min_tokens and len(self._stop):
            early = [len(sequence.token_ids) < self._min_tokens for sequence in batch.sequences]
            bans.append(torch.where(torch.tensor(early, device=self._device).unsqueeze(1), self._stop, -1))
        if batch.history is not None:
            length = int(batch.position.max())
            start = length - batch.position  # [A], first token of each row if all are aligned to the right
            at = (torch.arange(length, device=self._device) - start.unsqueeze(1)).clamp(min=0)
            bans.append(repeated_ngram_bans(batch.history.gather(1, at), start, self._ngram_size))
        return torch.cat(bans, 1) if bans else None


def repeated_ngram_bans(history: torch.Tensor, start: torch.Tensor, size: int) -> torch.Tensor:
    """Return the tokens that would complete an n-gram that a sequence already contains.

    Args:
        history: int64 [B, L], the tokens of each sequence so far, aligned to the right.
        start: int64 [B], the column of each sequence's first token.
        size: n-gram length, 1 or more.
    Returns:
        int64 [B, max(L - size + 1, 0)] token ids, -1 for no ban.
    """
    length = history.shape[1]
    if length < size:
        return history.new_empty(history.shape[0], 0)
    windows = history.unfold(1, size, 1)  # [B, L - size + 1, size]
    prefix = history[:, length - size + 1 :].unsqueeze(1)  # [B, 1, size - 1]
    first = torch.arange(windows.shape[1], device=history.device)
    repeats = (windows[:, :, :-1] == prefix).all(2) & (first >= start.unsqueeze(1))
    return torch.where(repeats, windows[:, :, -1], -1)
