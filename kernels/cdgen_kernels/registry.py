"""Registers the ops with torch and decides, in this one place, which implementation runs.

Each op is `torch.ops.cdgen.*`, with a fake. An implementation is a module that has a function of the op's own name:
`reference`, the `triton_*` modules, and for CPU tensors the C++ extension, which registers itself.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from cdgen_kernels.sampling_tensors import Candidates, SamplingTensors

log = logging.getLogger("cdgen")


def implementation(device_type):
    """(name, reason): which implementation runs for tensors of a device type, `"cpu"` or `"cuda"`, and why."""
    return _DECISIONS[device_type]


_ROWS = (
    "Tensor margin, Tensor good_weight, Tensor contrast_strength, Tensor temperature, Tensor top_p, "
    "Tensor top_k, Tensor seed, Tensor sequence, Tensor position"
)
SCHEMAS = {
    "select_candidates": "(Tensor good, Tensor margin, Tensor? banned, int vocab_size, int capacity)"
    " -> (Tensor token, Tensor logit, Tensor count, Tensor max)",
    "contrastive_sample": f"(Tensor good, Tensor? bad, {_ROWS}, Tensor? banned, "
    "int vocab_size, int outside, float value, bool logprobs)"
    " -> (Tensor token, Tensor logprobs)",
    "sample_candidates": f"(Tensor token, Tensor logit, Tensor count, Tensor max, Tensor? bad, {_ROWS}, "
    "int vocab_size, bool gathered, bool logprobs)"
    " -> (Tensor token, Tensor logprob)",
    "select_candidates_linear": "(Tensor hidden, Tensor weight, Tensor margin, Tensor? banned, int vocab_size, "
    "int capacity) -> (Tensor token, Tensor logit, Tensor count, Tensor max)",
    "gather_logits": "(Tensor hidden, Tensor weight, Tensor token, Tensor count) -> Tensor",
    "add_rms_norm": "(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor normed, Tensor total)",
    "rope_and_store": "(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor position, Tensor slot_mapping, "
    "Tensor(a!) keys, Tensor(b!) values) -> Tensor",
    "paged_attention": "(Tensor q, Tensor keys, Tensor values, Tensor page_table, Tensor cache_row, Tensor position, "
    "float scale, int window, float dropout, Tensor seed, Tensor sequence, int layer) -> Tensor",
}
_LAYER_OPS = ("add_rms_norm", "rope_and_store", "paged_attention")


_HOMES = {  # where an implementation of an op, by the op's own name, is found
    "reference": dict.fromkeys(SCHEMAS, "reference"),
    "triton": {
        "select_candidates": "triton.candidates",
        "contrastive_sample": "triton.sample",
        "sample_candidates": "triton.candidates",
        "select_candidates_linear": "triton.linear",
        "gather_logits": "triton.linear",
        "add_rms_norm": "triton.layers",
        "rope_and_store": "triton.layers",
        "paged_attention": "triton.attention",
    },
}


def _implementation(home, name):
    def call(*arguments):  # imports at the first call, which for Triton takes a second
        function = getattr(importlib.import_module(f"cdgen_kernels.{home}"), name)
        return _CONVENTIONS[name](function, *arguments)

    return call


def on_device_of_first(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `call` so that the device of its first argument is current: Triton launches on the current device."""

    @functools.wraps(call)
    def guarded(*arguments: Any) -> Any:
        with torch.cuda.device_of(arguments[0]):
            return call(*arguments)

    return guarded


def _call_head(function, *arguments):
    return tuple(function(*arguments))


def _call_sample(function, good, bad, *rest):
    token, *logprobs = function(good, bad, SamplingTensors(*rest[:9]), *rest[9:])
    return token, torch.stack(logprobs) if rest[-1] else good.new_empty((3, 0), dtype=torch.float32)


def _call_sample_candidates(function, token, logit, count, maximum, bad, *rest):
    drawn = function(Candidates(token, logit, count, maximum), bad, SamplingTensors(*rest[:9]), *rest[9:])
    return drawn.token, drawn.logprob if rest[-1] else logit.new_empty(0)


def _call_as_is(function, *arguments):
    return function(*arguments)


