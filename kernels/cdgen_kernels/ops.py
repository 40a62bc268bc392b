"""The public sampling ops: contrastive decoding from two models' logits to one token per row.

    sampling = make_sampling_tensors(batch, alpha=0.1, contrast_strength=1.0, seed=0)
    token = contrastive_sample(good_logits, bad_logits, sampling).token          # [B]

Each op is registered as `torch.ops.cdgen.*` with a fake, traces under `torch.compile(fullgraph=True)`, and never waits
for a device. The environment variable `CDGEN_IMPL=reference|cpp|triton`, read at import, overrides the choice of
implementation.
"""

import torch
from torch import Tensor

from cdgen_kernels.checks import (
    check_banned,
    check_candidates,
    check_capacity,
    check_logits,
    check_output_layer,
    check_sampling,
    check_tensors,
    check_vocab_size,
    outside_mode,
)
from cdgen_kernels.codes import FAULTS, OutsideHead
from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors
from cdgen_kernels.scalars import INT32_MAX, whole

__all__ = [
    "RowFault",
    "contrastive_sample",
    "gather_logits",
    "sample_candidates",
    "select_candidates",
    "select_candidates_linear",
]


class RowFault(ValueError):
    """No token can be drawn for one row; the message gives its index and the reason.

    Attributes:
        row: index of the row in the batch.
    """

    def __init__(self, row: int, code: int) -> None:
        super().__init__(f"row {row}: {FAULTS[code]}")
        self.row = row


def _raise_on_fault(codes: Tensor, raise_faults: bool) -> None:
    """Raise RowFault for the first negative code, on the CPU only, where reading the codes costs no synchronisation."""
    if not raise_faults or not codes.is_cpu or type(codes) is not Tensor or torch.compiler.is_compiling():
        return
    values = codes.tolist()  # much cheaper than a torch op
    if min(values, default=0) < 0:
        raise RowFault(*next((row, code) for row, code in enumerate(values) if code < 0))


def select_candidates(
    good: Tensor,
    sampling: SamplingTensors,
    *,
    vocab_size: int | None = None,
    banned: Tensor | None = None,
    capacity: int = 1024,
    raise_faults: bool = True,
) -> Candidates:
    """Compact each row's candidates into a short list, in one pass over GOOD's logits.

    The candidates are the tokens with `z_GOOD >= max z_GOOD - margin`, which is `p_GOOD >= alpha * max p_GOOD`
    (Li et al. 2023, arXiv 2210.15097, section 3).

    Args:
        good: GOOD's logits [B, V'], float16, bfloat16 or float32, any row stride.
        sampling: :class:`SamplingTensors`; only `margin` is used.
        vocab_size: number of entries that are tokens; the padding after them is not read. Default: V'.
        banned: int32 or int64 [B, N], ids of tokens that must not be drawn, padded with -1; or None.
        capacity: length C of the list. If a row has more candidates, its `count` exceeds C and its list holds the C
            candidates with the lowest ids.
        raise_faults: raise RowFault on the CPU; if False, the codes of faulty rows are returned there too, as on other
            devices, and the other rows are not lost.
    Returns:
        :class:`Candidates`.
    Raises:
        ValueError: a shape, dtype or value is wrong.
        RowFault: on the CPU, if a row contains NaN or only -inf, or its margin is NaN or negative. On other devices
            such a row has a negative `count`, one of :data:`cdgen_kernels.codes.FAULTS`, so that the call never waits
            for the device.
    """
    good = check_logits("good", good)
    capacity = check_capacity(capacity)
    check_sampling(sampling, good.shape[0], good.device)
    vocab_size = check_vocab_size(vocab_size, good.shape[1])
    banned = check_banned(banned, good.shape[0], good.device)
    candidates = Candidates(
        *torch.ops.cdgen.select_candidates.default(good, sampling.margin, banned, vocab_size, capacity)
    )
    _raise_on_fault(candidates.count, raise_faults)
    return candidates


