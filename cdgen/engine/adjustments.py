"""Changes of GOOD's logits before the candidates are selected: biases, and penalties on tokens that occurred."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdgen.engine.sampling_params import SamplingParams


class Bias(NamedTuple):
    """Numbers that are added to the logits of a few tokens."""

    token: Tensor  # int64 [N], distinct
    value: Tensor  # float32 [N]

    @classmethod
    def of(cls, params: SamplingParams, device: torch.device) -> "Bias | None":
        """Return `logit_bias` as tensors; None if there is none."""
        if not params.logit_bias:
            return None
        tokens, values = zip(*params.logit_bias, strict=True)
        return cls(torch.tensor(tokens, device=device), torch.tensor(values, dtype=torch.float32, device=device))


class Penalties(NamedTuple):
    """Penalties of A sequences, and the tokens that they apply to."""

    strength: Tensor  # float32 [3, A], see penalty_strengths
    history: Tensor  # int64 [A, L], the tokens of each sequence; only those before `position` are used
    position: Tensor  # int64 [A], positions of the tokens to be drawn
    output_from: Tensor  # int64 [A], positions at which the continuations begin


class Adjustment(NamedTuple):
    """Changes of GOOD's logits for a batch of sequences."""

    bias: Bias | None
    penalties: Penalties | None

    def apply(self, good: Tensor) -> Tensor:
        """Return GOOD's logits [A, V] with these changes, in float32, as vLLM computes them.

        Shapes do not depend on the tokens, so that a CUDA graph can hold the computation. A row whose penalties change
        nothing keeps its logits bit for bit.
        """
        good = good.float()
        if self.bias is not None:
            good = good.index_add(1, self.bias.token, self.bias.value.expand(len(good), -1))
        return good if self.penalties is None else _penalized(good, self.penalties)


def penalty_strengths(params: Sequence[SamplingParams]) -> npt.NDArray[np.float32]:
    """Return the penalties of sequences, float32 [3, A]: repetition, presence, frequency."""
    rows = [(each.repetition_penalty, each.presence_penalty, each.frequency_penalty) for each in params]
    return np.array(rows, np.float32).T


def _penalized(good: Tensor, penalties: Penalties) -> Tensor:
    strength, history, position, output_from = penalties
    at = torch.arange(history.shape[1], device=history.device)
    occurred = at < position.unsqueeze(1)  # [A, L]
    token = torch.where(occurred, history, 0)
    drawn = occurred & (at >= output_from.unsqueeze(1))
    total, count = (torch.zeros_like(good).scatter_add_(1, token, each.float()) for each in (occurred, drawn))
    repetition, presence, frequency = strength.unsqueeze(2)
    repeated = torch.where(good > 0, good / repetition, good * repetition)
    return torch.where(total > 0, repeated, good) - frequency * count - presence * (count > 0)
