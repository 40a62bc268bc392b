"""Checks of arguments that the public ops share. Each raises ValueError with one line that names the argument."""

from torch import Tensor, bfloat16, float16, float32

from cdgen_kernels.codes import CONSTANT, MASK, SHIFTED_GOOD, OutsideHead
from cdgen_kernels.sampling_tensors import SamplingTensors

FLOAT_DTYPES = (float16, bfloat16, float32)  # dtypes of logits, hidden states and weights


def describe(*tensors: Tensor) -> str:
    """Return dtype and shape of each tensor, for messages."""
    return ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in tensors)


def check_logits(name: str, logits: Tensor, batch: int | None = None) -> Tensor:
    """Check logits [B, V] and return them with contiguous rows; `batch` is the B of GOOD's logits."""
    if logits.dim() != 2 or logits.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{name}: expected float16, bfloat16 or float32 logits [B, V], got {describe(logits)}")
    if batch is not None and logits.shape[0] != batch:
        raise ValueError(f"{name}: has batch size {logits.shape[0]}, but GOOD has {batch}")
    return logits if logits.stride(1) == 1 else logits.contiguous()


def check_vocab_size(vocab_size: int | None, *widths: int) -> int:
    """Return `vocab_size`, or the smallest of the widths if it is None."""
    width = min(widths)
    if vocab_size is None:
        return width
    if not 1 <= vocab_size <= width:
        raise ValueError(f"vocab_size = {vocab_size}: must be between 1 and {width}, the smallest vocabulary given")
    return vocab_size


def check_capacity(capacity: int) -> None:
    """Check the length of a list of candidates."""
    if capacity < 1:
        raise ValueError(f"capacity = {capacity}: must be at least 1")


def check_sampling(sampling: SamplingTensors, batch: int) -> None:
    """Check that there is one row of sampling parameters for each row of logits."""
    if sampling.margin.shape[0] != batch:
        raise ValueError(f"sampling: has batch size {sampling.margin.shape[0]}, but the logits have {batch}")


def check_banned(banned: Tensor | None, batch: int) -> Tensor | None:
    """Check banned token ids [B, N] and return them as contiguous int64."""
    if banned is None:
        return None
    if banned.dim() != 2 or banned.shape[0] != batch or banned.is_floating_point():
        raise ValueError(f"banned: expected integers [{batch}, N], got {describe(banned)}")
    return banned.long().contiguous()


def check_output_layer(hidden: Tensor, weight: Tensor) -> None:
    """Check hidden states [B, D] and the weight of an output layer [V, D]."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        got = f"{describe(hidden)} and {describe(weight)}"
        raise ValueError(f"hidden, weight: expected [B, D] and [V, D] of the same dtype, got {got}")


def outside_mode(outside_head: OutsideHead) -> tuple[int, float]:
    """Return (mode, constant score) as the ops take them, from the public form of the mode."""
    if outside_head == "mask":
        return MASK, 0.0
    if outside_head == "shifted_good":
        return SHIFTED_GOOD, 0.0
    if isinstance(outside_head, (int, float)):
        return CONSTANT, float(outside_head)
    raise ValueError(f"outside_head = {outside_head!r}: use 'mask', 'shifted_good' or a number")
