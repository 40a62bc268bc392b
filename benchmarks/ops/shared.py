"""Table entries of `paged_attention` over shared prefixes; the batch counts sequences, the size counts keys of each.

Groups of eight neighbouring sequences share four fifths of their keys.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.ops import layers
from benchmarks.ops.layers import HEAD_DIM, PAGE
from benchmarks.ops.op import BFLOAT16, Inputs, Op, Outputs
from cdgen_kernels import reference

MEMBERS = 8


def shared_inputs(
    batch: int,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    heads: int,
    kv_heads: int,
    dim: int,
    ragged: bool = False,
) -> Inputs:
    """Return :func:`layers.cache_inputs` and shared_lengths.

    Args:
        ragged: whether sequences end anywhere behind the prefix, every fifth row is idle, and every third group shares
            nothing.
    """
    *inputs, table, cache_row, position, length = layers.cache_inputs(
        batch, length, dtype, device, seed, heads, kv_heads, dim, ragged
    )
    pages = length * 4 // 5 // PAGE
    group = torch.arange(batch, device=device) // MEMBERS
    shared_lengths = torch.full((batch,), pages * PAGE, dtype=torch.int32, device=device)
    if ragged:
        position = position % (length - pages * PAGE) + pages * PAGE
        shared_lengths[group % 3 == 2] = 0
    first = torch.where(shared_lengths > 0, group * MEMBERS, torch.arange(batch, device=device))
    table[:, :pages] = table[first, :pages]
    return *inputs, table, cache_row, position, length, shared_lengths


def _options(inputs: Inputs, window: int) -> tuple[Any, ...]:
    q, position, shared_lengths = inputs[0], inputs[5], inputs[7]
    return q.shape[2] ** -0.5, window, 0.0, position[:1], position, 3, False, shared_lengths


def shared_fused(*inputs: Any, window: int = 0) -> Outputs:
    from cdgen_kernels.triton import attention as triton_attention

    return {"out": triton_attention.paged_attention(*inputs[:6], *_options(inputs, window))}


def shared_reference(*inputs: Any, window: int = 0) -> Outputs:
    wide = (x.double() for x in inputs[:3])
    return {"out": reference.paged_attention(*wide, *inputs[3:6], *_options(inputs, window))}


def shared_eager(*inputs: Any) -> Outputs:
    """Gather the pages of each sequence, then call torch's attention."""
    return layers.attention_eager(*inputs[:7])


def shared_bytes(*inputs: Any) -> int:
    """Count queries, results, each sequence's own keys and values, and those of each group's prefix once."""
    q, keys, length, shared_lengths = inputs[0], inputs[1], inputs[6], inputs[7]
    shared = int(shared_lengths.max())
    read = -(-len(q) // MEMBERS) * shared + len(q) * (length - shared)
    return int(2 * read * keys[0, :, 0].nbytes + 2 * q.nbytes)


def shared_op(name: str, heads: int, kv_heads: int, dim: int) -> Op:
    return Op(
        f"paged_attention, shared prefixes, {name}",
        partial(shared_inputs, heads=heads, kv_heads=kv_heads, dim=dim),
        shared_fused,
        shared_reference,
        shared_eager,
        streams=("keys_ptr", "values_ptr"),
        bytes=shared_bytes,
        torch_floats=lambda outputs, *inputs: shared_eager(*inputs),
        dtypes=BFLOAT16,
        batches=(64, 8),
        sizes=(2048, 608),
        counted=(72, 608),
    )


SHARED_OPS = [shared_op("12 heads", 12, 12, HEAD_DIM), shared_op("32 heads, 8 KV heads", 32, 8, 128)]
