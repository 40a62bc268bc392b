"""The loss of a language model's output layer and its gradients, without the logits of all rows in memory at once.

    loss = linear_cross_entropy(hidden, weight, target)     # cross_entropy(hidden @ weight.T, target)
    loss.backward()

The forward pass processes a chunk of rows at a time: it computes their logits, turns them into the gradient of the
logits, and adds up the gradients of both inputs, all in one buffer that the next chunk reuses. The backward pass only
multiplies these gradients by the gradient of the loss. This is the order of Liger's fused linear cross entropy
(Hsu et al. 2024, arXiv 2410.10989, section 3.2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdgen_kernels.checks import FLOAT_DTYPES, check_tensors, describe
from cdgen_kernels.scalars import INT32_MAX, INT64_MAX, INT64_MIN, shown, whole

__all__ = ["linear_cross_entropy"]

# Reading and writing the float32 gradient of the weight takes 8 D V bytes per chunk, and the products of R rows take
# 6 R D V operations. At the H100's 3.35 TB/s and 70 % of its 989 TFLOP/s, that is 7 % of the products' time for 4096
# rows and 36 % for 768.
_GPU_CHUNK_ROWS = 4096

SoftmaxGradient = Callable[[Tensor, Tensor, int, bool], Tensor]


class LossAndGradients(NamedTuple):
    """The outputs of the op."""

    loss: Tensor  # scalar, sum over the rows
    grad_hidden: Tensor  # [N, D]; empty if it was not requested
    grad_weight: Tensor  # [V, D], float32 or float64; empty if it was not requested


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """Compute the cross entropy of `hidden @ weight.T` and `target`, as torch.nn.functional.cross_entropy defines it.

    Products of 16-bit inputs are accumulated in float32; softmax and loss are float32 (float64 for float64 inputs).
    Under autocast, the inputs are cast as for a linear layer. Ignored rows have gradient 0; if all rows are ignored,
    the mean is NaN, as in torch. NaN and infinities propagate as in torch. A second derivative is not supported.
    Gradients are computed only for inputs that require them.

    Args:
        hidden: hidden states [..., D], float16, bfloat16, float32 or float64.
        weight: weight of the output layer [V, D], of the same dtype.
        target: int64 [...], token ids from 0 to V - 1, or `ignore_index`.
        ignore_index: target of rows that do not contribute to the loss.
        reduction: `"mean"` over the rows that are not ignored, or their `"sum"`.
        chunk_rows: number of rows whose logits exist at the same time. Each chunk reads and writes the whole gradient
            of `weight` once, so a chunk must have enough rows to make that worthwhile. Default: 4096 on GPUs, where
            products are fast compared with memory; on the CPU D, clamped to [512, 2048], which makes the buffer of
            logits about as large as `weight`.
    Returns:
        Scalar, float32 (float64 for float64 inputs).
    Raises:
        ValueError: shapes, dtypes or devices do not match. On the CPU also if a target is neither in [0, V) nor
            `ignore_index`; the message names its index. On other devices such a target makes the loss and the
            gradients NaN, so that the call never waits for the device.
    """
    check_tensors(hidden=hidden, weight=weight, target=target)
    ignore_index = whole("ignore_index", ignore_index, INT64_MIN, INT64_MAX)
    if chunk_rows is not None:
        chunk_rows = whole("chunk_rows", chunk_rows, 1, INT32_MAX)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (hidden, weight))
    _check(hidden, weight, target, reduction)
    if chunk_rows is None:
        chunk_rows = min(max(hidden.shape[-1], 512), 2048) if hidden.device.type == "cpu" else _GPU_CHUNK_ROWS
    target = target.reshape(-1)
    needs = [x.requires_grad and torch.is_grad_enabled() for x in (hidden, weight)]
    rows = hidden.reshape(-1, hidden.shape[-1])
    loss: Tensor = torch.ops.cdgen.linear_cross_entropy.default(rows, weight, target, ignore_index, chunk_rows, *needs)[
        0
    ]
    if reduction == "sum":
        return loss
    count = (target != ignore_index).sum()
    return torch.where(count > 0, loss / count.clamp(min=1), torch.nan)  # the gradient of 0 / 0 would be NaN


def _check(hidden: Tensor, weight: Tensor, target: Tensor, reduction: str) -> None:
    if hidden.dim() < 1 or hidden.dtype not in (*FLOAT_DTYPES, torch.float64):
        expected = "float16, bfloat16, float32 or float64 [..., D]"
        raise ValueError(f"hidden: expected {expected}, got {describe(hidden)}")
    fits = weight.dim() == 2 and weight.shape[0] > 0 and weight.shape[1:] == hidden.shape[-1:]
    if not fits or weight.dtype != hidden.dtype:
        expected = f"{hidden.dtype} [V, {hidden.shape[-1]}] to match hidden"
        raise ValueError(f"weight: expected {expected}, got {describe(weight)}")
    if target.shape != hidden.shape[:-1] or target.dtype != torch.int64:
        expected = f"torch.int64 {tuple(hidden.shape[:-1])} to match hidden"
        raise ValueError(f"target: expected {expected}, got {describe(target)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction = {shown(reduction)}: use 'mean' or 'sum'")


def _check_targets(target: Tensor, vocab_size: int, ignore_index: int) -> None:
    wrong = ((target < 0) | (target >= vocab_size)) & (target != ignore_index)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        allowed = f"between 0 and {vocab_size - 1}, or ignore_index = {ignore_index}"
        raise ValueError(f"target {index} of {target.numel()} is {int(target[index])}: must be {allowed}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


# --------------------------------------------------------------------------------------------------- implementations


def softmax_gradient(logits: Tensor, target: Tensor, ignore_index: int, gradient: bool) -> Tensor:
    """Replace logits by the gradient of the loss, softmax minus one-hot, in place; return the loss.

    Args:
        logits: [N, V], float32 or float64; overwritten.
        target: int64 [N].
        ignore_index: target of rows with loss and gradient 0.
        gradient: whether the gradient is needed; if not, the contents of `logits` are undefined afterwards.
    Returns:
        Loss of each row [N]: 0 if the target is `ignore_index`, NaN if it is out of range.
    """
    vocab_size = logits.shape[1]
    ignored = target == ignore_index
    in_range = (target >= 0) & (target < vocab_size)
    index = target.clamp(0, vocab_size - 1).unsqueeze(1)
    max_logit = logits.amax(1, keepdim=True)
    margin = max_logit - logits.gather(1, index)
    logits.sub_(max_logit).exp_()
    total = logits.sum(1, keepdim=True)
    loss = torch.where(in_range, (total.log() + margin).squeeze(1), torch.nan)
    if gradient:
        logits.mul_(torch.where(in_range, 1.0, torch.nan).unsqueeze(1).to(logits.dtype) / total)
        logits.scatter_add_(1, index, torch.full_like(total, -1))
        logits.masked_fill_(ignored.unsqueeze(1), 0)
    return torch.where(ignored, 0, loss)


def _by_chunks(
    softmax_gradient: SoftmaxGradient,
    logits: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
) -> LossAndGradients:
    """Compute the op's outputs; `logits` is the buffer [chunk_rows, V], and products have its dtype."""
    wide = _wide(hidden.dtype)
    loss = hidden.new_zeros((), dtype=wide)
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = hidden.new_zeros(weight.shape if need_weight else 0, dtype=wide)
    weight, target = weight.to(logits.dtype), target.contiguous()
    for start in range(0, hidden.shape[0], logits.shape[0]):
        chunk = slice(start, start + logits.shape[0])
        rows = hidden[chunk].to(logits.dtype)
        z = torch.mm(rows, weight.t(), out=logits[: rows.shape[0]])
        loss += softmax_gradient(z, target[chunk], ignore_index, need_hidden or need_weight).sum()
        if need_hidden and z.dtype == hidden.dtype:
            torch.mm(z, weight, out=grad_hidden[chunk])
        elif need_hidden:
            grad_hidden[chunk] = torch.mm(z, weight)
        if need_weight and z.dtype == wide:
            grad_weight.addmm_(z.t(), rows)
        elif need_weight:
            torch.addmm(grad_weight, z.t(), rows, out_dtype=wide, out=grad_weight)  # CUDA: 16-bit in, float32 out
    return LossAndGradients(loss, grad_hidden, grad_weight)


