"""`add_rms_norm` and `rope_and_store` on GPUs, one launch each: everything is read once and written once."""

import torch
import triton
import triton.language as tl

from cdgen_kernels.triton.settings import SCALAR_POINTERS

# Launch settings; none has been measured on a GPU yet.
BYTES_PER_LANE = 64  # of a row that add_rms_norm has under way: four loads of 16 bytes
MAX_WARPS = 16
ROPE_NUMBERS = 512  # of half a head, times the heads of one program of a single warp


@triton.jit
def add_rms_norm_kernel(x, residual, weight, normed, total, width, eps, ADD: tl.constexpr, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    inside = i < width
    wide = tl.load(x + row * width + i, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(residual + row * width + i, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * width + i, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + i, (wide * factor * w).to(normed.dtype.element_ty), mask=inside)


def add_rms_norm(x, residual, weight, eps):
    """:func:`cdgen_kernels.reference.layers.add_rms_norm` in one launch; float32 arithmetic, contiguous tensors."""
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    if x.numel():
        rows, width = x.shape
        lanes = 64 if torch.version.hip else 32
        size = triton.next_power_of_2(width)
        warps = size * x.element_size() // (lanes * BYTES_PER_LANE)
        add_rms_norm_kernel[(rows,)](
            x, x if residual is None else residual, weight, normed, total, width, float(eps),
            ADD=residual is not None, N=size, num_warps=min(max(warps, 1), MAX_WARPS), enable_fp_fusion=True,
        )  # fmt: skip
    return normed, total


@triton.jit(do_not_specialize_on_alignment=SCALAR_POINTERS)
def rope_and_store_kernel(
    q, k, v, cos, sin, position, slot_mapping, keys, values, out,
    q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, q_heads, kv_heads,
    PAGE: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    q_tiles = tl.cdiv(q_heads, HEADS)
    i = tl.arange(0, N)[None, :]
    angle = tl.load(position + token) * HALF + i
    c = tl.load(cos + angle, mask=i < HALF, other=0.0)
    s = tl.load(sin + angle, mask=i < HALF, other=0.0)
    if tile < q_tiles:
        head = tile * HEADS + tl.arange(0, HEADS)[:, None]
        inside = (head < q_heads) & (i < HALF)
        source = q + token * q_row_stride + head.to(tl.int64) * q_head_stride + i
        real = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        imaginary = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        target = out + (token * q_heads + head) * (2 * HALF) + i
        tl.store(target, (real * c - imaginary * s).to(out.dtype.element_ty), mask=inside)
        tl.store(target + HALF, (imaginary * c + real * s).to(out.dtype.element_ty), mask=inside)
        return
    at = tl.load(slot_mapping + token)
    if at >= 0:
        head = (tile - q_tiles) * HEADS + tl.arange(0, HEADS)[:, None]
        inside = (head < kv_heads) & (i < HALF)
        target = ((at // PAGE * kv_heads + head) * PAGE + at % PAGE) * (2 * HALF) + i
        source = k + token * k_row_stride + head.to(tl.int64) * k_head_stride + i
        real = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        imaginary = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.store(keys + target, (real * c - imaginary * s).to(keys.dtype.element_ty), mask=inside)
        tl.store(keys + target + HALF, (imaginary * c + real * s).to(keys.dtype.element_ty), mask=inside)
        source = v + token * v_row_stride + head.to(tl.int64) * v_head_stride + i
        first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.store(values + target, first.to(values.dtype.element_ty), mask=inside)
        tl.store(values + target + HALF, second.to(values.dtype.element_ty), mask=inside)


def rope_and_store(q, k, v, cos, sin, position, slot_mapping, keys, values):
    """:func:`cdgen_kernels.reference.layers.rope_and_store` in one launch; float32 arithmetic."""
    tokens, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    out = q.new_empty(q.shape)
    if tokens:
        half = triton.next_power_of_2(dim // 2)
        heads = min(max(ROPE_NUMBERS // half, 1), triton.next_power_of_2(q_heads))
        # Not fused: products and sums round as those of the reference in float32 do.
        rope_and_store_kernel[(tokens, triton.cdiv(q_heads, heads) + triton.cdiv(kv_heads, heads))](
            q, k, v, cos, sin, position, slot_mapping, keys, values, out,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q_heads, kv_heads,
            PAGE=keys.shape[2], HALF=dim // 2, HEADS=heads, N=half, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out
