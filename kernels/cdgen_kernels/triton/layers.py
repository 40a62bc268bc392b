"""`add_rms_norm`, `silu_mul` and `rope_and_store` on GPUs in one launch each, which reads and writes numbers once."""

import torch
import triton
import triton.language as tl

from cdgen_kernels.reference.layers import FP8_MAX, LEAST_SCALE
from cdgen_kernels.triton.settings import SCALAR_POINTERS

# Launch settings; they have not been measured on a GPU yet.
BYTES_PER_LANE = 64  # bytes of a row that a lane of add_rms_norm has in flight: four loads of 16 bytes
MAX_WARPS = 16
GATE_WARPS = 4  # warps of silu_mul's programs; each lane has one load of 16 bytes of the gate in flight, and one of up
ROPE_NUMBERS = 512  # numbers of half a head, times the heads of a program, which is a single warp

_INVERSE_MAX = tl.constexpr(1 / FP8_MAX)
_LEAST_SCALE = tl.constexpr(LEAST_SCALE)


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, total_ptr, width, eps, ADD: tl.constexpr, N: tl.constexpr
):
    """Write x + residual (if ADD) and its RMS norm, both [rows, width]. Grid: (rows,). N is at least the width."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    inside = i < width
    wide = tl.load(x_ptr + row * width + i, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(residual_ptr + row * width + i, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * width + i, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    w = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + row * width + i, (wide * factor * w).to(normed_ptr.dtype.element_ty), mask=inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute :func:`cdgen_kernels.reference.layers.add_rms_norm` in one launch, in float32 arithmetic.

    Args:
        x, residual: [N, D], contiguous, of one dtype. weight: [D].
    """
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


