"""The definition of the layer ops in plain PyTorch.

Every other implementation is tested against this file, op by op and under the same names. The arithmetic is float64 for
float64 inputs and float32 otherwise; results have the dtype of the hidden states.

For one layer, a paged cache stores keys and values [pages, K, page_size, d]. The token at position p of a sequence is
in page `page_table[cache_row, p // page_size]`, at offset `p % page_size`. Pages of 8-bit numbers have scales
[pages, K, page_size]: a stored head is its numbers times its scale. Sizes in shapes are those of
:mod:`cdgen_kernels.layers`.
"""

import torch
from torch import Tensor

from cdgen_kernels.reference.noise import LOW32, philox_block

GOLDEN = 0x9E3779B9  # distance between the dropout keys of two heads, so that their bits look unrelated
FP8_MAX = 448.0  # largest number of float8_e4m3fn
LEAST_SCALE = 2.0**-100  # its inverse is finite in float32


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute total = x + residual, rounded to the dtype of x, and normed = total / rms(total) * weight.

    Args:
        x: [N, D].
        residual: [N, D], or None for zero.
        weight: [D].
        eps: added to the mean square.
    Returns:
        (normed, total), both [N, D] in the dtype of x.
    """
    total = x if residual is None else (_wide(x) + _wide(residual)).to(x.dtype)
    wide = _wide(total)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * _wide(weight)
    return normed.to(x.dtype), total


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute silu(gate) * up, rounded once to the dtype of gate_up [N, 2 F]: gate [F], then up [F]."""
    gate, up = _wide(gate_up).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def linear_rows(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Compute the outputs of linear layers on the same input, side by side. Meant for few rows.

    Args:
        x: [M, D], with contiguous rows.
        weights: [N_i, D] of each layer, with contiguous rows and the dtype of x.
        biases: [N_i] of each layer, or an empty list.
    Returns:
        [M, sum of N_i], rounded to the dtype of x once.
    """
    added: list[Tensor | None] = [*biases] if biases else [None] * len(weights)
    layers = zip(weights, added, strict=True)
    return torch.cat([torch.nn.functional.linear(x, weight, bias) for weight, bias in layers], 1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [N, H, d] by the angles [N, d / 2]: the first half of d is the real part, the second the imaginary."""
    real, imaginary = _wide(x).chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round heads to E4M3 (Micikevicius et al. 2022, arXiv 2209.05433), scaled so that none of their numbers overflows.

    A scale depends on its own head alone, so a token is stored as the same bits in any batch and page. Scales are
    rounded before x is divided by them, so their own rounding costs no accuracy.

    Args:
        x: [..., d].
    Returns:
        float8_e4m3fn [..., d] and scales, bfloat16 [...]; x is about their product.
    """
    wide = _wide(x)
    scale = (wide.abs().amax(-1) * (1 / FP8_MAX)).clamp(min=LEAST_SCALE).bfloat16()
    inverse = 1 / scale.to(wide.dtype)
    return (wide * inverse.unsqueeze(-1)).to(torch.float8_e4m3fn), scale


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
    """Rotate queries and keys, and write keys and values to the cache. See :func:`cdgen_kernels.rope_and_store`."""
    stored, page_size = cache_row >= 0, keys.shape[2]
    page = page_table[cache_row[stored], position[stored] // page_size].long()
    if (position < 0).any() or (page < 0).any():  # indices that torch would count from the end
        raise IndexError("position or page_table is out of range: an index is negative")
    cos, sin = cos[position], sin[position]
    offset = position[stored] % page_size
    for x, store, scales in ((_rotated(k, cos, sin), keys, key_scales), (v, values, value_scales)):
        if scales is None:
            store[page, :, offset] = x[stored].to(store.dtype)
        else:
            store[page, :, offset], scales[page, :, offset] = to_fp8(x[stored])
    return _rotated(q, cos, sin).to(q.dtype)


def dropped(
    dropout: float, seed: Tensor, sequence: Tensor, position: Tensor, layer: int, heads: int, length: int
) -> Tensor:
    """Return which attention weights are dropped.

    The word of a weight is word `key % 4` of the Philox block with counter (key // 4, position, sequence low, sequence
    high). The Philox key is the seed, with (1 + layer * H + head) * GOLDEN added to its high word. The weight is
    dropped if its word is below dropout * 2^32.

    Args:
        dropout: probability of dropping a weight.
        seed: int64 [1].
        sequence, position: int64 [N].
        layer: index of the layer.
        heads: number of query heads H.
        length: number of keys L.
    Returns:
        bool [N, H, L].
    """
    device = sequence.device
    block = torch.arange((length + 3) // 4, device=device)
    head = torch.arange(1, heads + 1, device=device) + layer * heads
    counter = (block, position[:, None, None], sequence[:, None, None], sequence[:, None, None] >> 32)
    key = (seed, ((seed >> 32) + head * GOLDEN)[None, :, None])
    words = philox_block(*(x & LOW32 for x in (*counter, *key)))
    return torch.stack(words, -1).flatten(2)[:, :, :length] < int(dropout * 2**32)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    cache_row: Tensor,
    position: Tensor,
    scale: float,
    window: int,
    dropout: float,
    seed: Tensor,
    sequence: Tensor,
    layer: int,
    prefill: bool = False,
    shared_lengths: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Compute softmax(q . keys * scale) values over the keys of each token's sequence up to its position.

    The output is zeros if `cache_row` is negative. `prefill` and `shared_lengths` change nothing. See
    :func:`cdgen_kernels.paged_attention`.
    """
    pages = page_table[cache_row.clamp(min=0).long()].clamp(min=0).long()  # [N, M]
    group = q.shape[1] // keys.shape[1]

    def gathered(store: Tensor, scales: Tensor | None) -> Tensor:  # [N, H, L, d]
        numbers = _wide(store[pages])
        if scales is not None:
            numbers = numbers * scales[pages].unsqueeze(-1)
        return numbers.transpose(1, 2).flatten(2, 3).repeat_interleave(group, 1)

    length = int(position.max()) + 1 if len(position) else 0
    key = torch.arange(length, device=q.device)
    seen = (key <= position[:, None]) & (cache_row >= 0)[:, None]  # [N, L]
    if window:
        seen &= key > position[:, None] - window
    score = (
        torch.einsum("nhd,nhld->nhl", _wide(q), gathered(keys, key_scales)[:, :, :length].to(_wide(q).dtype)) * scale
    )
    share = torch.softmax(score.masked_fill(~seen[:, None], -torch.inf), -1)
    if dropout:
        gone = dropped(dropout, seed, sequence, position, layer, q.shape[1], length)
        share = share.masked_fill(gone, 0) / (1 - dropout)
    value = gathered(values, value_scales)[:, :, :length].masked_fill(~seen[:, None, :, None], 0).to(share.dtype)
    out = torch.einsum("nhl,nhld->nhd", share, value)
    return out.masked_fill((cache_row < 0)[:, None, None], 0).to(q.dtype)
