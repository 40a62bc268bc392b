"""Logits that look like a language model's."""

import torch


def zipf_like(batch: int, vocab_size: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """Return float32 logits [B, V] whose probabilities fall roughly like 1 / rank.

    The token of rank r has logit -log1p(r) plus noise, so that alpha = 0.1 leaves about 10 candidates. All rows share
    one ranking, each shifted by a random number of tokens and with noise of its own.
    """
    ranks = torch.randperm(vocab_size, device=device, generator=generator)
    first = torch.randint(vocab_size, (batch, 1), device=device, generator=generator)
    rank = ranks[(torch.arange(vocab_size, device=device) + first) % vocab_size]
    noise = torch.randn(batch, vocab_size, device=device, generator=generator)
    return noise.mul_(0.2).sub_(torch.log1p(rank.float()))


def make_pair(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of GOOD and of a correlated BAD [B, V]."""
    generator = torch.Generator(device).manual_seed(seed)
    good = zipf_like(batch, vocab_size, device, generator)
    bad = torch.randn(good.shape, device=device, generator=generator).add_(good, alpha=0.7)
    return good.to(dtype), bad.to(dtype)
