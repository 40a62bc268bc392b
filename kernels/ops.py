"""The public ops: checks, registration with torch, and the one place that decides which implementation runs.

    rows = make_rows(batch, alpha=0.1, contrast_strength=1.0, seed=0)
    token = sample(good_logits, bad_logits, rows).token          # [B]

Each op is registered as `torch.ops.cdgen.*` with a fake, traces under `torch.compile(fullgraph=True)`, and never waits
for the device. `CDGEN_IMPL=reference|cpp` overrides the choice of implementation.
"""

import functools
import logging
import os

import torch

from cdgen_kernels import cpp, reference
from cdgen_kernels.reference import CONSTANT, FAULTS, MASK, SHIFTED_GOOD
from cdgen_kernels.rows import HeadCandidates, Rows, Samples, make_rows

__all__ = ["HeadCandidates", "Rows", "Samples", "contrast_sample", "head", "implementation", "make_rows", "sample"]

log = logging.getLogger("cdgen")

_IMPLEMENTATIONS = {"reference": reference, "cpp": cpp}  # modules with the same functions


@functools.cache
def implementation(device_type):
    """(name, reason): the implementation that runs for tensors of a device type, and why; logged once for each.

    Raises:
        ValueError: `CDGEN_IMPL` names none, or one that cannot run here.
    """
    wanted = os.environ.get("CDGEN_IMPL")
    built, reason = cpp.available()
    if wanted is not None:
        if wanted not in _IMPLEMENTATIONS:
            raise ValueError(f"CDGEN_IMPL={wanted}: no such implementation; use {' or '.join(_IMPLEMENTATIONS)}")
        if wanted == "cpp" and not (built and device_type == "cpu"):
            raise ValueError(f"CDGEN_IMPL=cpp cannot run on {device_type}: {'C++ is for the CPU' if built else reason}")
        name, reason = wanted, "CDGEN_IMPL is set"
    elif device_type == "cpu":
        name = "cpp" if built else "reference"
    else:
        name, reason = "reference", f"there is no kernel for {device_type} yet"
    log.info("%s tensors: %s implementation (%s)", device_type, name, reason)
    return name, reason


def _running(tensor):
    return _IMPLEMENTATIONS[implementation(tensor.device.type)[0]]


def _raise_on_fault(codes):
    if codes.device.type == "cpu" and codes.numel() and int(codes.min()) < 0:
        row = int((codes < 0).nonzero()[0])
        raise ValueError(f"row {row}: {FAULTS[int(codes[row])]}")


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


def _check_rows(rows, batch):
    for name, tensor in zip(Rows._fields, rows, strict=True):
        if tensor.shape != (batch,):
            raise ValueError(f"{name}: {tensor.shape[0]} values for {batch} rows of logits")
    return rows


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


def head(good, rows, *, vocab_size=None, banned=None, capacity=1024):
    """Compact each row's alpha-head, `z_GOOD >= max z_GOOD - margin`, into a short list in one pass over the logits.

    Args:
        good: GOOD's logits [B, V'], float16, bfloat16 or float32, any row stride.
        rows: :class:`Rows`, of which `margin` counts here.
        vocab_size: entries that are tokens; the padding behind them is not read. Default: V'.
        banned: int32 or int64 [B, N] token ids that cannot be drawn, -1 where there are fewer; or None.
        capacity: length C of the list. A longer head is told by its `count`, and its list holds the C lowest ids.
    Returns:
        :class:`HeadCandidates`.
    Raises:
        ValueError: wrong shapes; on the CPU also a row of NaN or of nothing but -inf, by number. On other devices
            such a row has `count` < 0, so that nothing waits for the device.
    """
    good = _check_logits("good", good)
    if capacity < 1:
        raise ValueError(f"capacity = {capacity}: must be at least 1")
    margin = _check_rows(rows, good.shape[0]).margin
    vocab_size = _check_vocabulary(vocab_size, good)
    return HeadCandidates(*torch.ops.cdgen.head(good, margin, _check_banned(banned, len(good)), vocab_size, capacity))


