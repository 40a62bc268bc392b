"""Checks of drawn tokens against the exact distribution of a method."""

import math

import torch
from torch import Tensor

from cdgen.bench.logits import make_pair
from cdgen.bench.methods import FUSED, Method
from cdgen.bench.rivals import Rival
from cdgen_kernels import SamplingTensors, codes, reference

# float32 and float64 scores may have different winners if the best two noisy scores are within about 1e-5.
MISMATCHES = 1e-3  # allowed share of rows, rounded to whole rows
DRAWS, SMALL = 4096, 500  # draws of one row, and its vocabulary size, for the check of the distribution
LEAST_EXPECTED = 5  # draws per cell of the chi-square statistic
DEVIATIONS = 7  # allowed distance of the statistic from its mean, in standard deviations


def distribution(good: Tensor, bad: Tensor, sampling: SamplingTensors, slack: float = 0.0) -> Tensor:
    """Return the exact probabilities, float64 [B, V].

    Args:
        slack: added to top_p; libraries that sum in float32 may keep one more token.
    """
    score = reference.contrastive_scores(good.float(), bad.float(), sampling, codes.MASK, 0.0)
    score = reference.keep_top(score, sampling.top_k, (sampling.top_p + slack).clamp(max=1))
    return torch.softmax(score, 1)


def fault_of_fused(tokens: Tensor, good: Tensor, bad: Tensor | None, sampling: SamplingTensors) -> str | None:
    """Return why tokens [B] are not those of the float64 reference; None if they are."""
    expected = reference.contrastive_sample(good, bad, sampling, None, good.shape[1], codes.MASK, 0.0, False).token
    mismatches = int((tokens != expected).sum())
    few = mismatches <= round(MISMATCHES * len(tokens))
    return None if few else f"{mismatches} of {len(tokens)} tokens differ from the reference"


def fault_of_rival(tokens: Tensor, good: Tensor, bad: Tensor, sampling: SamplingTensors) -> str | None:
    """Return why tokens [B] cannot have been drawn by a method; None if they can."""
    p = distribution(good, bad, sampling, slack=1e-4).gather(1, tokens.long().unsqueeze(1))
    wrong = int((p <= 0).sum())
    return f"{wrong} of {len(tokens)} tokens have probability 0" if wrong else None


def fault_of_draws(tokens: Tensor, probabilities: Tensor) -> str | None:
    """Return how the frequencies of independent draws [N] differ from probabilities [V]; None if they fit.

    Cells with few expected draws are pooled, and left out if together they are still few. The chi-square statistic is
    compared with its mean, the number of degrees of freedom, in units of its standard deviation.
    """
    counts = torch.bincount(tokens.long(), minlength=len(probabilities)).double()
    expected = probabilities * len(tokens)
    rare = expected < LEAST_EXPECTED
    counts, pooled = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    counts, expected = counts[pooled >= LEAST_EXPECTED], pooled[pooled >= LEAST_EXPECTED]
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = max(len(expected) - 1, 1)
    limit = freedom + DEVIATIONS * math.sqrt(2 * freedom)
    if statistic <= limit:
        return None
    return f"the frequencies of {len(tokens)} draws are wrong: chi-square {statistic:.0f}, at most {limit:.0f} expected"


def check_draws(method: Method, name: str, call: Rival, dtype: torch.dtype, device: torch.device) -> str | None:
    """Draw often from one pair of rows; return how the frequencies differ from the distribution, None if they fit."""
    good, bad = (x.expand(DRAWS, -1).contiguous() for x in make_pair(1, SMALL, dtype, device, seed=3))
    sampling = method.sampling(DRAWS, device)
    tokens = (method.fused(sampling) if name == FUSED else call)(good, bad)
    one = SamplingTensors(*(x[:1] for x in sampling))
    return fault_of_draws(tokens, distribution(good[:1], bad[:1], one)[0])
