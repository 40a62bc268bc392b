"""The public layer ops: the parts of a decoder layer between its matrix products, on a paged key-value cache.

    normed, x = add_rms_norm(x, residual, weight, eps)
    q = rope_and_store(q, k, v, cos, sin, position, slot_mapping, keys, values)
    out = paged_attention(q, keys, values, page_table, cache_row, position, scale=d**-0.5)

They are registered, chosen and traced like the ops of :mod:`cdgen_kernels.ops`. Sizes in shapes: N tokens, of any
sequences; H query heads and K key-value heads of dimension d; S sequences of up to M pages.
"""

import torch
from torch import Tensor

from cdgen_kernels.checks import FLOAT_DTYPES, describe

__all__ = ["add_rms_norm", "paged_attention", "rope_and_store"]


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the sum x + residual and its RMSNorm (Zhang and Sennrich 2019).

    Args:
        x: [N, D], float16, bfloat16 or float32.
        residual: [N, D] of the same dtype, or None for zero.
        weight: [D] of the same dtype.
        eps: added to the mean square.
    Returns:
        (normed, total), both [N, D]. As in transformers, the total is rounded to the dtype before it is normalised.
    Raises:
        ValueError: shapes or dtypes do not match.
    """
    fits = x.dim() == 2 and x.dtype in FLOAT_DTYPES and weight.shape == x.shape[1:] and weight.dtype == x.dtype
    if not fits or (residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype)):
        got = describe(x, weight) if residual is None else describe(x, weight, residual)
        raise ValueError(f"expected x and residual [N, D] and weight [D] of the same dtype, got {got}")
    residual = residual if residual is None else residual.contiguous()
    normed, total = torch.ops.cdgen.add_rms_norm.default(x.contiguous(), residual, weight, eps)
    return normed, x if residual is None else total


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    slot_mapping: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Apply rotary position embedding to queries and keys (Su et al. 2021), and write keys and values to the cache.

    Args:
        q: queries [N, H, d]; d is even and contiguous, tokens and heads may have any stride.
        k, v: keys and values [N, K, d], of the same dtype.
        cos, sin: float32 [P, d / 2], one row per position. Element i of a head is rotated with element i + d / 2.
        position: int64 [N], below P.
        slot_mapping: int64 [N], flat cache positions (page * page_size + offset), each at most once; a token whose
            entry is negative is not written.
        keys, values: the layer's cache [pages, K, page_size, d], of one dtype, contiguous; written in place.
    Returns:
        Rotated queries [N, H, d], contiguous.
    Raises:
        ValueError: shapes or dtypes do not match.
    """
    tokens, _, dim = q.shape
    if k.shape != v.shape or k.shape[::2] != (tokens, dim) or not q.dtype == k.dtype == v.dtype or dim % 2:
        expected = "q [N, H, d] and k, v [N, K, d] of the same dtype and with an even d"
        raise ValueError(f"expected {expected}, got {describe(q, k, v)}")
    _check_cache(keys, values, k.shape[1], dim)
    if cos.shape != sin.shape or cos.shape[1] != dim // 2 or not cos.dtype == sin.dtype == torch.float32:
        raise ValueError(f"cos, sin: expected float32 [P, {dim // 2}], got {describe(cos, sin)}")
    _check_int64(tokens, position=position, slot_mapping=slot_mapping)
    rotated: Tensor = torch.ops.cdgen.rope_and_store.default(
        _with_unit_stride(q),
        _with_unit_stride(k),
        _with_unit_stride(v),
        cos.contiguous(),
        sin.contiguous(),
        position,
        slot_mapping,
        keys,
        values,
    )
    return rotated


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    cache_row: Tensor,
    position: Tensor,
    *,
    scale: float,
    window: int = 0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    sequence: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """Compute causal attention of N tokens, of any sequences and lengths, over a paged cache that holds their keys.

    One op serves decoding (one token per sequence) and ragged prefill (many tokens per sequence, in any order).

    Args:
        q: queries [N, H, d], H a multiple of K.
        keys, values: the layer's cache [pages, K, page_size, d], as :func:`rope_and_store` writes it.
        page_table: int32 [S, M], the pages of each sequence.
        cache_row: int32 [N], each token's row of the page table; if it is negative, the token's output is zeros.
        position: int64 [N]; a token attends to the keys at positions 0 to `position`.
        scale: factor of the attention scores.
        window: if positive, a token attends to the last `window` of these keys only.
        dropout: probability of dropping an attention weight; the others grow by 1 / (1 - dropout). The mask is a
            function of (seed, sequence, position, layer, head, key), so it is the same in any batch.
        seed: int64 [1], required for dropout.
        sequence: int64 [N], number that identifies each token's sequence, required for dropout.
        layer: index of the layer, which the dropout mask depends on.
    Returns:
        [N, H, d], contiguous, of the dtype of q.
    Raises:
        ValueError: shapes or dtypes do not match, or a value is out of range.
    """
    tokens = q.shape[0]
    _check_cache(keys, values, None, q.shape[2])
    _check_paging(q, keys, page_table, cache_row, position)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be at least 0 and below 1")
    if not dropout:
        seed, sequence = position, position  # not read
    elif seed is None or sequence is None:
        raise ValueError("dropout: seed and sequence are required")
    else:
        _check_int64(tokens, sequence=sequence)
        _check_int64(1, seed=seed)
    paging, noise = (page_table.contiguous(), cache_row, position), (seed, sequence, layer)
    out: Tensor = torch.ops.cdgen.paged_attention.default(
        _with_unit_stride(q), keys, values, *paging, scale, window, dropout, *noise
    )
    return out


def _with_unit_stride(x: Tensor) -> Tensor:
    """Return x, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _check_cache(keys: Tensor, values: Tensor, heads: int | None, dim: int) -> None:
    fits = keys.dim() == 4 and keys.shape == values.shape and keys.dtype == values.dtype and keys.dtype in FLOAT_DTYPES
    if not fits or heads not in (None, keys.shape[1]) or keys.shape[3] != dim:
        shape = f"[pages, {heads or 'K'}, page_size, {dim}]"
        raise ValueError(f"keys, values: expected {shape} of one floating dtype, got {describe(keys, values)}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys, values: must be contiguous, because they are written in place")


def _check_paging(q: Tensor, keys: Tensor, page_table: Tensor, cache_row: Tensor, position: Tensor) -> None:
    tokens, heads, _ = q.shape
    if heads % keys.shape[1]:
        raise ValueError(f"q: {heads} heads are not a multiple of the {keys.shape[1]} heads of the cache")
    fits = page_table.dim() == 2 and page_table.dtype == cache_row.dtype == torch.int32
    if not fits or cache_row.shape != (tokens,):
        got = describe(page_table, cache_row)
        raise ValueError(f"page_table, cache_row: expected int32 [S, M] and [{tokens}], got {got}")
    _check_int64(tokens, position=position)


def _check_int64(size: int, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.dtype != torch.int64 or x.shape != (size,) or not x.is_contiguous():
            raise ValueError(f"{name}: expected contiguous int64 [{size}], got {describe(x)}")
