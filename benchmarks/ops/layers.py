"""Table entries of the layer ops. Their size is a width, a number of heads, or a number of keys."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops.op import BFLOAT16, Inputs, Op, Outputs, exact_floats
from cdgen_kernels import reference

EPS = 1e-5
PAGE = 16
HEAD_DIM = 64  # in the paper's models


def random_tensor(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


# ------------------------------------------------------------------------------------------------------ add_rms_norm


def norm_inputs(batch: int, width: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return (x, residual, both [N, D], weight [D])."""
    generator = torch.Generator(device).manual_seed(seed)
    return *(random_tensor(generator, dtype, batch, width) for _ in range(2)), random_tensor(generator, dtype, width)


def norm_reference(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Outputs:
    """Round the total to the inputs' dtype, then compute in float64."""
    total = reference.add_rms_norm(x, residual, weight, EPS)[1]
    normed = reference.add_rms_norm(total.double(), None, weight.double(), EPS)[0]
    return {"normed": normed, "total": total}


def norm_fused(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import layers as triton_layers

    return dict(zip(("normed", "total"), triton_layers.add_rms_norm(x, residual, weight, EPS), strict=True))


def norm_eager(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Outputs:
    total = x + residual
    return {"normed": functional.rms_norm(total, weight.shape, weight, EPS), "total": total}


# ---------------------------------------------------------------------------------------------------------- silu_mul


def gate_inputs(batch: int, width: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return (gate_up [N, 2 F],)."""
    return (random_tensor(torch.Generator(device).manual_seed(seed), dtype, batch, 2 * width),)


def gate_reference(gate_up: torch.Tensor) -> Outputs:
    return {"gated": reference.silu_mul(gate_up.double())}


def gate_fused(gate_up: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import layers as triton_layers

    return {"gated": triton_layers.silu_mul(gate_up)}


def gate_eager(gate_up: torch.Tensor) -> Outputs:
    gate, up = gate_up.chunk(2, 1)
    return {"gated": functional.silu(gate) * up}


# ---------------------------------------------------------------------------------------------------- rope_and_store


def rope_inputs(batch: int, heads: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return the arguments of rope_and_store; q, k and v are views of one [N, 3, H, d], and each token has a page."""
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v = random_tensor(generator, dtype, batch, 3, heads, HEAD_DIM).unbind(1)
    angle = torch.rand(2048, HEAD_DIM // 2, generator=generator, device=device) * 6
    position = torch.randint(2048, (batch,), generator=generator, device=device)
    page = torch.randperm(batch, generator=generator, device=device, dtype=torch.int32)
    page_table = page.unsqueeze(1).repeat(1, len(angle) // PAGE)
    cache_row = torch.arange(batch, dtype=torch.int32, device=device)
    cache = torch.zeros(2, batch, heads, PAGE, HEAD_DIM, dtype=dtype, device=device)
    return q, k, v, angle.cos(), angle.sin(), page_table, cache_row, position, *cache


def rope_reference(*inputs: Any) -> Outputs:
    *others, keys, values = inputs
    keys, values = keys.clone(), values.clone()
    return {"q": reference.rope_and_store(*others, keys, values), "keys": keys, "values": values}


def rope_fused(*inputs: Any) -> Outputs:
    from cdgen_kernels.triton import layers as triton_layers

    return {"q": triton_layers.rope_and_store(*inputs), "keys": inputs[-2], "values": inputs[-1]}


def rope_eager(
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
) -> torch.Tensor:
    """Rotate as transformers does, then store keys and values."""
    cos, sin = (x[position].to(q.dtype).repeat(1, 2).unsqueeze(1) for x in (cos, sin))

    def rotated(x: torch.Tensor) -> torch.Tensor:
        real, imaginary = x.chunk(2, -1)
        return x * cos + torch.cat([-imaginary, real], -1) * sin

    page, offset = page_table[cache_row, position // PAGE], position % PAGE
    keys[page, :, offset], values[page, :, offset] = rotated(k), v
    return rotated(q)


# --------------------------------------------------------------------------------------------------- paged_attention


def cache_inputs(
    batch: int,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    heads: int,
    kv_heads: int,
    dim: int,
    ragged: bool = False,
    cache_dtype: torch.dtype | None = None,
) -> Inputs:
    """Return (q, keys, values, page_table, cache_row, position, length) for the last token of N sequences.

    The pages of a sequence are scattered at random over the cache.

    Args:
        ragged: sequences have 1 to `length` tokens, and every fifth row is idle.
        cache_dtype: default: `dtype`.
    """
    generator = torch.Generator(device).manual_seed(seed)
    count = -(-length // PAGE)
    cache = (random_tensor(generator, cache_dtype or dtype, batch * count, kv_heads, PAGE, dim) for _ in range(2))
    table = torch.randperm(batch * count, generator=generator, device=device).int().view(batch, count)
    cache_row = torch.arange(batch, dtype=torch.int32, device=device)
    position = torch.full((batch,), length - 1, device=device)
    if ragged:
        position = torch.randint(length, (batch,), generator=generator, device=device)
        cache_row[4::5] = -1
    return random_tensor(generator, dtype, batch, heads, dim), *cache, table, cache_row, position, length


def call_attention(
    implementation: Callable[..., torch.Tensor],
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    dropout: float,
    window: int = 0,
) -> Outputs:
    rest = (q.shape[2] ** -0.5, window, dropout, position[:1], position, 3)
    return {"out": implementation(q, keys, values, table, cache_row, position, *rest)}


def attention_reference(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *others: Any, dropout: float = 0.0, window: int = 0
) -> Outputs:
    wide = q.double(), keys.double(), values.double()
    return call_attention(reference.paged_attention, *wide, *others[:3], dropout, window)


def attention_fused(*inputs: Any, dropout: float = 0.0, window: int = 0) -> Outputs:
    from cdgen_kernels.triton import attention as triton_attention

    return call_attention(triton_attention.paged_attention, *inputs[:6], dropout, window)


def attention_eager(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    length: int,
    dropout: float = 0.0,
) -> Outputs:
    """Gather the pages, then call torch's attention."""
    keys, values = (x[page_table.long()].transpose(1, 2).flatten(2, 3)[:, :, :length] for x in (keys, values))
    attended = functional.scaled_dot_product_attention(
        q.unsqueeze(2), keys, values, dropout_p=dropout, enable_gqa=q.shape[1] != keys.shape[1]
    )
    return {"out": attended.squeeze(2)}


def attention_torch(*inputs: Any, dropout: float = 0.0) -> Outputs:
    """Return torch's result in the inputs' dtype. With dropout, it is the reference's, for equal masks."""
    return call_attention(reference.paged_attention, *inputs[:6], dropout) if dropout else attention_eager(*inputs)


def attention_bytes(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    length: int,
) -> int:
    """Count keys and values of all sequences, queries and results."""
    return 2 * len(q) * length * keys[0, :, 0].nbytes + 2 * q.nbytes


def attention_op(name: str, heads: int, kv_heads: int, dim: int, counted: int, dropout: float = 0.0) -> Op:
    """Return an entry of `paged_attention`.

    Args:
        counted: a batch that is large enough for every program to compute whole heads.
    """
    return Op(
        f"paged_attention, {name}",
        partial(cache_inputs, heads=heads, kv_heads=kv_heads, dim=dim),
        partial(attention_fused, dropout=dropout),
        partial(attention_reference, dropout=dropout),
        partial(attention_eager, dropout=dropout),
        streams=("keys_ptr", "values_ptr"),
        bytes=attention_bytes,
        torch_floats=lambda outputs, *inputs: attention_torch(*inputs, dropout=dropout),
        dtypes=BFLOAT16,
        batches=(64, 1),
        sizes=(2048, 420),
        counted=(counted, 420),
    )


LAYER_OPS = [
    Op(
        "add_rms_norm",
        norm_inputs,
        norm_fused,
        norm_reference,
        norm_eager,
        streams=("x_ptr", "residual_ptr"),
        bytes=lambda x, residual, weight: 4 * x.nbytes + weight.nbytes,
        torch_floats=lambda outputs, *inputs: norm_eager(*inputs),
        dtypes=BFLOAT16,
        sizes=(4096, 768),
        counted=(2, 768),
    ),
    Op(
        "silu_mul",
        gate_inputs,
        gate_fused,
        gate_reference,
        gate_eager,
        streams=("gate_up_ptr",),
        bytes=lambda gate_up: gate_up.nbytes * 3 // 2,
        torch_floats=lambda outputs, *inputs: gate_eager(*inputs),
        dtypes=BFLOAT16,
        sizes=(14336, 3072),
        counted=(2, 1536),
    ),
    Op(
        "rope_and_store",
        rope_inputs,
        rope_fused,
        rope_reference,
        rope_eager,
        streams=("source_ptrs",),
        bytes=lambda q, k, v, *rest: 2 * (q.nbytes + k.nbytes + v.nbytes),
        torch_floats=exact_floats,  # it rounds as the reference does
        dtypes=BFLOAT16,
        sizes=(32, 12),
        counted=(2, 12),
    ),
    attention_op("12 heads", 12, 12, HEAD_DIM, counted=45),
    attention_op("32 heads, 8 KV heads", 32, 8, 128, counted=67),
    attention_op("12 heads, dropout", 12, 12, HEAD_DIM, counted=45, dropout=0.3),
]
