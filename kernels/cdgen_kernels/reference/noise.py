"""Random numbers as a function of seed, sequence, position and token: Philox 4x32-10 and Gumbel noise."""

import torch

LOW32 = 0xFFFFFFFF


def columns(*per_row):
    return [x.unsqueeze(1) for x in per_row]


def philox_block(c0, c1, c2, c3, k0, k1):
    """Philox 4x32-10 (Salmon et al. 2011): four 32-bit words from counter and key, int64 tensors of one shape."""
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64-bit products; they wrap in int64 with the right bits
        c0, c1, c2, c3 = (p1 >> 32 & LOW32) ^ c1 ^ k0, p1 & LOW32, (p0 >> 32 & LOW32) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = k0 + 0x9E3779B9 & LOW32, k1 + 0xBB67AE85 & LOW32
    return c0, c1, c2, c3


def philox(seed, sequence, position, vocab_size):
    """Random words as a function of the token.

    Args:
        seed, sequence, position: int64 [B]; key: the seed; counter: (token // 4, position, sequence low, high).
        vocab_size: tokens per row.
    Returns:
        int64 [B, vocab_size] holding the unsigned 32-bit word `token % 4` of each token's block.
    """
    block = torch.arange((vocab_size + 3) // 4, device=seed.device).unsqueeze(0)
    per_row = (x & LOW32 for x in columns(position, sequence, sequence >> 32, seed, seed >> 32))
    words = philox_block(*torch.broadcast_tensors(block, *per_row))
    return torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]


def gumbel(words):
    """Standard Gumbel noise, float64, from 32-bit words: -log(-log1p(-v)), v = (word + 1/2) / 2^32.

    Large values decide winners and come from small v, where all 32 bits count; 1 - v is never formed.
    """
    return -torch.log(-torch.log1p(-(words.double() + 0.5) * 2.0**-32))
