"""Drawing a token from the logits of all tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from cdgen.engine.adjustments import Adjustment
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.top_tokens import top_tokens
from cdgen_kernels import Samples, SamplingTensors, contrastive_sample


class Draws(NamedTuple):
    """What one step draws, on the device: a token for each of A sequences."""

    token: Tensor  # int64 [A], token ids; below 0: a fault code
    logprobs: Tensor | None = None  # float32 [A, 1 + n, 3], columns as in Samples: the drawn token, then the n best
    best: Tensor | None = None  # int64 [A, n], the n tokens that were most likely to be drawn; -1 if there are fewer


def draw(
    good: Tensor,
    bad: Tensor | None,
    sampling: SamplingTensors,
    adjustment: Adjustment | None,
    params: SamplingParams,
    *,
    vocab_size: int,
    banned: Tensor | None,
    varied: bool,
) -> Draws:
    """Draw a token for each of A sequences.

    Args:
        good, bad: logits [A, V'] as the models compute them.
        adjustment: changes of GOOD's logits. GOOD's log-probabilities are those without them.
        params: `outside_head`, `logprobs` and `top_logprobs` are used.
        sampling, vocab_size, banned: see :func:`cdgen_kernels.contrastive_sample`.
        varied: whether the rows of `sampling` may have another top_k and top_p than `params`.
    """
    adjusted = good if adjustment is None else adjustment.apply(good)
    samples = contrastive_sample(
        adjusted,
        bad,
        sampling,
        vocab_size=vocab_size,
        outside_head=params.outside_head,
        banned=banned,
        logprobs=bool(params.logprobs),
        raise_faults=False,
    )
    if not params.logprobs:
        return Draws(samples.token)
    logprobs = _of_drawn(samples, None if adjustment is None else good[:, :vocab_size])
    if not params.top_logprobs:
        return Draws(samples.token, logprobs)
    best = top_tokens(
        good,
        bad,
        sampling,
        adjusted=adjusted,
        vocab_size=vocab_size,
        outside_head=params.outside_head,
        banned=banned,
        count=params.top_logprobs,
        is_cut=varied or params.cuts,
    )
    return Draws(samples.token, torch.cat([logprobs, best.logprobs], 1), best.token)


def _of_drawn(samples: Samples, good: Tensor | None) -> Tensor:
    """Return the log-probabilities of the drawn tokens, float32 [A, 1, 3].

    Args:
        samples: what was drawn from changed logits.
        good: GOOD's logits [A, V] without the changes; None if there are none.
    """
    assert samples.logprob is not None and samples.good_logprob is not None and samples.bad_logprob is not None
    good_logprob = samples.good_logprob
    if good is not None:
        token = samples.token.clamp(min=0).unsqueeze(1)
        good_logprob = good.float().log_softmax(1).gather(1, token).squeeze(1)
    return torch.stack([samples.logprob, good_logprob, samples.bad_logprob], 1).unsqueeze(1)
