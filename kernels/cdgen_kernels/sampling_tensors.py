"""The inputs and outputs of the sampling ops: NamedTuples of tensors with one entry per row of logits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# One number for all rows, or one number per row: a sequence of length B or a tensor [B].
PerRow: TypeAlias = float | Sequence[float] | Tensor
WholePerRow: TypeAlias = int | Sequence[int] | Tensor


class SamplingTensors(NamedTuple):
    """Per-row sampling parameters, each a tensor [B] on the device of the logits.

    Build them with :func:`make_sampling_tensors`. They are tensors, so a captured CUDA graph or a compiled step can be
    replayed with other values: a decode loop keeps one `SamplingTensors` and calls `sampling.position.add_(1)` after
    each token.
    """

    margin: Tensor  # float32; -temperature * ln(alpha): candidates lie at most this far below GOOD's largest logit
    good_weight: Tensor  # float32
    contrast_strength: Tensor  # float32
    temperature: Tensor  # float32; 0: draw the best score, without noise
    top_p: Tensor  # float32; 1: disabled
    top_k: Tensor  # int32; 0: disabled
    seed: Tensor  # int64; 64-bit key of the noise
    sequence: Tensor  # int64; identifies the sequence, whatever batch it is in
    position: Tensor  # int64; index of the token in its sequence; only the low 32 bits are used


class Candidates(NamedTuple):
    """The candidates of each row as a list of fixed length C, in the order of their token ids."""

    token: Tensor  # int32 [B, C], -1 past the end
    logit: Tensor  # float32 [B, C], GOOD's logits, -inf past the end
    count: Tensor  # type: ignore[assignment]  # int32 [B], number of candidates, may exceed C; negative: a fault code
    max: Tensor  # float32 [B], GOOD's largest logit


class Samples(NamedTuple):
    """One drawn token per row and, if requested, its log-probabilities."""

    token: Tensor  # int64 [B]; negative: a fault code
    logprob: Tensor | None = None  # float32 [B], under the distribution drawn from (temperature 0: that of 1)
    good_logprob: Tensor | None = None  # float32 [B], log softmax of GOOD's logits, without temperature or bans
    bad_logprob: Tensor | None = None  # float32 [B], log softmax of BAD's logits


class _Requirement(NamedTuple):
    """The values that a parameter may take; all must be finite."""

    text: str
    allows: Callable[[Tensor], Tensor]


_FRACTION = _Requirement("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
_POSITIVE_FRACTION = _Requirement("in (0, 1]", lambda x: (x > 0) & (x <= 1))
_FINITE = _Requirement("a finite number", torch.isfinite)
_NOT_NEGATIVE = _Requirement("a finite number >= 0", lambda x: x >= 0)
_WHOLE = _Requirement("a whole number", torch.isfinite)
_WHOLE_NOT_NEGATIVE = _Requirement("a whole number >= 0", lambda x: x >= 0)


def _per_row(name: str, value: PerRow, dtype: torch.dtype, requirement: _Requirement, like: Tensor) -> Tensor:
    """Return `value` as a new tensor [B] on the device of `like` [B]."""
    tensor = torch.as_tensor(value, device=like.device).to(dtype)
    if tensor.dim() and tensor.shape != like.shape:
        raise ValueError(f"{name}: {tuple(tensor.shape)} values for {len(like)} rows; give one value, or one per row")
    wrong = ~(requirement.allows(tensor) & tensor.isfinite())
    if wrong.any():
        raise ValueError(f"{name} = {tensor[wrong].flatten()[0].item():g}: must be {requirement.text}")
    return tensor.expand(like.shape).clone()


def make_sampling_tensors(
    batch: int,
    *,
    alpha: PerRow = 0.1,
    good_weight: PerRow = 1.0,
    contrast_strength: PerRow = 1.0,
    temperature: PerRow = 1.0,
    top_k: WholePerRow = 0,
    top_p: PerRow = 1.0,
    seed: WholePerRow = 0,
    sequence: WholePerRow | None = None,
    position: WholePerRow = 0,
    device: torch.device | str = "cpu",
) -> SamplingTensors:
    """Build :class:`SamplingTensors` for a batch. Each parameter is one value for all rows or one value per row.

    Args:
        batch: number of rows B.
        alpha: tokens with at least alpha times GOOD's largest probability are candidates (Li et al. 2023, section 3).
            In [0, 1]; 0 makes every token a candidate. Without a BAD (`contrast_strength=0`) this is min-p sampling,
            and alpha is its `min_p`.
        good_weight, contrast_strength: the score is `good_weight * z_GOOD - contrast_strength * z_BAD`, divided by the
            temperature. Finite numbers, good_weight >= 0.
        temperature: divides the logits of both models before the candidates are selected; >= 0. 0: draw the best score.
        top_k: keep the k best scores; 0 disables it.
        top_p: then keep the smallest set of best scores whose probabilities add up to at least p, in (0, 1].
        seed: 64-bit key of the noise.
        sequence: number that identifies the row's sequence. Default: 0 to B - 1.
        position: index of the token in its sequence; >= 0.
        device: device of the logits.
    Returns:
        :class:`SamplingTensors`; its tensors own their memory.
    Raises:
        ValueError: a value is out of range, or a sequence or tensor does not have `batch` entries.
    """
    rows = torch.arange(batch, device=device)
    alpha64 = _per_row("alpha", alpha, torch.float64, _FRACTION, rows)
    temperature64 = _per_row("temperature", temperature, torch.float64, _NOT_NEGATIVE, rows)
    scale = torch.where(temperature64 == 0, 1.0, temperature64)
    margin = torch.where(alpha64 == 0, torch.inf, -scale * torch.log(alpha64))
    return SamplingTensors(
        margin=margin.float(),
        good_weight=_per_row("good_weight", good_weight, torch.float32, _NOT_NEGATIVE, rows),
        contrast_strength=_per_row("contrast_strength", contrast_strength, torch.float32, _FINITE, rows),
        temperature=temperature64.float(),
        top_p=_per_row("top_p", top_p, torch.float32, _POSITIVE_FRACTION, rows),
        top_k=_per_row("top_k", top_k, torch.int32, _WHOLE_NOT_NEGATIVE, rows),
        seed=_per_row("seed", seed, torch.int64, _WHOLE, rows),
        sequence=_per_row("sequence", rows if sequence is None else sequence, torch.int64, _WHOLE, rows),
        position=_per_row("position", position, torch.int64, _WHOLE_NOT_NEGATIVE, rows),
    )
