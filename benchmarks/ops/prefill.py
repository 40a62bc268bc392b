"""Table entries of `paged_attention` in a prefill: the batch is a number of tokens, the size a length of prompts."""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops.layers import HEAD_DIM, PAGE, random_tensor
from benchmarks.ops.op import BFLOAT16, Inputs, Op, Outputs
from cdgen_kernels import reference

REFERENCE_TOKENS = 64  # at 2,048 positions and 32 heads, their keys and values take 9 GB in float64


def prompt_inputs(
    tokens: int, length: int, dtype: torch.dtype, device: torch.device, seed: int, heads: int, kv_heads: int, dim: int
) -> Inputs:
    """Return (q, keys, values, page_table, cache_row, position, length) of prompts; the last one may end early."""
    generator = torch.Generator(device).manual_seed(seed)
    prompts, pages = -(-tokens // length), -(-length // PAGE)
    cache = (random_tensor(generator, dtype, prompts * pages, kv_heads, PAGE, dim) for _ in range(2))
    table = torch.randperm(prompts * pages, generator=generator, device=device).int().view(prompts, pages)
    token = torch.arange(tokens, device=device)
    q = random_tensor(generator, dtype, tokens, heads, dim)
    return q, *cache, table, (token // length).int(), token % length, length


def _options(q: torch.Tensor, position: torch.Tensor) -> tuple[Any, ...]:
    return q.shape[2] ** -0.5, 0, 0.0, position[:1], position, 0, True


def prefill_fused(*inputs: Any) -> Outputs:
    from cdgen_kernels.triton import attention as triton_attention

    return {"out": triton_attention.paged_attention(*inputs[:6], *_options(inputs[0], inputs[5]))}


def prefill_reference(*inputs: Any) -> Outputs:
    """Compute the attention in float64, for a few tokens at a time: the reference gathers all keys of each token."""
    q, keys, values, page_table, *tokens = inputs[:6]
    keys, values = keys.double(), values.double()
    found = []
    for part, cache_row, position in zip(*(x.split(REFERENCE_TOKENS) for x in (q, *tokens)), strict=True):
        cache = keys, values, page_table, cache_row, position
        found.append(reference.paged_attention(part.double(), *cache, *_options(part, position)))
    return {"out": torch.cat(found)}


def prefill_eager(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    length: int,
) -> Outputs:
    """Gather the pages of each prompt, then call torch's causal attention."""
    missing = len(page_table) * length - len(q)
    whole = functional.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, length)).transpose(1, 2)
    keys, values = (x[page_table.long()].transpose(1, 2).flatten(2, 3)[:, :, :length] for x in (keys, values))
    grouped = q.shape[1] != keys.shape[1]
    out = functional.scaled_dot_product_attention(whole, keys, values, is_causal=True, enable_gqa=grouped)
    return {"out": out.transpose(1, 2).flatten(0, 1)[: len(q)]}


def prefill_bytes(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *others: Any) -> int:
    """Count keys and values once, queries and results."""
    return keys.nbytes + values.nbytes + 2 * q.nbytes


def prefill_flops(q: torch.Tensor, *others: Any) -> int:
    """Count scores and sums of the keys up to each token."""
    return 4 * q[0].numel() * int((others[4] + 1).sum())


def prefill_op(name: str, heads: int, kv_heads: int, dim: int) -> Op:
    return Op(
        f"paged_attention, prefill, {name}",
        partial(prompt_inputs, heads=heads, kv_heads=kv_heads, dim=dim),
        prefill_fused,
        prefill_reference,
        prefill_eager,
        streams=("keys_ptr", "values_ptr"),
        bytes=prefill_bytes,
        flops=prefill_flops,
        torch_floats=lambda outputs, *inputs: prefill_eager(*inputs),
        dtypes=BFLOAT16,
        batches=(4096, 160),
        sizes=(2048, 20),
        counted=(40, 20),
    )


PREFILL_OPS = [prefill_op("12 heads", 12, 12, HEAD_DIM), prefill_op("32 heads, 8 KV heads", 32, 8, 128)]