def _in_full_precision(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    chunk_rows: int,
    need_hidden: bool,
    need_weight: bool,
) -> LossAndGradients:
    """Keep the logits in float32 (float64 for float64 inputs)."""
    if hidden.device.type == "cpu":  # reading the targets costs no synchronisation here
        _check_targets(target, weight.shape[0], ignore_index)
    kernel = softmax_gradient if hidden.dtype == torch.float64 else torch.ops.cdgen.softmax_gradient.default
    logits = hidden.new_empty((min(chunk_rows, hidden.shape[0]) or 1, weight.shape[0]), dtype=_wide(hidden.dtype))
    with torch.autocast(hidden.device.type, enabled=False):
        return _by_chunks(kernel, logits, hidden, weight, target, ignore_index, need_hidden, need_weight)


def _with_triton(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    chunk_rows: int,
    need_hidden: bool,
    need_weight: bool,
) -> LossAndGradients:
    """Keep the logits in the dtype of the inputs; Triton computes in float32. float64 inputs do not use Triton."""
    if hidden.dtype == torch.float64:
        return _in_full_precision(hidden, weight, target, ignore_index, chunk_rows, need_hidden, need_weight)
    from cdgen_kernels.triton import cross_entropy as triton_cross_entropy  # slow, so only when needed

    width = -(-weight.shape[0] // 16) * 16  # so that every row starts at a multiple of 16 bytes, which Triton detects
    logits = hidden.new_empty((min(chunk_rows, hidden.shape[0]) or 1, width))[:, : weight.shape[0]]
    kernel = triton_cross_entropy.softmax_gradient
    with torch.autocast(hidden.device.type, enabled=False):
        return _by_chunks(kernel, logits, hidden, weight, target, ignore_index, need_hidden, need_weight)


# -------------------------------------------------------------------------------------------- fakes and the derivative


def fake_softmax_gradient(logits: Tensor, target: Tensor, ignore_index: int, gradient: bool) -> Tensor:
    """Return an empty loss [N]."""
    return logits.new_empty(logits.shape[0], dtype=_wide(logits.dtype))


def fake_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    chunk_rows: int,
    need_hidden: bool,
    need_weight: bool,
) -> LossAndGradients:
    """Return empty outputs of the op."""
    wide = _wide(hidden.dtype)
    return LossAndGradients(
        hidden.new_empty((), dtype=wide),
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        hidden.new_empty(weight.shape if need_weight else 0, dtype=wide),
    )


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the gradients that the forward pass computed."""
    ctx.needs = inputs[-2:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # the gradients of the other outputs would be zeros as large as the weights
    ctx.save_for_backward(*output[1:])


def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Multiply the saved gradients by the gradient of the loss."""
    if torch.is_grad_enabled():  # create_graph=True, which would treat the saved gradients as constants
        raise RuntimeError("linear_cross_entropy has no second derivative")
    grads: list[Tensor | None] = [None, None]
    for i, grad in enumerate(ctx.saved_tensors):
        if ctx.needs[i] and grad_loss is not None:
            out = grad.new_empty(grad.shape, dtype=ctx.saved_tensors[0].dtype)
            # A factor with a dimension takes part in type promotion: the product is float32 and rounded once.
            grads[i] = torch.mul(grad, grad_loss.reshape(1), out=out)
    return (*grads, None, None, None, None, None)
