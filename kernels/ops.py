"""The public ops: checks, registration with torch, and the one place that decides which implementation runs.

    rows = make_rows(batch, alpha=0.1, contrast_strength=1.0, seed=0)
    token = sample(good_logits, bad_logits, rows).token          # [B]

Each op is registered as `torch.ops.cdgen.*` with a fake, traces under `torch.compile(fullgraph=True)`, and never waits
for a device. `CDGEN_IMPL=reference|cpp|triton`, read at import, overrides the choice of implementation.
"""

import importlib
import importlib.util
import logging
import os

import torch

from cdgen_kernels import reference
from cdgen_kernels.reference import CONSTANT, FAULTS, MASK, SHIFTED_GOOD
from cdgen_kernels.rows import HeadCandidates, Rows, Samples, make_rows

__all__ = ["HeadCandidates", "Rows", "Samples", "contrast_sample", "head", "implementation", "make_rows", "sample"]

log = logging.getLogger("cdgen")


def implementation(device_type):
    """(name, reason): which implementation runs for tensors of a device type, `"cpu"` or `"cuda"`, and why."""
    return _DECISIONS[device_type]


def _raise_on_fault(codes):
    """On the CPU, where looking costs nothing; not while tracing, where there is nothing to see."""
    if torch.compiler.is_compiling() or type(codes) is not torch.Tensor or codes.device.type != "cpu":
        return
    codes = codes.tolist()  # a fraction of what a torch op takes
    if min(codes, default=0) < 0:
        row, code = next((row, code) for row, code in enumerate(codes) if code < 0)
        raise ValueError(f"row {row}: {FAULTS[code]}")


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
    if rows.margin.shape[0] != batch:
        raise ValueError(f"rows: made for {rows.margin.shape[0]}, but there are {batch} rows of logits")


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
    _check_rows(rows, good.shape[0])
    vocab_size = _check_vocabulary(vocab_size, good)
    banned = _check_banned(banned, good.shape[0])
    candidates = HeadCandidates(*torch.ops.cdgen.head.default(good, rows.margin, banned, vocab_size, capacity))
    _raise_on_fault(candidates.count)
    return candidates


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
    _check_rows(rows, good.shape[0])
    banned = _check_banned(banned, good.shape[0])
    outside, value = _outside(outside_head)
    token, out = torch.ops.cdgen.sample.default(good, bad, *rows, banned, vocab_size, outside, value, logprobs)
    _raise_on_fault(token)
    return Samples(token, *out.unbind(0)) if logprobs else Samples(token)


def contrast_sample(candidates, bad, rows, *, vocab_size=None, logprobs=False):
    """Draw one token a row from :func:`head`'s candidates and BAD's logits.

    Args:
        candidates: :class:`HeadCandidates`, bans applied. bad: logits [B, V''], read at the candidates only; or None.
        rows: :class:`Rows`; its margin has done its work in :func:`head`.
        vocab_size: bound of the token ids; default the width of `bad`, which must then be given.
        logprobs: also give the log-probability of the token under the distribution it was drawn from.
    Returns:
        :class:`Samples` with `token` and, where asked for, `logprob`.
    Raises:
        ValueError: wrong shapes; on the CPU also, by number, a row whose head is longer than its list.
    """
    batch = candidates.token.shape[0]
    _check_rows(rows, batch)
    bad = bad if bad is None else _check_logits("bad", bad, batch)
    if bad is None and vocab_size is None:
        raise ValueError("vocab_size: give it where there are no logits of BAD")
    vocab_size = vocab_size if bad is None else _check_vocabulary(vocab_size, bad)
    token, logprob = torch.ops.cdgen.contrast_sample.default(*candidates, bad, *rows, vocab_size, logprobs)
    _raise_on_fault(token)
    return Samples(token, logprob if logprobs else None)


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
    " -> (Tensor token, Tensor logprobs)",
    "contrast_sample": f"(Tensor token, Tensor logit, Tensor count, Tensor max, Tensor? bad, {_ROWS}, "
    "int vocab_size, bool logprobs)"
    " -> (Tensor token, Tensor logprob)",
}


def _reference_head(good, margin, *rest):
    return tuple(reference.head(good, margin, *rest))


