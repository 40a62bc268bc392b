"""Check that the device computes the reference's random words, and Gumbel noise from them."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from benchmarks.gpu.check import Checked, greatest_error
from cdgen_kernels import reference
from cdgen_kernels.triton.noise import gumbel, philox_word

BLOCK_SIZE = 1024
ALLOWED = 1e-5  # largest error of the noise

Key = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def noise_kernel(seed_ptr, sequence_ptr, position_ptr, words_ptr, noise_ptr, tokens, BLOCK_SIZE: tl.constexpr):
    token = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    word = philox_word(token, tl.load(seed_ptr), tl.load(sequence_ptr), tl.load(position_ptr))
    tl.store(words_ptr + token, word.to(tl.int64), mask=token < tokens)
    tl.store(noise_ptr + token, gumbel(word), mask=token < tokens)


def triton_noise(key: Key, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return words, int64 [tokens], and noise, float32 [tokens].

    Args:
        key: (seed, sequence, position), int64 [1] each.
    """
    words = torch.empty(tokens, dtype=torch.int64, device=key[0].device)
    noise = torch.empty(tokens, device=key[0].device)
    grid = (triton.cdiv(tokens, BLOCK_SIZE),)
    noise_kernel[grid](*key, words, noise, tokens, BLOCK_SIZE=BLOCK_SIZE, num_warps=4, enable_fp_fusion=False)
    return words, noise


def reference_noise(key: Key, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same as :func:`triton_noise`, computed by the reference."""
    words = reference.philox(*key, tokens)[0]
    return words, reference.gumbel(words).float()


def check_noise(
    device: torch.device,
    tokens: int = 1_000_003,
    make: Callable[[Key, int], tuple[torch.Tensor, torch.Tensor]] = triton_noise,
) -> Checked:
    """Compare words exactly, and noise with tolerance ALLOWED."""
    seed, sequence, position = (torch.tensor([x], device=device) for x in (0x123456789ABCDEF0, -2, 2**31 + 5))
    key = seed, sequence, position
    words, noise = make(key, tokens)
    expected = reference.philox(*key, tokens)[0]
    checked = Checked(f"noise of {tokens} tokens", tokens, int((words != expected).sum()))
    error = greatest_error(noise, reference.gumbel(expected))
    checked.errors["noise"] = {"own": error, "torch": 0.0, "allowed": ALLOWED if checked.mismatches == 0 else -1.0}
    return checked