def _call_add_rms_norm(function, x, residual, weight, eps):
    normed, total = function(x, residual, weight, eps)
    return normed, x.new_empty(0) if residual is None else total  # an op may not return what it was given


_CONVENTIONS = {  # from an op's tensors to the arguments of its function, and back
    "select_candidates": _call_head,
    "contrastive_sample": _call_sample,
    "sample_candidates": _call_sample_candidates,
    "select_candidates_linear": _call_head,
    "gather_logits": _call_as_is,
    "add_rms_norm": _call_add_rms_norm,
    "rope_and_store": _call_as_is,
    "paged_attention": _call_as_is,
}


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


def _fake_sample_candidates(token, *rest):
    batch = token.shape[0]
    logprob = token.new_empty(batch if rest[-1] else 0, dtype=torch.float32)
    return token.new_empty(batch, dtype=torch.int64), logprob


def _fake_select_candidates_linear(hidden, weight, margin, banned, vocab_size, capacity):
    return _fake_head(hidden, margin, banned, vocab_size, capacity)


def _fake_gather_logits(hidden, weight, token, count):
    return hidden.new_empty(token.shape, dtype=torch.float32)


def _fake_add_rms_norm(x, residual, weight, eps):
    return torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x)


def _fake_queries(q, *rest):
    return q.new_empty(q.shape)


_FAKES = {
    "select_candidates": _fake_head,
    "contrastive_sample": _fake_sample,
    "sample_candidates": _fake_sample_candidates,
    "select_candidates_linear": _fake_select_candidates_linear,
    "gather_logits": _fake_gather_logits,
    "add_rms_norm": _fake_add_rms_norm,
    "rope_and_store": _fake_queries,
    "paged_attention": _fake_queries,
}
_CPP = ("select_candidates", "contrastive_sample", "sample_candidates", "gather_logits", *_LAYER_OPS)


def _load_extension():
    """(whether the C++ kernels are loaded, one line that says why); loading registers them for CPU tensors."""
    if importlib.util.find_spec("cdgen_kernels._C") is None:
        return False, "the C++ extension is not built: `pip install --no-build-isolation` with a C++ compiler builds it"
    try:
        importlib.import_module("cdgen_kernels._C")
    except (ImportError, OSError) as error:
        return False, f"the C++ extension does not load: {error}"
    return True, "the C++ extension is loaded"


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
    cuda = ("triton", "Triton is installed")
    if importlib.util.find_spec("triton") is None:
        if wanted == "triton":
            raise ValueError("CDGEN_IMPL=triton: Triton is not installed")
        cuda = ("reference", "Triton is not installed")
    return {"cpu": ("cpp" if loaded else "reference", reason), "cuda": cuda}


def _select_candidates_linear_of_cpp(hidden, weight, margin, banned, vocab_size, capacity):
    """A matrix product, which MKL does, and the C++ head of what it gives."""
    logits = hidden.float() @ weight[:vocab_size].float().T
    return torch.ops.cdgen.select_candidates.default(logits, margin, banned, vocab_size, capacity)


def _kernel(name: str, device_type: str) -> Callable[..., Any] | None:
    """Return the function that runs an op on a device type; None if the C++ extension has registered it."""
    chosen, _ = _DECISIONS[device_type]
    if chosen == "cpp":
        if name in _CPP:
            return None
        if name == "select_candidates_linear":
            return _select_candidates_linear_of_cpp
    call = _implementation(_HOMES.get(chosen, {}).get(name) or _HOMES["reference"][name], name)
    return on_device_of_first(call) if device_type == "cuda" else call


def _register():
    for name, schema in SCHEMAS.items():
        torch.library.define(f"cdgen::{name}", schema)
        torch.library.register_fake(f"cdgen::{name}")(_FAKES[name])
        for device_type in _DECISIONS:
            if kernel := _kernel(name, device_type):
                torch.library.impl(f"cdgen::{name}", device_type.upper())(kernel)


_DECISIONS = _decide()
_register()
for _device_type, (_name, _reason) in _DECISIONS.items():
    log.info("%s tensors: %s implementation (%s)", _device_type, _name, _reason)
