"""The layer ops as entries for the table and the benchmark; their size is a width, a number of heads or of keys."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops.op import BFLOAT16, Inputs, Op, Outputs
from cdgen_kernels import reference

EPS = 1e-5
PAGE = 16
DIM = 64  # of a head of the paper's models


def random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


# ------------------------------------------------------------------------------------------------------ add_rms_norm


def norm_inputs(batch: int, width: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """(x, residual [N, D], weight [D])"""
    generator = torch.Generator(device).manual_seed(seed)
    return *(random(generator, dtype, batch, width) for _ in range(2)), random(generator, dtype, width)


def norm_plain(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Outputs:
    """The total is rounded first, then all is float64."""
    total = reference.add_rms_norm(x, residual, weight, EPS)[1]
    normed = reference.add_rms_norm(total.double(), None, weight.double(), EPS)[0]
    return {"normed": normed, "total": total}


def norm_fused(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import layers as triton_layers

    return dict(zip(("normed", "total"), triton_layers.add_rms_norm(x, residual, weight, EPS), strict=True))


def norm_eager(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Outputs:
    total = x + residual
    return {"normed": functional.rms_norm(total, weight.shape, weight, EPS), "total": total}


# ---------------------------------------------------------------------------------------------------- rope_and_store


def turn_inputs(batch: int, heads: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """(q, k, v, views of one product [N, 3 H d]; cos, sin, position, slot, keys, values)"""
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v = random(generator, dtype, batch, 3, heads, DIM).unbind(1)
    angle = torch.rand(2048, DIM // 2, generator=generator, device=device) * 6
    position = torch.randint(2048, (batch,), generator=generator, device=device)
    pages = -(-batch // PAGE)
    slots = torch.randperm(pages * PAGE, generator=generator, device=device)[:batch]
    cache = torch.zeros(2, pages, heads, PAGE, DIM, dtype=dtype, device=device)
    return q, k, v, angle.cos(), angle.sin(), position, slots, *cache


def turn_plain(*inputs: Any) -> Outputs:
    *given, keys, values = inputs
    keys, values = keys.clone(), values.clone()
    return {"q": reference.rope_and_store(*given, keys, values), "keys": keys, "values": values}


def turn_fused(*inputs: Any) -> Outputs:
    from cdgen_kernels.triton import layers as triton_layers

    return {"q": triton_layers.rope_and_store(*inputs), "keys": inputs[-2], "values": inputs[-1]}


def turn_eager(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """As transformers does it, with two stores to the cache."""
    cos, sin = (x[position].to(q.dtype).repeat(1, 2).unsqueeze(1) for x in (cos, sin))

    def turned(x: torch.Tensor) -> torch.Tensor:
        real, imaginary = x.chunk(2, -1)
        return x * cos + torch.cat([-imaginary, real], -1) * sin

    keys[slots // PAGE, :, slots % PAGE] = turned(k)
    values[slots // PAGE, :, slots % PAGE] = v
    return turned(q)


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
    """(q, keys, values, page_table, row, position, length): the last token of N texts, whose pages lie in any order.

    `ragged`: texts of 1 to `length` tokens, every fifth of them idle. `cache_dtype`: default that of q.
    """
    generator = torch.Generator(device).manual_seed(seed)
    count = -(-length // PAGE)
    cache = (random(generator, cache_dtype or dtype, batch * count, kv_heads, PAGE, dim) for _ in range(2))
    table = torch.randperm(batch * count, generator=generator, device=device).int().view(batch, count)
    row = torch.arange(batch, dtype=torch.int32, device=device)
    position = torch.full((batch,), length - 1, device=device)
    if ragged:
        position = torch.randint(length, (batch,), generator=generator, device=device)
        row[4::5] = -1
    return random(generator, dtype, batch, heads, dim), *cache, table, row, position, length


def attend(
    implementation: Callable,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    row: torch.Tensor,
    position: torch.Tensor,
    dropout: float,
    window: int = 0,
) -> Outputs:
    rest = (q.shape[2] ** -0.5, window, dropout, position[:1], position, 3)
    return {"out": implementation(q, keys, values, table, row, position, *rest)}


def attention_plain(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *where: Any, dropout: float = 0.0, window: int = 0
) -> Outputs:
    wide = q.double(), keys.double(), values.double()
    return attend(reference.paged_attention, *wide, *where[:3], dropout, window)


def attention_fused(*inputs: Any, dropout: float = 0.0, window: int = 0) -> Outputs:
    from cdgen_kernels.triton import attention as triton_attention

    return attend(triton_attention.paged_attention, *inputs[:6], dropout, window)


def attention_eager(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    row: torch.Tensor,
    position: torch.Tensor,
    length: int,
    dropout: float = 0.0,
) -> Outputs:
    """The pages gathered, then torch's own."""
    keys, values = (x[page_table.long()].transpose(1, 2).flatten(2, 3)[:, :, :length] for x in (keys, values))
    attended = functional.scaled_dot_product_attention(
        q.unsqueeze(2), keys, values, dropout_p=dropout, enable_gqa=q.shape[1] != keys.shape[1]
    )
    return {"out": attended.squeeze(2)}


def attention_torch(*inputs: Any, dropout: float = 0.0) -> Outputs:
    """What torch loses in the inputs' dtype; with dropout by the same words, in float32."""
    return attend(reference.paged_attention, *inputs[:6], dropout) if dropout else attention_eager(*inputs)


def keys_once(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    row: torch.Tensor,
    position: torch.Tensor,
    length: int,
) -> int:
    """Keys and values of the texts, queries and results."""
    return 2 * len(q) * length * keys[0, :, 0].nbytes + 2 * q.nbytes


def attention(name: str, heads: int, kv_heads: int, dim: int, counted: int, dropout: float = 0.0) -> Op:
    """`counted`: enough tokens that none of their heads is shared by programs."""
    how = dict(dropout=dropout)
    return Op(
        f"paged_attention, {name}",
        partial(cache_inputs, heads=heads, kv_heads=kv_heads, dim=dim),
        partial(attention_fused, **how),
        partial(attention_plain, **how),
        partial(attention_eager, **how),
        streams=("keys", "values"),
        bytes=keys_once,
        torch_floats=lambda outputs, *inputs: attention_torch(*inputs, **how),
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
        norm_plain,
        norm_eager,
        streams=("x", "residual"),
        bytes=lambda x, residual, weight: 4 * x.nbytes + weight.nbytes,
        torch_floats=lambda outputs, *inputs: norm_eager(*inputs),
        dtypes=BFLOAT16,
        sizes=(4096, 768),
        counted=(2, 768),
    ),
    Op(
        "rope_and_store",
        turn_inputs,
        turn_fused,
        turn_plain,
        turn_eager,
        streams=("source",),
        bytes=lambda q, k, v, *rest: 2 * (q.nbytes + k.nbytes + v.nbytes),
        torch_floats=lambda outputs, *inputs: outputs,  # rounds as the reference does: nothing may differ
        dtypes=BFLOAT16,
        sizes=(32, 12),
        counted=(2, 12),
    ),
    attention("12 heads", 12, 12, DIM, counted=23),
    attention("32 heads on 8", 32, 8, 128, counted=34),
    attention("12 heads, dropout", 12, 12, DIM, counted=23, dropout=0.3),
]
