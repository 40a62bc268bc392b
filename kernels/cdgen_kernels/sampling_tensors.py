"""The inputs and outputs of the sampling ops: NamedTuples of tensors with one entry per row of logits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from cdgen_kernels.scalars import (
    FLOAT32_MAX,
    FLOAT32_TINY,
    INT32_MAX,
    INT64_MAX,
    INT64_MIN,
    range_of,
    real,
    shown,
    whole,
)

# One number for all rows, or one number per row: a sequence of length B or a tensor [B].
PerRow: TypeAlias = float | Sequence[float] | Tensor
WholePerRow: TypeAlias = int | Sequence[int] | Tensor

# Lower temperatures count as 0, as in vLLM: they would leave nothing but the best token.
LOWEST_TEMPERATURE = 1e-5
# top_p is lowered by this share, two units in the last place of float32, in which logits are rounded too. A set of
# tokens that weighs exactly p then suffices, as it does in transformers: two tokens of (.5, .3, .1, .1) for p = .8.
TOP_P_TOLERANCE = 2.0**-22


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
    top_p: Tensor  # float32; 1: disabled; lower than the p asked for by TOP_P_TOLERANCE
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
    bad_logprob: Tensor | None = None  # float32 [B], log softmax of BAD's logits; NaN if one of them is


# The dtype of each field of SamplingTensors.
DTYPES = (*[torch.float32] * 5, torch.int32, *[torch.int64] * 3)


class _Requirement(NamedTuple):
    """The values that a parameter may take; all must be finite."""

    text: str
    allows: Callable[[Tensor], Tensor]


_FRACTION = _Requirement("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
_POSITIVE_FRACTION = _Requirement("in (0, 1]", lambda x: (x > 0) & (x <= 1))
_FINITE = _Requirement("a finite number", torch.isfinite)
_NOT_NEGATIVE = _Requirement("a finite number >= 0", lambda x: x >= 0)
_TEMPERATURE = _Requirement(f"a finite number >= 0, at most {FLOAT32_MAX:.3g}", lambda x: (x >= 0) & (x <= FLOAT32_MAX))


def _spread(name: str, tensor: Tensor, wrong: Tensor, requirement: str, like: Tensor) -> Tensor:
    """Return `tensor` as a new tensor [B] on the device of `like` [B], unless a value is wrong."""
    if tensor.dim() and tensor.shape != like.shape:
        raise ValueError(f"{name}: {tuple(tensor.shape)} values for {len(like)} rows; give one value, or one per row")
    if wrong.any():
        first = tensor[wrong].flatten()[0].item()
        raise ValueError(f"{name} = {first if isinstance(first, int) else f'{first:.15g}'}: must be {requirement}")
    return tensor.to(like.device).expand(like.shape).clone()


def _as_tensor(name: str, value: object, requirement: str) -> Tensor | None:
    """Return a tensor or an array as a tensor; None for numbers and sequences of numbers."""
    if not hasattr(value, "__array__"):  # tensors have it, too
        return None
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):  # an array of strings, for example
        tensor = None
    if tensor is None or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} = {shown(value)}: must be {requirement}")
    return tensor


def _items(value: object) -> list[object]:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    return list(value) if is_sequence else [value]  # type: ignore[call-overload]


def _real_per_row(name: str, value: PerRow, requirement: _Requirement, like: Tensor, stored: bool = True) -> Tensor:
    """Return `value` as a new float64 tensor [B]; if it is `stored`, its numbers must be in float32's range."""
    tensor = _as_tensor(name, value, requirement.text)
    if tensor is None:
        numbers = [real(name, item, requirement.text) for item in _items(value)]
        tensor = torch.tensor(numbers if isinstance(value, Sequence) else numbers[0], dtype=torch.float64)
    tensor, text = tensor.double(), requirement.text
    wrong = ~(requirement.allows(tensor) & tensor.isfinite())
    if stored and not wrong.any():
        magnitude = tensor.abs()
        wrong = (magnitude > FLOAT32_MAX) | ((magnitude > 0) & (magnitude < FLOAT32_TINY))
        text = f"{text}, of a magnitude that float32 holds: 0, or {FLOAT32_TINY:.3g} to {FLOAT32_MAX:.3g}"
    return _spread(name, tensor, wrong, text, like)


def _whole_per_row(name: str, value: WholePerRow, low: int, high: int, like: Tensor) -> Tensor:
    """Return `value` as a new int64 tensor [B], with numbers from `low` to `high`."""
    text = range_of(low, high)
    tensor = _as_tensor(name, value, text)
    if tensor is None:
        numbers = [whole(name, item, low, high) for item in _items(value)]  # type: ignore[arg-type]
        tensor = torch.tensor(numbers if isinstance(value, Sequence) else numbers[0], dtype=torch.int64)
    numbers64 = tensor.long()
    if tensor.is_floating_point() or (tensor.dtype == torch.uint64 and (numbers64 < 0).any()):  # 2^63 or more
        raise ValueError(f"{name} = {shown(value)}: must be {text}")
    return _spread(name, numbers64, (numbers64 < low) | (numbers64 > high), text, like)


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
        temperature: divides the logits of both models before the candidates are selected; >= 0. 0: draw the best score
            among the candidates of temperature 1. Values below 1e-5 count as 0.
        top_k: keep the k best scores; 0 disables it.
        top_p: then keep the smallest set of best scores whose probabilities add up to at least p, in (0, 1]. A sum that
            falls short of p by a relative 2.4e-7, the accuracy of float32, counts as p.
        seed: 64-bit key of the noise, from -2^63 to 2^63 - 1.
        sequence: number that identifies the row's sequence, of the same range. Default: 0 to B - 1.
        position: index of the token in its sequence; >= 0.
        device: device of the logits.
    Returns:
        :class:`SamplingTensors`; its tensors own their memory.
    Raises:
        ValueError: a value is out of range, a whole number is not one, or a sequence or tensor does not have `batch`
            entries. Ranges are those of the dtypes that the ops compute with: a top_p that float32 would turn into 0
            is refused, and so is a top_k beyond int32.
    """
    rows = torch.arange(whole("batch", batch, 0, INT32_MAX), device=device)

    alpha64 = _real_per_row("alpha", alpha, _FRACTION, rows, stored=False)  # only its logarithm is
    temperature64 = _real_per_row("temperature", temperature, _TEMPERATURE, rows, stored=False)
    temperature64 = torch.where(temperature64 < LOWEST_TEMPERATURE, 0.0, temperature64)
    scale = torch.where(temperature64 == 0, 1.0, temperature64)
    margin = torch.where(alpha64 == 0, torch.inf, -scale * torch.log(alpha64))
    top_p64 = _real_per_row("top_p", top_p, _POSITIVE_FRACTION, rows)
    return SamplingTensors(
        margin=margin.float(),
        good_weight=_real_per_row("good_weight", good_weight, _NOT_NEGATIVE, rows).float(),
        contrast_strength=_real_per_row("contrast_strength", contrast_strength, _FINITE, rows).float(),
        temperature=temperature64.float(),
        top_p=torch.where(top_p64 == 1, 1.0, top_p64 * (1 - TOP_P_TOLERANCE)).float(),
        top_k=_whole_per_row("top_k", top_k, 0, INT32_MAX, rows).int(),
        seed=_whole_per_row("seed", seed, INT64_MIN, INT64_MAX, rows),
        sequence=_whole_per_row("sequence", rows if sequence is None else sequence, INT64_MIN, INT64_MAX, rows),
        position=_whole_per_row("position", position, 0, INT64_MAX, rows),
    )
