"""What goes into the sampling ops for each row, and what comes out: plain tuples of tensors."""

from typing import NamedTuple

import torch


class SamplingTensors(NamedTuple):
    """Per-row sampling parameters, each a tensor [B] on the device of the logits.

    :func:`make_sampling_tensors` builds them.

    They are tensors so that a captured CUDA graph or a compiled step can be replayed with other values: a decode loop
    keeps one `SamplingTensors` and calls `rows.position.add_(1)` after each token.
    """

    margin: torch.Tensor  # float32; -T ln(alpha): how far below GOOD's maximum the head reaches; inf: everywhere
    good_weight: torch.Tensor  # float32
    contrast_strength: torch.Tensor  # float32
    temperature: torch.Tensor  # float32; 0: the best score, no noise
    top_p: torch.Tensor  # float32; 1: off
    top_k: torch.Tensor  # int32; 0: off
    seed: torch.Tensor  # int64; the 64-bit key of the noise
    sequence: torch.Tensor  # int64; which text this is, the same in whatever batch it stands
    position: torch.Tensor  # int64; which token of the text this is; its low 32 bits count


class Candidates(NamedTuple):
    """The alpha-head of each row as a short list, in the order of the token ids."""

    token: torch.Tensor  # int32 [B, C], -1 past the end
    logit: torch.Tensor  # float32 [B, C], GOOD's, -inf past the end
    count: torch.Tensor  # int32 [B], the size of the head, which may exceed C; below 0: a fault code
    max: torch.Tensor  # float32 [B], GOOD's greatest logit


class Samples(NamedTuple):
    """One drawn token a row, and its log-probabilities where they were asked for."""

    token: torch.Tensor  # int64 [B]
    logprob: torch.Tensor | None = None  # float32 [B], under what it was drawn from (temperature 0: that of T = 1)
    good_logprob: torch.Tensor | None = None  # float32 [B], log softmax of GOOD's logits: no temperature, no ban
    bad_logprob: torch.Tensor | None = None  # float32 [B], the same of BAD's


def make_sampling_tensors(
    batch,
    *,
    alpha=0.1,
    good_weight=1.0,
    contrast_strength=1.0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    sequence=None,
    position=0,
    device="cpu",
):
    """Build :class:`SamplingTensors` for `batch` rows; each argument is one value for all rows, or a sequence or
    tensor [B].

    Args:
        alpha: the head keeps tokens of at least alpha times GOOD's greatest probability; 0 keeps all. In [0, 1].
        good_weight, contrast_strength: the weights of the score; any finite numbers, good_weight >= 0.
        temperature: divides both models' logits, before the head is taken; >= 0.
        top_k, top_p: keep the k best scores (0: all), then the nucleus of mass p, in (0, 1].
        seed: 64-bit key of the noise. sequence: the text's own number, default 0 .. B-1. position: the token's place.
    Raises:
        ValueError: a value out of its range, or a sequence of another length than `batch`.
    """

    def column(name, value, dtype, allowed, within):
        tensor = torch.as_tensor(value, device=device).to(dtype)
        if tensor.dim() and tensor.shape != (batch,):
            raise ValueError(f"{name}: {tuple(tensor.shape)} values for {batch} rows; give one, or one for each row")
        wrong = ~(allowed(tensor) & tensor.isfinite())
        if wrong.any():
            raise ValueError(f"{name} = {tensor[wrong].flatten()[0].item():g}: must be {within}")
        return tensor.expand(batch).clone()

    def any_number(x):
        return x == x

    def not_negative(x):
        return x >= 0

    if sequence is None:
        sequence = range(batch)
    alpha = column("alpha", alpha, torch.float64, lambda x: (x >= 0) & (x <= 1), "in [0, 1]")
    temperature = column("temperature", temperature, torch.float64, not_negative, "a finite number >= 0")
    scale = torch.where(temperature == 0, 1.0, temperature)
    margin = torch.where(alpha == 0, torch.inf, -scale * torch.log(alpha))
    return SamplingTensors(
        margin.float(),
        column("good_weight", good_weight, torch.float32, not_negative, "a finite number >= 0"),
        column("contrast_strength", contrast_strength, torch.float32, any_number, "a finite number"),
        temperature.float(),
        column("top_p", top_p, torch.float32, lambda x: (x > 0) & (x <= 1), "in (0, 1]"),
        column("top_k", top_k, torch.int32, not_negative, "a whole number >= 0"),
        column("seed", seed, torch.int64, any_number, "a whole number"),
        column("sequence", sequence, torch.int64, any_number, "a whole number"),
        column("position", position, torch.int64, not_negative, "a whole number >= 0"),
    )
