"""The public ops: what they take and give, and the checks of it.

    rows = make_sampling_tensors(batch, alpha=0.1, contrast_strength=1.0, seed=0)
    token = sample(good_logits, bad_logits, rows).token          # [B]

Each op is registered as `torch.ops.cdgen.*` with a fake, traces under `torch.compile(fullgraph=True)`, and never waits
for a device. `CDGEN_IMPL=reference|cpp|triton`, read at import, overrides the choice of implementation.
"""

import torch

from cdgen_kernels.codes import CONSTANT, FAULTS, MASK, SHIFTED_GOOD
from cdgen_kernels.cross_entropy import linear_cross_entropy
from cdgen_kernels.registry import implementation
from cdgen_kernels.sampling_tensors import Candidates, Samples, SamplingTensors, make_sampling_tensors

__all__ = [
    "Candidates",
    "RowFault",
    "Samples",
    "SamplingTensors",
    "contrastive_sample",
    "gather_logits",
    "implementation",
    "linear_cross_entropy",
    "make_sampling_tensors",
    "sample_candidates",
    "select_candidates",
    "select_candidates_linear",
]


class RowFault(ValueError):
    """Row number `row` has no answer; the message tells why."""

    def __init__(self, row, code):
        super().__init__(f"row {row}: {FAULTS[code]}")
        self.row = row


def _raise_on_fault(codes):
    """On the CPU, where looking costs nothing; not while tracing, where there is nothing to see."""
    if torch.compiler.is_compiling() or type(codes) is not torch.Tensor or codes.device.type != "cpu":
        return
    codes = codes.tolist()  # a fraction of what a torch op takes
    if min(codes, default=0) < 0:
        raise RowFault(*next((row, code) for row, code in enumerate(codes) if code < 0))


def _check_logits(name, logits, batch=None):
    if logits.dim() != 2 or logits.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        got = f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(f"{name}: expected float16, bfloat16 or float32 logits [B, V], got {got}")
    if batch is not None and logits.shape[0] != batch:
        raise ValueError(f"{name}: {logits.shape[0]} rows, but GOOD has {batch}")
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _check_vocabulary(vocab_size, *logits):
    width = min(x.shape[1] for x in logits)
    if vocab_size is None:
        return width
    if not 1 <= vocab_size <= width:
        raise ValueError(f"vocab_size = {vocab_size}: must be 1 to {width}, the narrower of the logits")
    return vocab_size


def _check_sampling(sampling, batch):
    if sampling.margin.shape[0] != batch:
        raise ValueError(f"sampling: made for {sampling.margin.shape[0]} rows, but there are {batch} rows of logits")


def _check_banned(banned, batch):
    if banned is None:
        return None
    if banned.dim() != 2 or banned.shape[0] != batch or banned.is_floating_point():
        raise ValueError(f"banned: expected integers [{batch}, N], got {banned.dtype} {tuple(banned.shape)}")
    return banned.to(torch.int64).contiguous()


def _outside(outside_head):
    if outside_head == "mask":
        return MASK, 0.0
    if outside_head == "shifted_good":
        return SHIFTED_GOOD, 0.0
    if isinstance(outside_head, (int, float)):
        return CONSTANT, float(outside_head)
    raise ValueError(f"outside_head = {outside_head!r}: use 'mask', 'shifted_good' or a number")


def select_candidates(good, sampling, *, vocab_size=None, banned=None, capacity=1024):
    """Compact each row's alpha-head, `z_GOOD >= max z_GOOD - margin`, into a short list in one pass over the logits.

    Args:
        good: GOOD's logits [B, V'], float16, bfloat16 or float32, any row stride.
        rows: :class:`SamplingTensors`, of which `margin` counts here.
        vocab_size: entries that are tokens; the padding behind them is not read. Default: V'.
        banned: int32 or int64 [B, N] token ids that cannot be drawn, -1 where there are fewer; or None.
        capacity: length C of the list. A longer head is told by its `count`, and its list holds the C lowest ids.
    Returns:
        :class:`Candidates`.
    Raises:
        ValueError: wrong shapes; on the CPU also a row of NaN or of nothing but -inf, by number. On other devices
            such a row has `count` < 0, so that nothing waits for the device.
    """
    good = _check_logits("good", good)
    if capacity < 1:
        raise ValueError(f"capacity = {capacity}: must be at least 1")
    _check_sampling(sampling, good.shape[0])
    vocab_size = _check_vocabulary(vocab_size, good)
    banned = _check_banned(banned, good.shape[0])
    candidates = Candidates(
        *torch.ops.cdgen.select_candidates.default(good, sampling.margin, banned, vocab_size, capacity)
    )
    _raise_on_fault(candidates.count)
    return candidates


