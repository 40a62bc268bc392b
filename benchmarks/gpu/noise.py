"""Whether the device makes the reference's random words, and Gumbel noise of them."""

import torch
import triton
import triton.language as tl

from benchmarks.gpu.check import Checked, greatest_error
from cdgen_kernels import reference
from cdgen_kernels.triton.noise import gumbel, philox_word

BLOCK = 1024
ALLOWED = 1e-5


@triton.jit
def noise_kernel(seed, sequence, position, words, noise, n, N: tl.constexpr):
    token = tl.program_id(0) * N + tl.arange(0, N)
    word = philox_word(token, tl.load(seed), tl.load(sequence), tl.load(position))
    tl.store(words + token, word.to(tl.int64), mask=token < n)
    tl.store(noise + token, gumbel(word), mask=token < n)


def made_by_triton(key: tuple[torch.Tensor, ...], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(words int64 [tokens], noise float32 [tokens]) for key = (seed, sequence, position), int64 [1] each."""
    words = torch.empty(tokens, dtype=torch.int64, device=key[0].device)
    noise = torch.empty(tokens, device=key[0].device)
    grid = (triton.cdiv(tokens, BLOCK),)
    noise_kernel[grid](*key, words, noise, tokens, N=BLOCK, num_warps=4, enable_fp_fusion=False)
    return words, noise


def made_by_reference(key: tuple[torch.Tensor, ...], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    words = reference.philox(*key, tokens)[0]
    return words, reference.gumbel(words).float()


def check_noise(device: torch.device, tokens: int = 1_000_003, make=made_by_triton) -> Checked:
    """Compare words exactly and noise to 1e-5."""
    key = tuple(torch.tensor([x], device=device) for x in (0x123456789ABCDEF0, -2, 2**31 + 5))
    words, noise = make(key, tokens)
    wanted = reference.philox(*key, tokens)[0]
    checked = Checked(f"noise of {tokens} tokens", tokens, int((words != wanted).sum()))
    error = greatest_error(noise, reference.gumbel(wanted))
    checked.errors["noise"] = {"own": error, "torch": 0.0, "allowed": ALLOWED if checked.mismatches == 0 else -1.0}
    return checked
