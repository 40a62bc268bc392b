"""The definition of the layer ops: what a decoder layer does besides matrix products, in plain PyTorch.

Every other implementation answers to this file, op by op and under the same names. Arithmetic is float64 where the
inputs are, else float32; results have the dtype of the states.

A paged cache keeps, for one layer, keys and values [pages, K, page_size, d]. The token at place p of a text lies in
page `page_table[cache_row, p // page_size]`, at `p % page_size` in it.
"""

import torch

from cdgen_kernels.reference.noise import LOW32, philox_block

GOLDEN = 0x9E3779B9  # apart from one another by this, the keys of layers and heads differ in every bit


def _wide(x):
    return x if x.dtype == torch.float64 else x.float()


def add_rms_norm(x, residual, weight, eps):
    """(normed, total): total = x + residual, rounded to the dtype of x; normed = total / rms(total) * weight."""
    total = x if residual is None else (_wide(x) + _wide(residual)).to(x.dtype)
    wide = _wide(total)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * _wide(weight)
    return normed.to(x.dtype), total


def _rotated(x, cos, sin):
    """x [N, H, d] turned by the angles of each row: the first half of d is the real part, the second the imaginary."""
    real, imaginary = _wide(x).chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def rope_and_store(q, k, v, cos, sin, position, slot_mapping, keys, values):
    """Return q turned; write k, turned, and v to the cache at `slot_mapping`, unless that is below 0."""
    cos, sin = cos[position], sin[position]
    kept = slot_mapping >= 0
    page, place = slot_mapping[kept] // keys.shape[2], slot_mapping[kept] % keys.shape[2]
    keys[page, :, place] = _rotated(k, cos, sin)[kept].to(keys.dtype)
    values[page, :, place] = v[kept].to(values.dtype)
    return _rotated(q, cos, sin).to(q.dtype)


def dropped(dropout, seed, sequence, position, layer, heads, length):
    """bool [N, H, length]: the attention weights that dropout takes, a function of who looks at what, where.

    Word `key % 4` of Philox with counter (key // 4, position, sequence low, high) and as key the seed, to whose high
    word (1 + layer * H + head) * GOLDEN is added; dropped where the word is below dropout * 2^32.
    """
    device = sequence.device
    block = torch.arange((length + 3) // 4, device=device)
    head = torch.arange(1, heads + 1, device=device) + layer * heads
    counter = (block, position[:, None, None], sequence[:, None, None], sequence[:, None, None] >> 32)
    key = (seed, ((seed >> 32) + head * GOLDEN)[None, :, None])
    words = philox_block(*torch.broadcast_tensors(*(x & LOW32 for x in (*counter, *key))))
    return torch.stack(words, -1).flatten(2)[:, :, :length] < int(dropout * 2**32)


def paged_attention(q, keys, values, page_table, cache_row, position, scale, window, dropout, seed, sequence, layer):
    """softmax(q . keys * scale) values, over the keys of `cache_row` up to `position`; zeros if `cache_row` < 0."""
    pages = page_table[cache_row.clamp(min=0).long()].clamp(min=0).long()  # [N, M]
    heads = q.shape[1] // keys.shape[1]

    def gathered(store):  # [N, H, L, d]
        return _wide(store[pages].transpose(1, 2).flatten(2, 3).repeat_interleave(heads, 1))

    length = int(position.max()) + 1 if len(position) else 0
    key = torch.arange(length, device=q.device)
    seen = (key <= position[:, None]) & (cache_row >= 0)[:, None]  # [N, L]
    if window:
        seen &= key > position[:, None] - window
    score = torch.einsum("nhd,nhld->nhl", _wide(q), gathered(keys)[:, :, :length].to(_wide(q).dtype)) * scale
    share = torch.softmax(score.masked_fill(~seen[:, None], -torch.inf), -1)
    if dropout:
        gone = dropped(dropout, seed, sequence, position, layer, q.shape[1], length)
        share = share.masked_fill(gone, 0) / (1 - dropout)
    value = gathered(values)[:, :, :length].masked_fill(~seen[:, None, :, None], 0).to(share.dtype)
    out = torch.einsum("nhl,nhld->nhd", share, value)
    return out.masked_fill((cache_row < 0)[:, None, None], 0).to(q.dtype)
