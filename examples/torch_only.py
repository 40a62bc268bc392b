"""A decode loop in plain torch: two n-gram models of a text, one batch, parameters per row.

    python examples/torch_only.py README.md

Needs the package cdgen_kernels and torch. GOOD predicts a character from the three before it, BAD from one. The first
two rows sample from GOOD alone, the others with the contrast.
"""

import sys
from pathlib import Path

import torch

from cdgen_kernels import contrastive_sample, make_sampling_tensors

ALPHABET = "abcdefghijklmnopqrstuvwxyz ,."
V = len(ALPHABET)
NEW_TOKENS = 200


def read_tokens(path: str) -> torch.Tensor:
    """Return the letters and marks of a text file as tokens [T]."""
    text = " ".join(Path(path).read_text(encoding="utf-8").lower().split())
    return torch.tensor([ALPHABET.index(character) for character in text if character in ALPHABET])


def ngram_logits(tokens: torch.Tensor, order: int) -> torch.Tensor:
    """Return the logits of the next token after each context, [V ** (order - 1), V]: logarithms of counts."""
    place_values = V ** torch.arange(order - 1, -1, -1)
    numbers = (tokens.unfold(0, order, 1) * place_values).sum(1)  # one number for each n-gram of the text
    return (torch.bincount(numbers, minlength=V**order) + 0.01).log().view(-1, V)


def main(path: str) -> None:
    """Print four continuations of the beginning of a text file."""
    text = read_tokens(path)
    good, bad = ngram_logits(text, order=4), ngram_logits(text, order=2)
    tokens = text[:3].expand(4, -1)  # [B, T]
    strength = torch.tensor([0.0, 0.0, 1.0, 1.0])
    sampling = make_sampling_tensors(4, alpha=0.1, contrast_strength=strength, seed=0, position=tokens.shape[1])
    for _ in range(NEW_TOKENS):
        context = tokens[:, -3:]
        good_logits = good[(context * V ** torch.arange(2, -1, -1)).sum(1)]  # [B, V]
        bad_logits = bad[context[:, -1]]  # [B, V]
        token = contrastive_sample(good_logits, bad_logits, sampling).token  # [B]
        sampling.position.add_(1)  # new noise for the next token
        tokens = torch.cat([tokens, token[:, None]], dim=1)
    for row, contrast in zip(tokens.tolist(), strength.tolist(), strict=True):
        print(f"contrast_strength {contrast:g}: {''.join(ALPHABET[token] for token in row)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
