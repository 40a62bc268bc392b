"""The layer ops: what a decoder layer does besides matrix products, on a paged key-value cache.

    normed, x = add_rms_norm(x, residual, weight, eps)
    q = rope_and_store(q, k, v, cos, sin, position, slot_mapping, keys, values)
    out = paged_attention(q, keys, values, page_table, cache_row, position, scale=d**-0.5)

Registered, decided and traced as the ops of :mod:`cdgen_kernels.ops`. Tensors here are named for their sizes: N
tokens, of whatever texts; H query heads and K key-value heads of d numbers; S texts of up to M pages.
"""

import torch

from cdgen_kernels import registry as dispatch  # noqa: F401, registers the ops

__all__ = ["add_rms_norm", "paged_attention", "rope_and_store"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def add_rms_norm(x, residual, weight, eps):
    """RMSNorm of x + residual, and that sum.

    Args:
        x: [N, D], float16, bfloat16 or float32. residual: the same, or None for zero. weight: [D] of that dtype.
        eps: added to the mean square.
    Returns:
        (normed, total), both [N, D]; the total is rounded to the dtype before its norm is taken, as in transformers.
    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    fits = x.dim() == 2 and x.dtype in FLOATS and weight.shape == x.shape[1:] and weight.dtype == x.dtype
    if not fits or (residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype)):
        other = "" if residual is None else f", {_about(residual)}"
        raise ValueError(f"expected x and residual [N, D] and weight [D] of one dtype, got {_about(x, weight)}{other}")
    residual = residual if residual is None else residual.contiguous()
    normed, total = torch.ops.cdgen.add_rms_norm.default(x.contiguous(), residual, weight, eps)
    return normed, x if residual is None else total


def rope_and_store(q, k, v, cos, sin, position, slot_mapping, keys, values):
    """Turn queries and keys by their positions (Su et al. 2021) and write keys and values to the cache.

    Args:
        q: [N, H, d]. k, v: [N, K, d]. One dtype; d even and contiguous, rows and heads of any stride.
        cos, sin: float32 [P, d / 2], for every position. Number i of a head turns with number i + d / 2.
        position: int64 [N], below P.
        slot_mapping: int64 [N], flat cache positions (page * page_size + offset), each at most once; below 0: the
            token is not written.
        keys, values: the cache of the layer, [pages, K, page_size, d], of one dtype, contiguous; written in place.
    Returns:
        q turned, [N, H, d] contiguous.
    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    tokens, _, dim = q.shape
    if k.shape != v.shape or k.shape[::2] != (tokens, dim) or not q.dtype == k.dtype == v.dtype or dim % 2:
        raise ValueError(f"expected q [N, H, d] and k, v [N, K, d] of one dtype and even d, got {_about(q, k, v)}")
    _check_cache(keys, values, k.shape[1], dim)
    if cos.shape != sin.shape or cos.shape[1] != dim // 2 or not cos.dtype == sin.dtype == torch.float32:
        raise ValueError(f"cos, sin: expected float32 [P, {dim // 2}], got {_about(cos, sin)}")
    _check_int64(tokens, position=position, slot_mapping=slot_mapping)
    return torch.ops.cdgen.rope_and_store.default(
        _inner(q), _inner(k), _inner(v), cos.contiguous(), sin.contiguous(), position, slot_mapping, keys, values
    )


def paged_attention(
    q, keys, values, page_table, cache_row, position, *, scale, window=0, dropout=0.0, seed=None, sequence=None, layer=0
):
    """Causal attention of N tokens, of any texts and lengths, over a paged cache that holds them already.

    One op for decoding (a token a text) and for ragged prefill (many tokens of a text, in any order).

    Args:
        q: [N, H, d], H a multiple of K. keys, values: [pages, K, page_size, d], as :func:`rope_and_store` writes them.
        page_table: int32 [S, M]. cache_row: int32 [N], each token's row of the page table; below 0: unused,
            its result is zeros.
        position: int64 [N]: keys at places 0 to `position` are seen, or the last `window` of them where that is > 0.
        scale: factor of the scores.
        dropout: probability to drop an attention weight, the rest growing by 1 / (1 - dropout). The mask is a function
            of (seed, sequence, position, layer, head, key): the same in whatever batch.
        seed: int64 tensor [1]. sequence: int64 [N], each text's own number. Needed for dropout. layer: its index.
    Returns:
        [N, H, d] contiguous, of the dtype of q.
    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    tokens, heads, dim = q.shape
    _check_cache(keys, values, None, dim)
    if heads % keys.shape[1]:
        raise ValueError(f"q: {heads} heads are no multiple of the {keys.shape[1]} of the cache")
    if (
        page_table.dim() != 2
        or page_table.dtype != torch.int32
        or cache_row.dtype != torch.int32
        or cache_row.shape != (tokens,)
    ):
        raise ValueError(
            f"page_table, cache_row: expected int32 [S, M] and [{tokens}], got {_about(page_table, cache_row)}"
        )
    _check_int64(tokens, position=position)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be 0 or more and below 1")
    if dropout:
        if seed is None or sequence is None:
            raise ValueError("dropout: give the seed and the sequences that its mask is drawn from")
        _check_int64(tokens, sequence=sequence)
        _check_int64(1, seed=seed)
    else:
        seed, sequence = position, position  # not read
    return torch.ops.cdgen.paged_attention.default(
        _inner(q),
        keys,
        values,
        page_table.contiguous(),
        cache_row,
        position,
        scale,
        window,
        dropout,
        seed,
        sequence,
        layer,
    )


def _inner(x):
    return x if x.stride(-1) == 1 else x.contiguous()


def _check_cache(keys, values, heads, dim):
    fits = keys.dim() == 4 and keys.shape == values.shape and keys.dtype == values.dtype and keys.dtype in FLOATS
    if not fits or heads not in (None, keys.shape[1]) or keys.shape[3] != dim:
        of = f"[pages, {heads or 'K'}, page_size, {dim}]"
        raise ValueError(f"keys, values: expected {of} of one floating dtype, got {_about(keys, values)}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys, values: must be contiguous, as they are written in place")


def _check_int64(size, **tensors):
    for name, x in tensors.items():
        if x.dtype != torch.int64 or x.shape != (size,) or not x.is_contiguous():
            raise ValueError(f"{name}: expected contiguous int64 [{size}], got {_about(x)}")


def _about(*tensors):
    return ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in tensors)
