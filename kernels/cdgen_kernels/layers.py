"""The public layer ops: the parts of a decoder layer between its matrix products, on a paged key-value cache.

    normed, x = add_rms_norm(x, residual, weight, eps)
    gated = silu_mul(gate_up)
    q = rope_and_store(q, k, v, cos, sin, page_table, cache_row, position, keys, values)
    out = paged_attention(q, keys, values, page_table, cache_row, position, scale=d**-0.5)

They are registered, chosen and traced like the ops of :mod:`cdgen_kernels.ops`. Sizes in shapes: N tokens, of any
sequences; H query heads and K key-value heads of dimension d; S sequences of up to M pages.

float8_e4m3fn pages have scales: each token and key-value head has d numbers, and one bfloat16 scale that multiplies
them. Their conversion needs an NVIDIA GPU of compute capability 8.9 or above. On the CPU, every call converts the whole
cache, which is slow.
"""

import torch
from torch import Tensor

from cdgen_kernels.checks import FLOAT_DTYPES, check_dense, check_tensors, describe
from cdgen_kernels.scalars import INT32_MAX, INT64_MAX, real, whole

__all__ = ["add_rms_norm", "paged_attention", "rope_and_store", "silu_mul"]


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
    check_tensors(x=x, weight=weight, **({} if residual is None else {"residual": residual}))
    fits = x.dim() == 2 and x.shape[1] > 0 and x.dtype in FLOAT_DTYPES
    fits = fits and weight.shape == x.shape[1:] and weight.dtype == x.dtype
    if not fits or (residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype)):
        got = describe(x, weight) if residual is None else describe(x, weight, residual)
        raise ValueError(f"expected x and residual [N, D] and weight [D] of the same dtype, got {got}")
    residual = residual if residual is None else residual.contiguous()
    eps = real("eps", eps)
    normed, total = torch.ops.cdgen.add_rms_norm.default(x.contiguous(), residual, weight.contiguous(), eps)
    return normed, x if residual is None else total


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute silu(gate) * up, the gate of a SwiGLU layer (Shazeer 2020), where silu(x) = x / (1 + exp(-x)).

    Args:
        gate_up: [N, 2 F], float16, bfloat16 or float32; each row is gate [F], then up [F].
    Returns:
        [N, F], contiguous. It is rounded to the dtype once.
    Raises:
        ValueError: the shape or the dtype does not match.
    """
    if not isinstance(gate_up, Tensor) or gate_up.dim() != 2 or gate_up.dtype not in FLOAT_DTYPES:
        raise ValueError(f"gate_up: expected float16, bfloat16 or float32 [N, 2 F], got {describe(gate_up)}")
    if gate_up.shape[1] % 2 or not gate_up.shape[1]:
        raise ValueError(f"gate_up: expected an even number of columns, got {describe(gate_up)}")
    gated: Tensor = torch.ops.cdgen.silu_mul.default(gate_up.contiguous())
    return gated


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    page_table: Tensor,
    cache_row: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Apply rotary position embedding to queries and keys (Su et al. 2021), and write keys and values to the cache.

    Args:
        q: queries [N, H, d]; d is even and contiguous, tokens and heads may have any stride.
        k, v: keys and values [N, K, d], of the same dtype.
        cos, sin: float32 [P, d / 2], one row per position. Element i of a head is rotated with element i + d / 2.
        page_table: int32 [S, M], the pages of each sequence.
        cache_row: int32 [N], each token's row of the page table; if it is negative, the token is not written.
        position: int64 [N], positions in the sequences, below P. No two tokens may have the same place: page
            `page_table[cache_row, position // page_size]`, offset `position % page_size`.
        keys, values: the layer's cache [pages, K, page_size, d], of one dtype, contiguous; written in place.
        key_scales, value_scales: bfloat16 [pages, K, page_size], contiguous, required by float8_e4m3fn pages; written
            in place. A head's scale is its largest magnitude / 448.
    Returns:
        Rotated queries [N, H, d], contiguous.
    Raises:
        ValueError: shapes, dtypes or devices do not match.
        RuntimeError: on the CPU, if an entry of `cache_row`, `position` or the used part of `page_table` is out of
            range; IndexError for fp8 pages, which torch writes. On other devices they are not checked.
    """
    check_tensors(q=q, k=k, v=v, cos=cos, sin=sin, page_table=page_table, keys=keys, values=values)
    fits = q.dim() == k.dim() == 3 and k.shape == v.shape and k.shape[::2] == q.shape[::2] and q.shape[2] % 2 == 0
    if not fits or not q.dtype == k.dtype == v.dtype or q.dtype not in FLOAT_DTYPES:
        expected = "q [N, H, d] and k, v [N, K, d] of the same dtype and with an even d"
        raise ValueError(f"expected {expected}, got {describe(q, k, v)}")
    tokens, _, dim = q.shape
    scales = _check_cache(keys, values, key_scales, value_scales, k.shape[1], dim)
    fits = cos.dim() == 2 and cos.shape == sin.shape and cos.shape[1] == dim // 2
    if not fits or not cos.dtype == sin.dtype == torch.float32:
        raise ValueError(f"cos, sin: expected float32 [P, {dim // 2}], got {describe(cos, sin)}")
    _check_places(page_table, cache_row, position, tokens)
    op = torch.ops.cdgen.rope_and_store_fp8 if scales else torch.ops.cdgen.rope_and_store
    rotated: Tensor = op.default(
        _with_unit_stride(q),
        _with_unit_stride(k),
        _with_unit_stride(v),
        cos.contiguous(),
        sin.contiguous(),
        page_table.contiguous(),
        cache_row,
        position,
        keys,
        values,
        *scales,
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
    prefill: bool = False,
    shared_lengths: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
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
        window: if not 0, a token attends to the last `window` of these keys only.
        dropout: probability of dropping an attention weight; the others grow by 1 / (1 - dropout). The mask is a
            function of (seed, sequence, position, layer, head, key), so it is the same in any batch.
        seed: int64 [1], required for dropout.
        sequence: int64 [N], number that identifies each token's sequence, required for dropout.
        layer: index of the layer, which the dropout mask depends on.
        prefill: whether neighbouring tokens mostly share a sequence, so that GPUs should compute them in blocks.
        shared_lengths: int32 [S], how many leading tokens of each sequence lie in pages that other sequences hold too,
            whole pages only; 0 for none. Sequences with the same first page must have the same shared length, and the
            same pages up to it. In decoding, GPUs then read the shared keys once for a block of tokens, if q has 16
            bits, keys have its dtype or fp8, and there is no dropout. Results are the same up to rounding.
        key_scales, value_scales: bfloat16 [pages, K, page_size], required by float8_e4m3fn pages.
    Returns:
        [N, H, d], contiguous, of the dtype of q.
    Raises:
        ValueError: shapes, dtypes or devices do not match, or a number is out of range.
        RuntimeError: on the CPU, before memory is touched, if an entry of `cache_row`, `position` or the used part of
            `page_table` is out of range. On other devices, and for fp8 pages, they are not checked.
    """
    scales = _check_paging(q, keys, values, key_scales, value_scales, page_table, cache_row, position)
    if shared_lengths is not None:
        check_dense("shared_lengths", shared_lengths, torch.int32, page_table.shape[:1], q.device)
    scale, dropout = real("scale", scale), real("dropout", dropout)
    window, layer = whole("window", window, 0, INT64_MAX), whole("layer", layer, 0, INT32_MAX)
    seed, sequence = _check_noise(dropout, seed, sequence, position)
    paging, noise, hints = (page_table.contiguous(), cache_row, position), (seed, sequence), (prefill, shared_lengths)
    op = torch.ops.cdgen.paged_attention_fp8 if scales else torch.ops.cdgen.paged_attention
    q = _with_unit_stride(q)
    out: Tensor = op.default(q, keys, values, *paging, scale, window, dropout, *noise, layer, *hints, *scales)
    return out


def _check_noise(
    dropout: float, seed: Tensor | None, sequence: Tensor | None, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Check what the dropout mask depends on; return seed and sequence, or unused tensors without dropout."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be at least 0 and below 1")
    if not dropout:
        return position, position
    if seed is None or sequence is None:
        raise ValueError("dropout: seed and sequence are required")
    check_dense("sequence", sequence, torch.int64, position.shape, position.device)
    check_dense("seed", seed, torch.int64, (1,), position.device)
    return seed, sequence


def _with_unit_stride(x: Tensor) -> Tensor:
    """Return x, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _check_cache(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None, heads: int | None, dim: int
) -> tuple[Tensor | None, ...]:
    """Check a layer's cache; return its scales if it has any."""
    fits = keys.dim() == 4 and keys.shape == values.shape and keys.dtype == values.dtype
    fits = fits and keys.dtype in (*FLOAT_DTYPES, torch.float8_e4m3fn)
    fits = fits and keys.shape[1] > 0 and keys.shape[2] > 0 and dim > 0
    if not fits or heads not in (None, keys.shape[1]) or keys.shape[3] != dim:
        shape = f"[pages, {heads or 'K'}, page_size, {dim}]"
        raise ValueError(f"keys, values: expected {shape} of one floating dtype, got {describe(keys, values)}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys, values: must be contiguous, because they are written in place")
    if keys.dtype == torch.float8_e4m3fn:
        check_dense("key_scales", key_scales, torch.bfloat16, keys.shape[:3], keys.device)
        check_dense("value_scales", value_scales, torch.bfloat16, keys.shape[:3], keys.device)
        return key_scales, value_scales
    if key_scales is not None or value_scales is not None:
        raise ValueError(f"key_scales, value_scales: only float8_e4m3fn pages have scales, got {describe(keys)}")
    return ()


def _check_paging(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    page_table: Tensor,
    cache_row: Tensor,
    position: Tensor,
) -> tuple[Tensor | None, ...]:
    """Check the tensors of paged_attention; return the scales of the cache if it has any."""
    check_tensors(q=q, keys=keys, values=values, page_table=page_table)
    if q.dim() != 3 or q.dtype not in FLOAT_DTYPES:
        raise ValueError(f"q: expected float16, bfloat16 or float32 [N, H, d], got {describe(q)}")
    tokens, heads, dim = q.shape
    scales = _check_cache(keys, values, key_scales, value_scales, None, dim)
    if heads % keys.shape[1]:
        raise ValueError(f"q: {heads} heads are not a multiple of the {keys.shape[1]} heads of the cache")
    _check_places(page_table, cache_row, position, tokens)
    return scales


def _check_places(page_table: Tensor, cache_row: Tensor, position: Tensor, tokens: int) -> None:
    """Check the tensors that say where the cache holds each token."""
    if page_table.dim() != 2 or page_table.dtype != torch.int32:
        raise ValueError(f"page_table: expected int32 [S, M], got {describe(page_table)}")
    where = page_table.device
    check_dense("cache_row", cache_row, torch.int32, (tokens,), where)
    check_dense("position", position, torch.int64, (tokens,), where)
