"""Random numbers as a function of seed, sequence, position and token: Philox 4x32-10 and Gumbel noise."""

import torch
from torch import Tensor

LOW32 = 0xFFFFFFFF


def columns(*per_row: Tensor) -> list[Tensor]:
    """Return tensors [B] as [B, 1], to broadcast over tokens."""
    return [x.unsqueeze(1) for x in per_row]


def philox_block(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute one block of Philox 4x32-10 (Salmon et al. 2011) for each counter and key.

    Args:
        c0, c1, c2, c3: words of the counter, int64 tensors from 0 to 2^32 - 1, of shapes that can be broadcast.
        k0, k1: words of the key, likewise.
    Returns:
        Four random words of the same range, int64 tensors of the broadcast shape.
    """
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64-bit products; int64 wraps around, with the right bits
        c0, c1, c2, c3 = (p1 >> 32 & LOW32) ^ c1 ^ k0, p1 & LOW32, (p0 >> 32 & LOW32) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = k0 + 0x9E3779B9 & LOW32, k1 + 0xBB67AE85 & LOW32
    return c0, c1, c2, c3


def philox(seed: Tensor, sequence: Tensor, position: Tensor, vocab_size: int) -> Tensor:
    """Compute one random word for every token of each row.

    Token t gets word `t % 4` of the block with key = seed and counter = (t // 4, position, sequence low, sequence
    high).

    Args:
        seed, sequence, position: int64 [B].
        vocab_size: number of tokens V.
    Returns:
        int64 [B, V], unsigned 32-bit words.
    """
    block = torch.arange((vocab_size + 3) // 4, device=seed.device).unsqueeze(0)
    words = philox_block(block, *(x & LOW32 for x in columns(position, sequence, sequence >> 32, seed, seed >> 32)))
    return torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]


def gumbel(words: Tensor) -> Tensor:
    """Transform 32-bit words into standard Gumbel noise: -log(-log1p(-v)) with v = (word + 1/2) / 2^32.

    The largest values decide which token is drawn. They come from small v, where all 32 bits count; 1 - v is never
    computed.

    Args:
        words: int64 of any shape, from 0 to 2^32 - 1.
    Returns:
        float64 of the same shape.
    """
    return -torch.log(-torch.log1p(-(words.double() + 0.5) * 2.0**-32))
