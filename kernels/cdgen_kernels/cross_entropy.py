"""The loss of a language model's output layer and its gradients, with never more than a chunk of the logits in memory.

    loss = linear_cross_entropy(hidden, weight, target)     # cross_entropy(hidden @ weight.T, target)
    loss.backward()

Rows are taken a chunk at a time: logits, their softmax and the gradient of both inputs, all in one buffer, before the
next chunk's. The forward pass therefore has all that backward needs but one factor, and backward only scales. Liger's
fused linear cross entropy (Hsu et al. 2024, arXiv 2410.10989, section 3.2) does it in this order.
"""

import torch

from cdgen_kernels.registry import implementation, on_device_of_first

__all__ = ["linear_cross_entropy"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def linear_cross_entropy(hidden, weight, target, *, ignore_index=-100, reduction="mean", chunk_rows=None):
    """Cross entropy of `hidden @ weight.T` and `target`, as torch.nn.functional.cross_entropy defines it.

    Products of 16-bit inputs are added up in float32, softmax and loss are float32 (float64 for float64 inputs). Under
    autocast, inputs are cast as those of a linear layer. Rows that are ignored have gradient 0; with nothing but
    ignored rows the mean is NaN, as torch's is. NaN and infinities go where they go in torch. There is no second
    derivative. What needs no gradient gets none computed.

    Args:
        hidden: [..., D], float16, bfloat16, float32 or float64. weight: [V, D], of the same dtype.
        target: int64 [...].
        ignore_index: target of rows that do not count.
        reduction: `"mean"` over the rows that count, or their `"sum"`.
        chunk_rows: rows whose logits exist at one time. Default: D, within 512 and 2048. Then the buffer is about as
            large as `weight`, and a product with it has enough rows to be worth its pass over the gradient of `weight`.
    Returns:
        float32 (float64 for float64 inputs) scalar.
    Raises:
        ValueError: wrong shapes, dtypes or devices; on the CPU also a target that is neither 0 to V - 1 nor
            `ignore_index`, by index. On other devices such a row makes the loss and the gradients NaN, so that nothing
            waits for the device.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (hidden, weight))
    _check(hidden, weight, target, reduction, chunk_rows)
    if chunk_rows is None:
        chunk_rows = min(max(hidden.shape[-1], 512), 2048)
    target = target.reshape(-1)
    wanted = [x.requires_grad and torch.is_grad_enabled() for x in (hidden, weight)]
    rows = hidden.reshape(-1, hidden.shape[-1])
    loss = torch.ops.cdgen.linear_cross_entropy.default(rows, weight, target, ignore_index, chunk_rows, *wanted)[0]
    if reduction == "sum":
        return loss
    count = (target != ignore_index).sum()
    return torch.where(count > 0, loss / count.clamp(min=1), torch.nan)  # not 0 / 0, whose gradient is NaN


def _check(hidden, weight, target, reduction, chunk_rows):
    if hidden.dim() < 1 or hidden.dtype not in _DTYPES:
        got = f"{hidden.dtype} {tuple(hidden.shape)}"
        raise ValueError(f"hidden: expected float16, bfloat16, float32 or float64 [..., D], got {got}")
    if (
        weight.dim() != 2
        or weight.shape[0] < 1
        or weight.shape[1:] != hidden.shape[-1:]
        or weight.dtype != hidden.dtype
    ):
        got = f"{weight.dtype} {tuple(weight.shape)}"
        raise ValueError(f"weight: expected {hidden.dtype} [V, {hidden.shape[-1]}], as hidden, got {got}")
    if target.shape != hidden.shape[:-1] or target.dtype != torch.int64:
        got = f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"target: expected torch.int64 {tuple(hidden.shape[:-1])}, as hidden, got {got}")
    if not hidden.device == weight.device == target.device:
        where = f"hidden is on {hidden.device}, weight on {weight.device}, target on {target.device}"
        raise ValueError(f"all must be on one device, but {where}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction = {reduction!r}: use 'mean' or 'sum'")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows = {chunk_rows}: must be at least 1")


def _wide(dtype):
    return dtype if dtype == torch.float64 else torch.float32


def softmax_gradient(logits, target, ignore_index, gradient):
    """Turn logits into their gradient, softmax minus one-hot, in place.

    Args:
        logits: [N, V], float32 or float64; overwritten. target: int64 [N].
        gradient: whether the gradient is wanted; without it what is left in `logits` means nothing.
    Returns:
        loss of each row [N], 0 where the target is `ignore_index`, NaN where it is out of range.
    """
    vocab_size = logits.shape[1]
    ignored = target == ignore_index
    in_range = (target >= 0) & (target < vocab_size)
    index = target.clamp(0, vocab_size - 1).unsqueeze(1)
    best = logits.amax(1, keepdim=True)
    margin = best - logits.gather(1, index)
    logits.sub_(best).exp_()
    total = logits.sum(1, keepdim=True)
    loss = torch.where(in_range, (total.log() + margin).squeeze(1), torch.nan)
    if gradient:
        logits.mul_(torch.where(in_range, 1.0, torch.nan).unsqueeze(1).to(logits.dtype) / total)
        logits.scatter_add_(1, index, torch.full_like(total, -1))
        logits.masked_fill_(ignored.unsqueeze(1), 0)
    return torch.where(ignored, 0, loss)


def _by_chunks(softmax_gradient, logits, hidden, weight, target, ignore_index, need_hidden, need_weight):
    """The op's outputs; `logits` is the buffer [chunk_rows, V], whose dtype is that of the products."""
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
        if need_hidden:
            grad_hidden[chunk] = torch.mm(z, weight)
        if need_weight and z.dtype == wide:
            grad_weight.addmm_(z.t(), rows)
        elif need_weight:
            torch.addmm(grad_weight, z.t(), rows, out_dtype=wide, out=grad_weight)  # CUDA: 16-bit in, float32 out
    return loss, grad_hidden, grad_weight


def _plain(hidden, weight, target, ignore_index, chunk_rows, *needs, kernel=softmax_gradient):
    logits = hidden.new_empty((min(chunk_rows, hidden.shape[0]) or 1, weight.shape[0]), dtype=_wide(hidden.dtype))
    with torch.autocast(hidden.device.type, enabled=False):
        return _by_chunks(kernel, logits, hidden, weight, target, ignore_index, *needs)


def _with_triton(hidden, weight, target, ignore_index, chunk_rows, *needs):
    from cdgen_kernels.triton import cross_entropy as triton_cross_entropy  # the first call pays for importing Triton

    width = -(-weight.shape[0] // 16) * 16  # every row begins at a multiple of 16 bytes, and Triton knows it
    logits = hidden.new_empty((min(chunk_rows, hidden.shape[0]) or 1, width))[:, : weight.shape[0]]
    kernel = triton_cross_entropy.softmax_gradient
    with torch.autocast(hidden.device.type, enabled=False):
        return _by_chunks(kernel, logits, hidden, weight, target, ignore_index, *needs)


# ------------------------------------------------------------------------------------------------ registration


def _cpu(hidden, weight, target, ignore_index, *rest):
    wrong = ((target < 0) | (target >= weight.shape[0])) & (target != ignore_index)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        allowed = f"0 to {weight.shape[0] - 1}, or ignore_index = {ignore_index}"
        raise ValueError(f"target {at} of {target.numel()} is {int(target[at])}: must be {allowed}")
    cpp = implementation("cpu")[0] == "cpp" and hidden.dtype != torch.float64
    kernel = torch.ops.cdgen.softmax_gradient.default if cpp else softmax_gradient
    return _plain(hidden, weight, target, ignore_index, *rest, kernel=kernel)


def _cuda(hidden, *rest):
    triton = implementation("cuda")[0] == "triton" and hidden.dtype != torch.float64
    return (_with_triton if triton else _plain)(hidden, *rest)


def _fake(hidden, weight, target, ignore_index, chunk_rows, need_hidden, need_weight):
    wide = _wide(hidden.dtype)
    return (
        hidden.new_empty((), dtype=wide),
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        hidden.new_empty(weight.shape if need_weight else 0, dtype=wide),
    )


def _setup_context(ctx, inputs, output):
    ctx.needs = inputs[-2:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # of outputs as large as the weights
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad_loss, *_):
    if torch.is_grad_enabled():  # create_graph=True; the saved gradients would pass for constants
        raise RuntimeError("linear_cross_entropy has no second derivative")
    grads = [None, None]
    for i, grad in enumerate(ctx.saved_tensors):
        if ctx.needs[i] and grad_loss is not None:
            out = grad.new_empty(grad.shape, dtype=ctx.saved_tensors[0].dtype)
            # a factor of one dimension takes part in the choice of dtype: float32, rounded once
            grads[i] = torch.mul(grad, grad_loss.reshape(1), out=out)
    return (*grads, None, None, None, None, None)


# the same as the function softmax_gradient, in C++, for float32 on the CPU
torch.library.define(
    "cdgen::softmax_gradient", "(Tensor(a!) logits, Tensor target, int ignore_index, bool gradient) -> Tensor"
)
torch.library.register_fake("cdgen::softmax_gradient")(lambda logits, *_: logits.new_empty(logits.shape[0]))
_NAME = "cdgen::linear_cross_entropy"
torch.library.define(
    _NAME,
    "(Tensor hidden, Tensor weight, Tensor target, int ignore_index, int chunk_rows, bool need_hidden, "
    "bool need_weight) -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight)",
)
torch.library.impl(_NAME, "CPU")(_cpu)
torch.library.impl(_NAME, "CUDA")(on_device_of_first(_cuda))
torch.library.register_fake(_NAME)(_fake)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