def contrastive_sample(
    good: Tensor,
    bad: Tensor | None,
    sampling: SamplingTensors,
    *,
    vocab_size: int | None = None,
    outside_head: OutsideHead = "mask",
    banned: Tensor | None = None,
    logprobs: bool = False,
    raise_faults: bool = True,
) -> Samples:
    """Draw one token per row by contrastive decoding: candidates, contrast, top-k, top-p and Gumbel noise in one op.

    The score of a candidate is `(good_weight * z_GOOD - contrast_strength * z_BAD) / temperature` (Li et al. 2023,
    arXiv 2210.15097, section 3); the token is the argmax of score plus Gumbel noise. With `contrast_strength = 0` this
    is min-p sampling, with `alpha = 0` as well it is plain sampling. The draw depends on nothing but (logits, seed,
    sequence, position): the other rows of the batch do not matter.

    Args:
        good: GOOD's logits [B, V'], float16, bfloat16 or float32, any row stride.
        bad: BAD's logits [B, V''], whose dtype may differ; None for no contrast. With `outside_head="mask"` and without
            `logprobs`, only the logits of candidates are read.
        sampling: :class:`SamplingTensors`, from :func:`make_sampling_tensors`.
        vocab_size: number of entries that are tokens in both. Default: min(V', V'').
        outside_head: the score of tokens that are not candidates. `"mask"`: they cannot be drawn. A number: their
            constant score, which gives them a small probability (the program of arXiv 2510.08245 uses -20); it must be
            finite in float32, or -inf, which is `"mask"`.
            `"shifted_good"`: their GOOD logit, shifted down so that the best of them equals the worst candidate.
        banned: int32 or int64 [B, N], ids of tokens that must not be drawn, padded with -1; or None.
        logprobs: also return log-probabilities of the drawn token, which reads all logits of both models again.
        raise_faults: raise RowFault on the CPU; if False, the codes of faulty rows are returned there too, as on other
            devices, and the other rows are not lost.
    Returns:
        :class:`Samples`; its log-probabilities are None unless `logprobs`.
    Raises:
        ValueError: a shape, dtype or value is wrong.
        RowFault: on the CPU, if no token can be drawn for a row: GOOD's logits contain NaN or only -inf, an entry of
            BAD that a score needs is NaN, or a sampling parameter was edited and is out of range. On other devices the
            token of such a row is negative, one of :data:`cdgen_kernels.codes.FAULTS`.
    """
    good = check_logits("good", good)
    bad = bad if bad is None else check_logits("bad", bad, good)
    vocab_size = check_vocab_size(vocab_size, good.shape[1], *(() if bad is None else (bad.shape[1],)))
    check_sampling(sampling, good.shape[0], good.device)
    banned = check_banned(banned, good.shape[0], good.device)
    mode, constant = outside_mode(outside_head)
    token, out = torch.ops.cdgen.contrastive_sample.default(
        good, bad, *sampling, banned, vocab_size, mode, constant, logprobs
    )
    _raise_on_fault(token, raise_faults)
    return Samples(token, *out.unbind(0)) if logprobs else Samples(token)