def _reference_sample(good, bad, *rest):
    token, *logprobs = reference.sample(good, bad, Rows(*rest[:9]), *rest[9:])
    return token, torch.stack(logprobs) if rest[-1] else good.new_empty((3, 0), dtype=torch.float32)


def _reference_contrast_sample(token, logit, count, maximum, bad, *rest):
    candidates = HeadCandidates(token, logit, count, maximum)
    drawn = reference.contrast_sample(candidates, bad, Rows(*rest[:9]), *rest[9:])
    return drawn.token, drawn.logprob if rest[-1] else logit.new_empty(0)


def _fake_head(good, margin, banned, vocab_size, capacity):
    batch = good.shape[0]
    return (
        good.new_empty((batch, capacity), dtype=torch.int32),
        good.new_empty((batch, capacity), dtype=torch.float32),
        good.new_empty(batch, dtype=torch.int32),
        good.new_empty(batch, dtype=torch.float32),
    )


def _fake_sample(good, *rest):
    batch = good.shape[0]
    logprobs = good.new_empty((3, batch if rest[-1] else 0), dtype=torch.float32)
    return good.new_empty(batch, dtype=torch.int64), logprobs


def _fake_contrast_sample(token, *rest):
    batch = token.shape[0]
    logprob = token.new_empty(batch if rest[-1] else 0, dtype=torch.float32)
    return token.new_empty(batch, dtype=torch.int64), logprob


def _load_extension():
    """(whether the C++ kernels are loaded, one line that says why); loading registers them for CPU tensors."""
    if importlib.util.find_spec("cdgen_kernels._C") is None:
        return False, "the C++ extension is not built: `pip install --no-build-isolation` with a C++ compiler builds it"
    try:
        importlib.import_module("cdgen_kernels._C")
    except (ImportError, OSError) as error:
        return False, f"the C++ extension does not load: {error}"
    return True, "the C++ extension is loaded"


def _triton_sample(good, bad, *rest):
    from cdgen_kernels import triton_sample  # the first call pays for importing Triton

    token, *logprobs = triton_sample.sample(good, bad, Rows(*rest[:9]), *rest[9:])
    return token, torch.stack(logprobs) if rest[-1] else good.new_empty((3, 0), dtype=torch.float32)


def _decide():
    """{device type: (implementation, reason)}"""
    wanted = os.environ.get("CDGEN_IMPL")
    if wanted not in (None, "reference", "cpp", "triton"):
        raise ValueError(f"CDGEN_IMPL={wanted}: no such implementation; use reference, cpp or triton, or unset it")
    if wanted == "reference":
        return dict.fromkeys(("cpu", "cuda"), ("reference", "CDGEN_IMPL is set"))
    loaded, reason = _load_extension()
    if wanted == "cpp" and not loaded:
        raise ValueError(f"CDGEN_IMPL=cpp: {reason}")
    cuda = ("triton", "Triton is installed; sample() is its kernel, head() and contrast_sample() are plain PyTorch")
    if importlib.util.find_spec("triton") is None:
        if wanted == "triton":
            raise ValueError("CDGEN_IMPL=triton: Triton is not installed")
        cuda = ("reference", "Triton is not installed")
    return {"cpu": ("cpp" if loaded else "reference", reason), "cuda": cuda}


def _register():
    for name, plain, fake in (
        ("head", _reference_head, _fake_head),
        ("sample", _reference_sample, _fake_sample),
        ("contrast_sample", _reference_contrast_sample, _fake_contrast_sample),
    ):
        torch.library.define(f"cdgen::{name}", _SCHEMAS[name])
        torch.library.register_fake(f"cdgen::{name}")(fake)
        for device_type, (chosen, _) in _DECISIONS.items():
            if chosen == "triton" and name == "sample":
                torch.library.impl("cdgen::sample", "CUDA")(_triton_sample)
            elif chosen != "cpp":  # the C++ kernels have registered themselves
                torch.library.impl(f"cdgen::{name}", device_type.upper())(plain)


_DECISIONS = _decide()
_register()
for _device_type, (_name, _reason) in _DECISIONS.items():
    log.info("%s tensors: %s implementation (%s)", _device_type, _name, _reason)