@triton.jit
def silu_mul_kernel(gate_up_ptr, out_ptr, width, N: tl.constexpr):
    """Write silu(gate) * up [rows, width]; a row of gate_up is the gate, then up. Grid: (rows, tiles of N columns)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * N + tl.arange(0, N)
    inside = i < width
    gate = tl.load(gate_up_ptr + 2 * row * width + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + (2 * row + 1) * width + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + i, (gate / (1 + tl.exp(-gate)) * up).to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.reference.layers.silu_mul` of contiguous [N, 2 F] in one launch, in float32."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    if out.numel():
        lanes = 64 if torch.version.hip else 32
        size = lanes * GATE_WARPS * 16 // gate_up.element_size()
        silu_mul_kernel[(rows, triton.cdiv(width, size))](
            gate_up, out, width, N=size, num_warps=GATE_WARPS, enable_fp_fusion=True
        )
    return out


@triton.jit
def store_heads(store_ptr, scales_ptr, place, first, second, is_head, HALF: tl.constexpr, N: tl.constexpr):
    """Write both halves [HEADS, N] of heads to the cache, and their scales if its numbers are fp8.

    Args:
        place: int64 [HEADS, 1], page, head and offset of each head as a flat index. is_head: [HEADS, 1], the mask.
    """
    i = tl.arange(0, N)[None, :]
    inside = is_head & (i < HALF)
    if store_ptr.dtype.element_ty == tl.float8e4nv:  # see cdgen_kernels.reference.layers.to_fp8
        largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 1, keep_dims=True)
        scale = tl.maximum(largest * _INVERSE_MAX, _LEAST_SCALE).to(tl.bfloat16)
        tl.store(scales_ptr + place, scale, mask=is_head)
        inverse = tl.div_rn(1.0, scale.to(tl.float32))
        first *= inverse
        second *= inverse
    target = place * (2 * HALF) + i
    tl.store(store_ptr + target, first.to(store_ptr.dtype.element_ty), mask=inside)
    tl.store(store_ptr + target + HALF, second.to(store_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=SCALAR_POINTERS)
def rope_and_store_kernel(
    # queries [N, H, d], keys and values [N, K, d], with unit stride along d
    q_ptr, k_ptr, v_ptr,
    # float32 [positions, HALF]
    cos_ptr, sin_ptr,
    # int32 [sequences, pages per sequence], int32 [N], int64 [N]
    page_table_ptr, cache_row_ptr, position_ptr,
    # the cache, contiguous [pages, K, PAGE, d], bfloat16 [pages, K, PAGE] if it is fp8, and the rotated queries,
    # contiguous [N, H, d]
    keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, out_ptr,
    q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, table_stride,
    q_heads, kv_heads,
    PAGE: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rotate queries and keys, and store keys and values. Grid: (N, tiles of HEADS query heads, then of key heads)."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    q_tiles = tl.cdiv(q_heads, HEADS)
    i = tl.arange(0, N)[None, :]
    position = tl.load(position_ptr + token)
    angle = position * HALF + i
    c = tl.load(cos_ptr + angle, mask=i < HALF, other=0.0)
    s = tl.load(sin_ptr + angle, mask=i < HALF, other=0.0)
    if tile < q_tiles:
        head = tile * HEADS + tl.arange(0, HEADS)[:, None]
        inside = (head < q_heads) & (i < HALF)
        source_ptrs = q_ptr + token * q_row_stride + head.to(tl.int64) * q_head_stride + i
        real = tl.load(source_ptrs, mask=inside, other=0.0).to(tl.float32)
        imaginary = tl.load(source_ptrs + HALF, mask=inside, other=0.0).to(tl.float32)
        out_ptrs = out_ptr + (token * q_heads + head) * (2 * HALF) + i
        tl.store(out_ptrs, (real * c - imaginary * s).to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(out_ptrs + HALF, (imaginary * c + real * s).to(out_ptr.dtype.element_ty), mask=inside)
        return
    cache_row = tl.load(cache_row_ptr + token)
    if cache_row >= 0:
        # Only the stores wait for the page, so it is loaded while keys and values are.
        page = tl.load(page_table_ptr + cache_row.to(tl.int64) * table_stride + position // PAGE).to(tl.int64)
        head = (tile - q_tiles) * HEADS + tl.arange(0, HEADS)[:, None]
        is_head = head < tl.where(page >= 0, kv_heads, 0)  # without a page, nothing is stored
        inside = (head < kv_heads) & (i < HALF)
        place = (page * kv_heads + head) * PAGE + position % PAGE
        source_ptrs = k_ptr + token * k_row_stride + head.to(tl.int64) * k_head_stride + i
        real = tl.load(source_ptrs, mask=inside, other=0.0).to(tl.float32)
        imaginary = tl.load(source_ptrs + HALF, mask=inside, other=0.0).to(tl.float32)
        first, second = real * c - imaginary * s, imaginary * c + real * s
        store_heads(keys_ptr, key_scales_ptr, place, first, second, is_head, HALF, N)
        source_ptrs = v_ptr + token * v_row_stride + head.to(tl.int64) * v_head_stride + i
        first = tl.load(source_ptrs, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source_ptrs + HALF, mask=inside, other=0.0).to(tl.float32)
        store_heads(values_ptr, value_scales_ptr, place, first, second, is_head, HALF, N)


def rope_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute :func:`cdgen_kernels.reference.layers.rope_and_store` in one launch, in float32 arithmetic.

    Args:
        q: [N, H, d]. k, v: [N, K, d]. All with unit stride along d.
        cos, sin: float32 [positions, d / 2], contiguous.
        page_table: int32 [sequences, pages per sequence], contiguous. cache_row: int32 [N], negative: not stored.
        position: int64 [N].
        keys, values: the cache, contiguous [pages, K, page size, d], written in place.
        key_scales, value_scales: bfloat16 [pages, K, page size], contiguous, if the cache is float8_e4m3fn.
    Returns:
        The rotated queries, contiguous [N, H, d].
    """
    tokens, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    out = q.new_empty(q.shape)
    if tokens:
        half = triton.next_power_of_2(dim // 2)
        heads = min(max(ROPE_NUMBERS // half, 1), triton.next_power_of_2(q_heads))
        scales = (keys, values) if key_scales is None else (key_scales, value_scales)
        # Not fused: products and sums round as those of the reference in float32 do.
        rope_and_store_kernel[(tokens, triton.cdiv(q_heads, heads) + triton.cdiv(kv_heads, heads))](
            q, k, v, cos, sin, page_table, cache_row, position, keys, values, *scales, out,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], page_table.shape[1], q_heads, kv_heads,
            PAGE=keys.shape[2], HALF=dim // 2, HEADS=heads, N=half, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out
