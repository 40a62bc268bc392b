"""The step between the matrix products of `linear_cross_entropy` on GPUs: logits become their gradient in place.

One program per row: an online softmax in one pass (Milakov and Gimelshein 2018), then a pass that writes. Every logit
is read twice, except that those of the last tile are read once and the target's is read once more. Every logit is
written once. An ignored row is written and not read.
"""

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton.constants import LOWEST
from cdgen_kernels.triton.settings import SCALAR_POINTERS

# Launch settings; they have not been measured on a GPU yet. Programs are large, so that the rows in flight fit the L2
# cache.
NUM_WARPS = 16
GROUPS = 2  # 16-byte loads that a thread has in flight


@triton.jit
def add_tile(best, total, x):
    """Add a tile of logits [T, G] to each line's greatest logit [T] and sum of exp(logit - greatest) [T].

    The maximum ignores NaN and the sum does not. +inf minus itself makes the sum NaN, as in torch.
    """
    higher = tl.maximum(best, tl.max(x, 1))
    return higher, total * tl.exp(best - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)


@triton.jit
def logit_gradient(x, token, target, best, factor):
    """Return softmax(x) - [token == target], given the row's maximum and the reciprocal of its total."""
    return tl.exp(x - best) * factor - (token == target).to(tl.float32)


@triton.jit(do_not_specialize_on_alignment=SCALAR_POINTERS)
def softmax_gradient_kernel(
    logits_ptr, target_ptr, loss_ptr, logits_stride, vocab_size, ignore_index,
    GRADIENT: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Write the loss of each row and, if GRADIENT, replace its logits by their gradient. Grid: (N,).

    logits are [N, vocab_size] with unit stride along the vocabulary, target int64 [N], loss float32 [N].
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    dtype = logits_ptr.dtype.element_ty
    target = tl.load(target_ptr + row)
    offset = tl.arange(0, T)[:, None] * G + tl.arange(0, G)[None, :]  # a line is G neighbours, 16 bytes
    whole = vocab_size // (T * G) * (T * G)
    rest = whole + offset
    if target == ignore_index:
        tl.store(loss_ptr + row, 0.0)
        if GRADIENT:
            zeros = tl.zeros([T, G], dtype)
            for start in range(0, whole, T * G):
                tl.store(logits_ptr + start + offset, zeros)
            tl.store(logits_ptr + rest, zeros, mask=rest < vocab_size)
    else:
        in_range = (target >= 0) & (target < vocab_size)
        target_logit = tl.load(logits_ptr + target, mask=in_range, other=float("nan")).to(tl.float32)
        best = tl.full([T], LOWEST, tl.float32)
        total = tl.zeros([T], tl.float32)
        for start in range(0, whole, T * G):
            best, total = add_tile(best, total, tl.load(logits_ptr + start + offset).to(tl.float32))
        last = tl.load(logits_ptr + rest, mask=rest < vocab_size, other=float("-inf")).to(tl.float32)
        best, total = add_tile(best, total, last)
        highest = tl.max(best, 0)
        row_total = tl.sum(total * tl.exp(best - highest), 0)
        tl.store(loss_ptr + row, tl.log(row_total) + (highest - target_logit))
        if GRADIENT:
            factor = tl.where(in_range, 1.0 / row_total, float("nan"))
            index = target.to(tl.int32)
            gradient = logit_gradient(last, rest, index, highest, factor)
            tl.store(logits_ptr + rest, gradient.to(dtype), mask=rest < vocab_size)
            for done in range(0, whole, T * G):  # backwards: what was read last may still be in a cache
                token = whole - T * G - done + offset
                gradient = logit_gradient(tl.load(logits_ptr + token).to(tl.float32), token, index, highest, factor)
                tl.store(logits_ptr + token, gradient.to(dtype))


def softmax_gradient(logits: torch.Tensor, target: torch.Tensor, ignore_index: int, gradient: bool) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.cross_entropy.softmax_gradient` in one launch, in float32 arithmetic.

    Args:
        logits: [N, V], float16, bfloat16 or float32, with unit stride along V. Loads are 16 bytes wide if the row
            stride is a multiple of 16. Replaced by the gradient if `gradient`.
        target: int64 [N], contiguous.
    Returns:
        The loss of each row, float32 [N].
    """
    rows, vocab_size = logits.shape
    loss = logits.new_empty(rows, dtype=torch.float32)
    if rows:
        softmax_gradient_kernel[(rows,)](
            logits, target, loss, logits.stride(0), vocab_size, ignore_index,
            GRADIENT=gradient, T=32 * NUM_WARPS * GROUPS, G=16 // logits.element_size(),
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return loss
