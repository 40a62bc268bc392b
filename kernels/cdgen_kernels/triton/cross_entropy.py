"""Between the products of `linear_cross_entropy` on GPUs: a chunk's logits become their gradient in place.

One program a row: softmax in one pass, online (Milakov and Gimelshein 2018), then a pass that writes. Every logit is
read twice, those of the last tile once, the target's once more; every logit is written once. A row that is ignored is
written and not read.
"""

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton.settings import SCALAR_POINTERS

# Launch settings; none has been measured on a GPU yet. Large programs, so that the rows in flight fit the L2 cache.
NUM_WARPS = 16
GROUPS = 2  # of 16 bytes, read by a thread at once

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # not -inf, which minus itself is NaN


@triton.jit
def add_tile(best, total, x):
    """Add a tile of logits [T, G] to each line's greatest logit [T] and sum of exp(logit - greatest) [T].

    The maximum passes over NaN and the sum does not; +inf minus itself makes the sum NaN, as in torch.
    """
    higher = tl.maximum(best, tl.max(x, 1))
    return higher, total * tl.exp(best - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)


@triton.jit
def gradient_of(x, place, target, best, factor):
    return tl.exp(x - best) * factor - (place == target).to(tl.float32)


@triton.jit(do_not_specialize_on_alignment=SCALAR_POINTERS)
def softmax_gradient_kernel(
    logits, target, loss, stride, vocab_size, ignore_index, GRADIENT: tl.constexpr, T: tl.constexpr, G: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    dtype = logits.dtype.element_ty
    wanted = tl.load(target + row)
    place = tl.arange(0, T)[:, None] * G + tl.arange(0, G)[None, :]  # 16 bytes, G neighbours, to a line
    whole = vocab_size // (T * G) * (T * G)
    rest = whole + place
    if wanted == ignore_index:
        tl.store(loss + row, 0.0)
        if GRADIENT:
            zeros = tl.zeros([T, G], dtype)
            for start in range(0, whole, T * G):
                tl.store(logits + start + place, zeros)
            tl.store(logits + rest, zeros, mask=rest < vocab_size)
    else:
        in_range = (wanted >= 0) & (wanted < vocab_size)
        at_target = tl.load(logits + wanted, mask=in_range, other=float("nan")).to(tl.float32)
        best = tl.full([T], _LOWEST, tl.float32)
        total = tl.zeros([T], tl.float32)
        for start in range(0, whole, T * G):
            best, total = add_tile(best, total, tl.load(logits + start + place).to(tl.float32))
        last = tl.load(logits + rest, mask=rest < vocab_size, other=float("-inf")).to(tl.float32)
        best, total = add_tile(best, total, last)
        highest = tl.max(best, 0)
        total_of_row = tl.sum(total * tl.exp(best - highest), 0)
        tl.store(loss + row, tl.log(total_of_row) + (highest - at_target))
        if GRADIENT:
            factor = tl.where(in_range, 1.0 / total_of_row, float("nan"))
            index = wanted.to(tl.int32)
            gradient = gradient_of(last, rest, index, highest, factor)
            tl.store(logits + rest, gradient.to(dtype), mask=rest < vocab_size)
            for done in range(0, whole, T * G):  # backwards: what was read last may still be in a cache
                at = whole - T * G - done + place
                gradient = gradient_of(tl.load(logits + at).to(tl.float32), at, index, highest, factor)
                tl.store(logits + at, gradient.to(dtype))


def softmax_gradient(logits, target, ignore_index, gradient):
    """:func:`cdgen_kernels.cross_entropy.softmax_gradient` in one launch; same arguments, float32 arithmetic.

    Args:
        logits: [N, V], float16, bfloat16 or float32, any row stride; vector loads where it is a multiple of 16.
        target: int64 [N], contiguous.
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