def contrastive_sample(good, bad, sampling, *, vocab_size=None, outside_head="mask", banned=None, logprobs=False):
    """Draw one token a row by contrastive decoding: head, contrast, top-k, top-p and Gumbel noise in one op.

    `contrast_strength = 0` in all rows makes plain sampling, `alpha = 0` a head of the whole vocabulary. The draw is
    a function of (logits, seed, sequence, position) alone: it does not depend on the batch around the row.

    Args:
        good, bad: logits [B, V'] and [B, V''], float16, bfloat16 or float32, not necessarily alike; `bad=None` where
            there is no contrast. With the default `outside_head` BAD is read at the head's tokens only.
        rows: :class:`SamplingTensors`, from :func:`make_sampling_tensors`.
        vocab_size: entries that are tokens in both. Default: the narrower width.
        outside_head: `"mask"`: tokens outside the head are impossible. A number: their constant score, which leaks
            (the paper's program uses -20). `"shifted_good"`: their GOOD logit, shifted so that the best of them meets
            the worst score of the head.
        banned: int32 or int64 [B, N] token ids that cannot be drawn, -1 where there are fewer; or None.
        logprobs: also give log-probabilities of the drawn token, at the price of reading all of both logits again.
    Returns:
        :class:`Samples`.
    Raises:
        ValueError: as for :func:`head`; also NaN among the entries of BAD that were read.
    """
    good = _check_logits("good", good)
    bad = bad if bad is None else _check_logits("bad", bad, good.shape[0])
    vocab_size = _check_vocabulary(vocab_size, good, *(() if bad is None else (bad,)))
    _check_sampling(sampling, good.shape[0])
    banned = _check_banned(banned, good.shape[0])
    outside, value = _outside(outside_head)
    token, out = torch.ops.cdgen.contrastive_sample.default(
        good, bad, *sampling, banned, vocab_size, outside, value, logprobs
    )
    _raise_on_fault(token)
    return Samples(token, *out.unbind(0)) if logprobs else Samples(token)


def sample_candidates(candidates, bad, sampling, *, gathered=False, vocab_size=None, logprobs=False):
    """Draw one token a row from :func:`head`'s candidates and BAD's logits.

    Args:
        candidates: :class:`Candidates`, bans applied.
        bad: BAD's logits [B, V''], read at the candidates only; where `gathered`, those of the candidates alone, slot
            by slot, [B, C], as :func:`gather_logits` makes them; or None.
        rows: :class:`SamplingTensors`; its margin has done its work in :func:`head`.
        vocab_size: bound of the token ids. Default: the width of `bad`, where that is V''.
        logprobs: also give the log-probability of the token under the distribution it was drawn from.
    Returns:
        :class:`Samples` with `token` and, where asked for, `logprob`.
    Raises:
        ValueError: wrong shapes; on the CPU also, by number, a row whose head is longer than its list.
    """
    batch = candidates.token.shape[0]
    _check_sampling(sampling, batch)
    bad = bad if bad is None else _check_logits("bad", bad, batch)
    if bad is None or gathered:
        if vocab_size is None:
            raise ValueError("vocab_size: give it where there are no logits of BAD over the vocabulary")
        if gathered and (bad is None or bad.shape != candidates.token.shape):
            got = None if bad is None else tuple(bad.shape)
            raise ValueError(f"bad: gathered logits are {tuple(candidates.token.shape)}, as the candidates; got {got}")
    else:
        vocab_size = _check_vocabulary(vocab_size, bad)
    token, logprob = torch.ops.cdgen.sample_candidates.default(
        *candidates, bad, *sampling, vocab_size, gathered, logprobs
    )
    _raise_on_fault(token)
    return Samples(token, logprob if logprobs else None)


def _check_layer(hidden, weight):
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        got = f"{hidden.dtype} {tuple(hidden.shape)} and {weight.dtype} {tuple(weight.shape)}"
        raise ValueError(f"hidden, weight: expected [B, D] and [V, D] of one dtype, got {got}")


def select_candidates_linear(hidden, weight, sampling, *, vocab_size=None, banned=None, capacity=1024):
    """:func:`head` of the logits `hidden @ weight.T`, which on a GPU are never stored.

    Args:
        hidden: GOOD's last hidden states [B, D], float16, bfloat16 or float32.
        weight: its output layer [V', D], of the same dtype, rows contiguous.
        rows, vocab_size, banned, capacity: as for :func:`head`; a capacity of V' holds any head.
    Returns:
        :class:`Candidates`; logits are summed in float32, not rounded to the dtype of the states.
    Raises:
        ValueError: as for :func:`head`.
    """
    _check_layer(hidden, weight)
    if capacity < 1:
        raise ValueError(f"capacity = {capacity}: must be at least 1")
    _check_sampling(sampling, hidden.shape[0])
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= weight.shape[0]:
        raise ValueError(f"vocab_size = {vocab_size}: must be 1 to {weight.shape[0]}, the rows of the output layer")
    banned = _check_banned(banned, hidden.shape[0])
    found = torch.ops.cdgen.select_candidates_linear.default(
        hidden, weight, sampling.margin, banned, vocab_size, capacity
    )
    candidates = Candidates(*found)
    _raise_on_fault(candidates.count)
    return candidates


def gather_logits(hidden, weight, candidates):
    """BAD's logits of GOOD's candidates alone, so that BAD needs no output layer.

    Args:
        hidden: BAD's last hidden states [B, D]. weight: its output layer [V, D], of the same dtype.
        candidates: :class:`Candidates` [B, C].
    Returns:
        float32 [B, C], -inf past the end of each list: `bad` of :func:`sample_candidates` with `gathered=True`.
    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _check_layer(hidden, weight)
    if candidates.token.shape[0] != hidden.shape[0]:
        raise ValueError(f"candidates: {candidates.token.shape[0]} rows, but there are {hidden.shape[0]} of hidden")
    return torch.ops.cdgen.gather_logits.default(hidden, weight, candidates.token, candidates.count)