def sample_candidates(
    candidates: Candidates,
    bad: Tensor | None,
    sampling: SamplingTensors,
    *,
    gathered: bool = False,
    vocab_size: int | None = None,
    logprobs: bool = False,
    raise_faults: bool = True,
) -> Samples:
    """Draw one token per row from the candidates of :func:`select_candidates` and BAD's logits.

    The score and the noise are those of :func:`contrastive_sample` with `outside_head="mask"`, and so is the token.

    Args:
        candidates: :class:`Candidates` [B, C], from which bans have been removed already.
        bad: BAD's logits [B, V''], of which only the candidates are read. If `gathered`, the logits of the candidates
            alone, [B, C] in the order of `candidates.token`, as :func:`gather_logits` returns them. None: no contrast.
        sampling: :class:`SamplingTensors`; `margin` is not used.
        gathered: whether `bad` holds the logits of the candidates alone.
        vocab_size: upper bound of the token ids. Default: V''; required if `bad` is None or gathered.
        logprobs: also return the log-probability of the token under the distribution that it was drawn from.
        raise_faults: raise RowFault on the CPU; if False, the codes of faulty rows are returned there too, as on other
            devices, and the other rows are not lost.
    Returns:
        :class:`Samples` with `token` and, if requested, `logprob`.
    Raises:
        ValueError: a shape, dtype or value is wrong.
        RowFault: on the CPU, as for :func:`contrastive_sample`, and also if a row has more candidates than its list
            holds, or if its list, made by hand, is not one that :func:`select_candidates` returns: ids must ascend
            within the vocabulary. On other devices the token of such a row is negative.
    """
    check_candidates(candidates)
    check_sampling(sampling, candidates.token.shape[0], candidates.token.device)
    bad = bad if bad is None else check_logits("bad", bad, candidates.token)
    if bad is None or gathered:
        if vocab_size is None:
            raise ValueError("vocab_size: required if bad is None or gathered")
        vocab_size = whole("vocab_size", vocab_size, 1, INT32_MAX)
        if gathered and (bad is None or bad.shape != candidates.token.shape):
            got = None if bad is None else tuple(bad.shape)
            expected = tuple(candidates.token.shape)
            raise ValueError(f"bad: expected gathered logits {expected} to match the candidates, got {got}")
    else:
        vocab_size = check_vocab_size(vocab_size, bad.shape[1])
    token, logprob = torch.ops.cdgen.sample_candidates.default(
        *candidates, bad, *sampling, vocab_size, gathered, logprobs
    )
    _raise_on_fault(token, raise_faults)
    return Samples(token, logprob if logprobs else None)


def select_candidates_linear(
    hidden: Tensor,
    weight: Tensor,
    sampling: SamplingTensors,
    *,
    vocab_size: int | None = None,
    banned: Tensor | None = None,
    capacity: int = 1024,
    raise_faults: bool = True,
) -> Candidates:
    """Select candidates from the logits `hidden @ weight.T`, which are never stored on a GPU.

    Args:
        hidden: GOOD's last hidden states [B, D], float16, bfloat16 or float32.
        weight: weight of GOOD's output layer [V', D], of the same dtype, with contiguous rows.
        sampling: :class:`SamplingTensors`; only `margin` is used.
        vocab_size, banned, capacity: as for :func:`select_candidates`; a capacity of V' holds any candidates.
        raise_faults: as for :func:`select_candidates`.
    Returns:
        :class:`Candidates`. Logits are accumulated in float32 and not rounded to the dtype of the hidden states.
    Raises:
        ValueError, RowFault: as for :func:`select_candidates`.
    """
    hidden = check_output_layer(hidden, weight)
    capacity = check_capacity(capacity)
    check_sampling(sampling, hidden.shape[0], hidden.device)
    vocab_size = check_vocab_size(vocab_size, weight.shape[0])
    banned = check_banned(banned, hidden.shape[0], hidden.device)
    found = torch.ops.cdgen.select_candidates_linear.default(
        hidden, weight, sampling.margin, banned, vocab_size, capacity
    )
    candidates = Candidates(*found)
    _raise_on_fault(candidates.count, raise_faults)
    return candidates


def gather_logits(hidden: Tensor, weight: Tensor, candidates: Candidates) -> Tensor:
    """Compute BAD's logits of GOOD's candidates alone, so that BAD's output layer is never applied to all tokens.

    Args:
        hidden: BAD's last hidden states [B, D], float16, bfloat16 or float32.
        weight: weight of BAD's output layer [V, D], of the same dtype.
        candidates: :class:`Candidates` [B, C].
    Returns:
        float32 [B, C], -inf past the end of each list: the `bad` of :func:`sample_candidates` with `gathered=True`.
    Raises:
        ValueError: shapes, dtypes or devices do not match.
        RuntimeError: on the CPU, if a candidate is not a token of the output layer. On other devices its logit is NaN.
    """
    hidden = check_output_layer(hidden, weight)
    check_candidates(candidates)
    if candidates.token.shape[0] != hidden.shape[0]:
        got = f"{candidates.token.shape[0]}, but hidden has {hidden.shape[0]}"
        raise ValueError(f"candidates: has batch size {got}")
    check_tensors(hidden=hidden, candidates=candidates.token)
    logits: Tensor = torch.ops.cdgen.gather_logits.default(hidden, weight, candidates.token, candidates.count)
    return logits
