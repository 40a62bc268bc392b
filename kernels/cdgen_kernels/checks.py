"""Checks of arguments that the public ops share. Each raises ValueError with one line that names the argument.

They look at shapes, dtypes, devices and strides, which costs a microsecond or two. Values are checked by the kernels:
in C++ before they are used, on GPUs by masks, so that no call waits for the device.
"""

import math

from torch import Tensor, bfloat16, device, dtype, float16, float32, int32, int64

from cdgen_kernels.codes import CONSTANT, MASK, SHIFTED_GOOD, OutsideHead
from cdgen_kernels.sampling_tensors import DTYPES, Candidates, SamplingTensors
from cdgen_kernels.scalars import FLOAT32_MAX, INT32_MAX, real, shown, whole

FLOAT_DTYPES = (float16, bfloat16, float32)  # dtypes of logits, hidden states and weights


def describe(*tensors: object) -> str:
    """Return dtype and shape of each tensor, for messages."""
    return ", ".join(f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in tensors)


def check_tensors(**tensors: object) -> None:
    """Check that all arguments, given by name, are tensors on one device."""
    where = None
    for x in tensors.values():  # a loop is faster than all()
        if not isinstance(x, Tensor) or (where is not None and x.device != where):
            break
        where = where or x.device
    else:
        return
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {shown(x)}")
    found = ", ".join(f"{name} is on {x.device}" for name, x in tensors.items())  # type: ignore[attr-defined]
    raise ValueError(f"all tensors must be on the same device, but {found}")


def check_dense(name: str, x: object, kind: dtype, shape: tuple[int, ...], where: device) -> None:
    """Check that x is a contiguous tensor of a dtype and shape on a device."""
    if not (isinstance(x, Tensor) and x.dtype is kind and x.shape == shape and x.device == where and x.is_contiguous()):
        expected = f"contiguous {kind} {tuple(shape)} on {where}"
        strides = f" with strides {x.stride()} on {x.device}" if isinstance(x, Tensor) else ""
        raise ValueError(f"{name}: expected {expected}, got {describe(x)}{strides}")


def check_logits(name: str, logits: Tensor, good: Tensor | None = None) -> Tensor:
    """Check logits [B, V] and return them with contiguous rows; `good` are GOOD's logits if these are BAD's."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.dtype not in FLOAT_DTYPES or not logits.shape[1]:
        raise ValueError(f"{name}: expected float16, bfloat16 or float32 logits [B, V], got {describe(logits)}")
    if good is not None:
        if logits.shape[0] != good.shape[0]:
            raise ValueError(f"{name}: has batch size {logits.shape[0]}, but GOOD has {good.shape[0]}")
        if logits.device != good.device:
            raise ValueError(f"{name}: is on {logits.device}, but GOOD is on {good.device}")
    # asking for a stride takes longer than asking whether the whole tensor is contiguous, as it usually is
    return logits if logits.is_contiguous() or logits.stride(1) == 1 else logits.contiguous()


def check_vocab_size(vocab_size: int | None, *widths: int) -> int:
    """Return `vocab_size`, or the smallest of the widths if it is None."""
    width = min(widths)
    if vocab_size is None:
        return width
    vocab_size = whole("vocab_size", vocab_size, 0, INT32_MAX)
    if not 1 <= vocab_size <= width:
        raise ValueError(f"vocab_size = {vocab_size}: must be between 1 and {width}, the smallest vocabulary given")
    return vocab_size


def check_capacity(capacity: int) -> int:
    """Return the length of a list of candidates."""
    return whole("capacity", capacity, 1, INT32_MAX)


def check_sampling(sampling: SamplingTensors, batch: int, where: device) -> None:
    """Check that there is one row of sampling parameters for each row of logits, on their device."""
    if not isinstance(sampling, SamplingTensors):
        raise ValueError(f"sampling: expected SamplingTensors from make_sampling_tensors, got {describe(sampling)}")
    shape = (batch,)
    for x, kind in zip(sampling, DTYPES, strict=True):
        if type(x) is Tensor and x.dtype is kind and x.shape == shape and x.device == where and x.is_contiguous():
            continue
        if isinstance(x, Tensor) and x.dim() == 1 and len(x) != batch:
            raise ValueError(f"sampling: has batch size {len(x)}, but the logits have {batch}")
        break
    else:
        return
    for name, x, kind in zip(sampling._fields, sampling, DTYPES, strict=True):
        check_dense(f"sampling.{name}", x, kind, shape, where)


def check_candidates(candidates: Candidates) -> None:
    """Check the shapes, dtypes and devices of lists of candidates."""
    token = candidates.token if isinstance(candidates, Candidates) else None
    if not isinstance(token, Tensor) or token.dim() != 2 or not token.shape[1]:
        raise ValueError(f"candidates: expected Candidates of tensors [B, C], got {describe(token)}")
    shape, where = token.shape, token.device
    check_dense("candidates.token", token, int32, shape, where)
    check_dense("candidates.logit", candidates.logit, float32, shape, where)
    check_dense("candidates.count", candidates.count, int32, shape[:1], where)
    check_dense("candidates.max", candidates.max, float32, shape[:1], where)


def check_banned(banned: Tensor | None, batch: int, where: device) -> Tensor | None:
    """Check banned token ids [B, N] and return them as contiguous int64."""
    if banned is None:
        return None
    fits = isinstance(banned, Tensor) and banned.dim() == 2 and banned.dtype in (int32, int64)
    if not fits or banned.shape[0] != batch:
        raise ValueError(f"banned: expected integers [{batch}, N], int32 or int64, got {describe(banned)}")
    if banned.device != where:
        raise ValueError(f"banned: is on {banned.device}, but the logits are on {where}")
    return banned.long().contiguous()


def check_output_layer(hidden: Tensor, weight: Tensor) -> Tensor:
    """Check hidden states [B, D] and the weight of an output layer [V, D]; return the former with contiguous rows."""
    check_tensors(hidden=hidden, weight=weight)
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1] and weight.shape[0] > 0
    if not fits or hidden.dtype != weight.dtype or hidden.dtype not in FLOAT_DTYPES:
        got = f"{describe(hidden)} and {describe(weight)}"
        raise ValueError(f"hidden, weight: expected [B, D] and [V, D] of the same floating dtype, got {got}")
    if weight.shape[1] > 1 and weight.stride(1) != 1:  # a copy would be made at every call
        raise ValueError(f"weight: rows must be contiguous, got strides {weight.stride()}")
    return hidden if hidden.stride(1) == 1 else hidden.contiguous()


def outside_mode(outside_head: OutsideHead) -> tuple[int, float]:
    """Return (mode, constant score) as the ops take them, from the public form of the mode."""
    if isinstance(outside_head, str):
        if outside_head == "mask":
            return MASK, 0.0
        if outside_head == "shifted_good":
            return SHIFTED_GOOD, 0.0
        raise ValueError(f"outside_head = {shown(outside_head)}: use 'mask', 'shifted_good' or a number")
    score = real("outside_head", outside_head, "'mask', 'shifted_good' or a number")
    if score == -math.inf:
        return MASK, 0.0
    if not abs(score) <= FLOAT32_MAX:
        raise ValueError(f"outside_head = {score}: must be a number that float32 holds, or -inf, which is 'mask'")
    return CONSTANT, score
