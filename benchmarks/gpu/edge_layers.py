"""Edge cases of the layer ops and the loss: ragged and idle rows, windows, other caches, ignored targets."""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.edges import edge_op
from benchmarks.ops import layers as layer_ops
from benchmarks.ops import linear as linear_ops
from benchmarks.ops import shared as shared_ops
from benchmarks.ops.op import Inputs, Op, Outputs, exact_floats
from cdgen_kernels import reference


def masked_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    length: int,
    window: int,
) -> torch.Tensor:
    """Compute torch's attention of ragged sequences in the dtype of the cache; return it in the dtype of q."""
    pages = table[cache_row.clamp(min=0).long()].long()
    keys, values = (x[pages].transpose(1, 2).flatten(2, 3)[:, :, :length] for x in (keys, values))
    key = torch.arange(length, device=q.device)
    seen = (key <= position[:, None]) & (key > position[:, None] - (window or length))
    wide = q.unsqueeze(2).to(keys.dtype)
    grouped = q.shape[1] != keys.shape[1]
    out = functional.scaled_dot_product_attention(wide, keys, values, seen[:, None, None], enable_gqa=grouped)
    return out.squeeze(2).masked_fill((cache_row < 0)[:, None, None], 0).to(q.dtype)


def _attention(name: str, heads: int, kv_heads: int, dim: int, window: int = 0, **options: Any) -> Op:
    """Return an entry of `paged_attention`; `options` are those of :func:`layer_ops.cache_inputs`."""
    return edge_op(
        f"paged_attention, {name}",
        partial(layer_ops.cache_inputs, heads=heads, kv_heads=kv_heads, dim=dim, **options),
        partial(layer_ops.attention_fused, window=window),
        partial(layer_ops.attention_reference, window=window),
        torch_floats=lambda outputs, *inputs: {"out": masked_attention(*inputs, window=window)},
    )


ATTENTION_EDGES = [
    _attention("ragged, window 100", 12, 12, 64, window=100, ragged=True),
    _attention("ragged, 12 heads", 12, 12, 64, ragged=True),
    _attention("ragged, 32 heads, 8 KV heads, window 100", 32, 8, 128, window=100, ragged=True),
    _attention("ragged, 32 heads, 8 KV heads", 32, 8, 128, ragged=True),
    _attention("6 heads, 3 KV heads", 6, 3, 64, ragged=True),
    _attention("32 heads, 8 KV heads of 64", 32, 8, 64, ragged=True),
    _attention("float32 cache, 12 heads", 12, 12, 64, ragged=True, cache_dtype=torch.float32),
    _attention("float32 cache, 32 heads, 8 KV heads", 32, 8, 128, ragged=True, cache_dtype=torch.float32),
]


def _shared(name: str, heads: int, kv_heads: int, dim: int, window: int = 0) -> Op:
    """Return an entry of `paged_attention` over shared prefixes, with ragged and idle rows and rows without a group."""
    return edge_op(
        f"paged_attention, shared prefixes, ragged, {name}",
        partial(shared_ops.shared_inputs, heads=heads, kv_heads=kv_heads, dim=dim, ragged=True),
        partial(shared_ops.shared_fused, window=window),
        partial(shared_ops.shared_reference, window=window),
        torch_floats=lambda outputs, *inputs: {"out": masked_attention(*inputs[:7], window=window)},
    )


SHARED_EDGES = [
    _shared("12 heads", 12, 12, 64),
    _shared("12 heads, window 100", 12, 12, 64, window=100),
    _shared("32 heads, 8 KV heads", 32, 8, 128),
    _shared("32 heads, 4 KV heads of 64", 32, 4, 64),
    _shared("24 heads, 1 KV head of 80, window 100", 24, 1, 80, window=100),
]


def grouped_rope_inputs(batch: int, heads: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return :func:`layer_ops.rope_inputs` with a quarter as many KV heads, and every third token idle."""
    generator = torch.Generator(device).manual_seed(seed)
    kv_heads = max(heads // 4, 1)
    sizes = (heads, kv_heads, kv_heads)
    product = layer_ops.random_tensor(generator, dtype, batch, sum(sizes), layer_ops.HEAD_DIM)
    *_, cos, sin, page_table, cache_row, position, _, _ = layer_ops.rope_inputs(batch, 1, dtype, device, seed)
    cache_row[::3] = -1
    cache = torch.zeros(2, batch, kv_heads, layer_ops.PAGE, layer_ops.HEAD_DIM, dtype=dtype, device=device)
    return *product.split(sizes, 1), cos, sin, page_table, cache_row, position, *cache


def norm_alone_reference(x: torch.Tensor, weight: torch.Tensor) -> Outputs:
    return {"normed": reference.add_rms_norm(x.double(), None, weight.double(), layer_ops.EPS)[0]}


def norm_alone_fused(x: torch.Tensor, weight: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import layers as triton_layers

    return {"normed": triton_layers.add_rms_norm(x, None, weight, layer_ops.EPS)[0]}


ROPE_EDGE = edge_op(
    "rope_and_store, grouped, idle tokens",
    grouped_rope_inputs,
    layer_ops.rope_fused,
    layer_ops.rope_reference,
    torch_floats=exact_floats,
)
NORM_EDGE = edge_op(
    "add_rms_norm, no residual",
    lambda *arguments: layer_ops.norm_inputs(*arguments)[::2],
    norm_alone_fused,
    norm_alone_reference,
    torch_floats=lambda outputs, x, weight: {
        "normed": functional.rms_norm(x, weight.shape, weight, layer_ops.EPS),
    },
)

# ----------------------------------------------------------------------------------------------------- cross entropy


def ignored_targets(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return logits and targets: every third target is ignored, and that of row 1 is out of range."""
    logits, target = linear_ops.softmax_gradient_inputs(batch, vocab_size, dtype, device, seed)
    target[::3] = -100
    target[1] = vocab_size
    return logits, target


def ignored_torch(outputs: Outputs, logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    whole = linear_ops.softmax_gradient_eager(logits, target.clamp(0, logits.shape[1] - 1))
    ignored = target == -100
    wrong = target == logits.shape[1]
    loss = whole["loss"].masked_fill(ignored, 0).masked_fill(wrong, torch.nan)
    gradient = whole["gradient"].masked_fill(ignored[:, None], 0).masked_fill(wrong[:, None], torch.nan)
    return {"loss": loss, "gradient": gradient}


IGNORED_EDGE = edge_op(
    "softmax_gradient, ignored targets",
    ignored_targets,
    linear_ops.softmax_gradient_fused,
    linear_ops.softmax_gradient_reference,
    torch_floats=ignored_torch,
)