def sample(good, bad, rows, *, vocab_size=None, outside_head="mask", banned=None, logprobs=False):
    """Draw one token a row by contrastive decoding: head, contrast, top-k, top-p and Gumbel noise in one op.

    `contrast_strength = 0` in all rows makes plain sampling, `alpha = 0` a head of the whole vocabulary. The draw is
    a function of (logits, seed, sequence, position) alone: it does not depend on the batch around the row.

    Args:
        good, bad: logits [B, V'] and [B, V''], float16, bfloat16 or float32, not necessarily alike; `bad=None` where
            there is no contrast. With the default `outside_head` BAD is read at the head's tokens only.
        rows: :class:`Rows`, from :func:`make_rows`.
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
    rest = (_check_banned(banned, len(good)), vocab_size, *_outside(outside_head), logprobs)
    return Samples(*torch.ops.cdgen.sample(good, bad, *_check_rows(rows, len(good)), *rest))


def contrast_sample(candidates, bad, rows, *, vocab_size=None, logprobs=False):
    """Draw one token a row from :func:`head`'s candidates and BAD's logits.

    Args:
        candidates: :class:`HeadCandidates`, bans applied. bad: logits [B, V''], read at the candidates only; or None.
        rows: :class:`Rows`; its margin has done its work in :func:`head`.
        vocab_size: bound of the token ids; default the width of `bad`, which must then be given.
        logprobs: also give the log-probability of the token under the distribution it was drawn from.
    Returns:
        (token int64 [B], logprob float32 [B] or [0])
    Raises:
        ValueError: wrong shapes; on the CPU also, by number, a row whose head is longer than its list.
    """
    batch = candidates.token.shape[0]
    bad = bad if bad is None else _check_logits("bad", bad, batch)
    if bad is None and vocab_size is None:
        raise ValueError("vocab_size: give it where there are no logits of BAD")
    vocab_size = vocab_size if bad is None else _check_vocabulary(vocab_size, bad)
    return torch.ops.cdgen.contrast_sample(*candidates, bad, *_check_rows(rows, batch), vocab_size, logprobs)


# ------------------------------------------------------------------------------------------------ registration

_ROWS = (
    "Tensor margin, Tensor good_weight, Tensor contrast_strength, Tensor temperature, Tensor top_p, "
    "Tensor top_k, Tensor seed, Tensor sequence, Tensor position"
)
_SCHEMAS = {
    "head": "(Tensor good, Tensor margin, Tensor? banned, int vocab_size, int capacity)"
    " -> (Tensor token, Tensor logit, Tensor count, Tensor max)",
    "sample": f"(Tensor good, Tensor? bad, {_ROWS}, Tensor? banned, "
    "int vocab_size, int outside, float value, bool logprobs)"
    " -> (Tensor token, Tensor logprob, Tensor good_logprob, Tensor bad_logprob)",
    "contrast_sample": f"(Tensor token, Tensor logit, Tensor count, Tensor max, Tensor? bad, {_ROWS}, "
    "int vocab_size, bool logprobs)"
    " -> (Tensor token, Tensor logprob)",
}


def _head(good, margin, banned, vocab_size, capacity):
    candidates = _running(good).head(good, margin, banned, vocab_size, capacity)
    _raise_on_fault(candidates.count)
    return tuple(candidates)


def _sample(good, bad, *rest):
    drawn = _running(good).sample(good, bad, Rows(*rest[:9]), *rest[9:])
    _raise_on_fault(drawn.token)
    return tuple(drawn)


def _contrast_sample(token, logit, count, maximum, bad, *rest):
    candidates = HeadCandidates(token, logit, count, maximum)
    drawn, logprob = _running(token).contrast_sample(candidates, bad, Rows(*rest[:9]), *rest[9:])
    _raise_on_fault(drawn)
    return drawn, logprob


def _fake_head(good, margin, banned, vocab_size, capacity):
    batch = good.shape[0]
    return (
        good.new_empty((batch, capacity), dtype=torch.int32),
        good.new_empty((batch, capacity), dtype=torch.float32),
        good.new_empty(batch, dtype=torch.int32),
        good.new_empty(batch, dtype=torch.float32),
    )


def _fake_draw(like, logprobs, columns):
    size = like.shape[0] if logprobs else 0
    return (
        like.new_empty(like.shape[0], dtype=torch.int64),
        *(like.new_empty(size, dtype=torch.float32) for _ in range(columns)),
    )


for _name, _run, _fake in (
    ("head", _head, _fake_head),
    ("sample", _sample, lambda good, *rest: _fake_draw(good, rest[-1], 3)),
    ("contrast_sample", _contrast_sample, lambda token, *rest: _fake_draw(token, rest[-1], 1)),
):
    torch.library.define(f"cdgen::{_name}", _SCHEMAS[_name])
    torch.library.impl(f"cdgen::{_name}", ("CPU", "CUDA"))(_run)
    torch.library.register_fake(f"cdgen::{_name}")(_fake)
