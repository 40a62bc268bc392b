"""Random numbers in Triton: the same Philox words as the reference, bit for bit, and Gumbel noise in float32."""

import triton
import triton.language as tl


@triton.jit
def philox_block(block, seed, sequence, position):
    """Return the four uint32 words of each block: Philox 4x32-10, counter (block, position, sequence), key `seed`.

    Args:
        block: int32 tensor of block numbers.
        seed, sequence, position: int64 scalars, or tensors to broadcast with `block`.
    """
    c0 = block.to(tl.uint32)
    c1 = tl.zeros_like(c0) + position.to(tl.uint32)
    c2 = tl.zeros_like(c0) + sequence.to(tl.uint32)
    c3 = tl.zeros_like(c0) + (sequence >> 32).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        low0 = c0 * 0xD2511F53
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def philox_word(token, seed, sequence, position):
    """Return the uint32 word of each token (int32 tensor): word token % 4 of block token // 4."""
    w0, w1, w2, w3 = philox_block(token >> 2, seed, sequence, position)
    word = token & 3
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))


@triton.jit
def philox_words(start, seed, sequence, position, N: tl.constexpr):
    """Return uint32 [N]: the words of tokens start to start + N - 1, four per block. `start` is a multiple of 4."""
    w0, w1, w2, w3 = philox_block(start // 4 + tl.arange(0, N // 4), seed, sequence, position)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [N])


@triton.jit
def gumbel(word):
    """Return -log(-log1p(-v)) in float32 for v = (word + 1/2) / 2^32, within 1e-6 of float64. `word` is uint32.

    Large values come from small v, where 1 - v would round to 1: there -log1p(-v) is computed as a series. Elsewhere
    1 - v is computed from the complement of the word, which is exact.
    """
    v = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = 1.0 / 8 + v * (1.0 / 9)
    series = 1.0 / 7 + v * series
    series = 1.0 / 6 + v * series
    series = 1.0 / 5 + v * series
    series = 1.0 / 4 + v * series
    series = 1.0 / 3 + v * series
    series = 1.0 / 2 + v * series
    rest = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return -tl.log(tl.where(v < 0.125, v + v * v * series, -tl.log(rest)))


@triton.jit
def gumbel_bound(word):
    """Return an upper bound of gumbel(word), without a logarithm; float32, up to rounding.

    -log1p(-v) >= v, so gumbel(word) <= -log(v) <= -log(word / 2^32). The bits of a float, read as an integer in units
    of 2^-23, are its binary logarithm plus 127 minus at most 0.0861. For word 0 the bound is 110.
    """
    bits = word.to(tl.float32).to(tl.int32, bitcast=True).to(tl.float32)
    return tl.fma(bits, -8.262958294867817e-08, 110.2104017090313)  # -ln 2 / 2^23, 159 ln 2
