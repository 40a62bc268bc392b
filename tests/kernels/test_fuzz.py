"""Wrong arguments of every op: an error of one line or a result, never memory that the arguments do not own.

A stray access may crash these tests or pass unnoticed; `make test-asan` runs them under AddressSanitizer, which reports
each one (docs/testing.md).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdgen_kernels import (
    Candidates,
    SamplingTensors,
    add_rms_norm,
    codes,
    contrastive_sample,
    gather_logits,
    linear_cross_entropy,
    make_sampling_tensors,
    paged_attention,
    rope_and_store,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
    silu_mul,
)
from tests.helpers.paged import make_paged

VOCAB, BATCH, WIDTH, CAPACITY = 70, 3, 8, 20
NAMES = tuple(f"sampling.{name}" for name in SamplingTensors._fields)
LISTS = tuple(f"candidates.{name}" for name in Candidates._fields)


class Call(NamedTuple):
    """One op with sound arguments by name; `raw` calls the registered op, `public` its checked function."""

    raw: Callable[..., Any]
    public: Callable[..., Any]
    arguments: dict[str, Any]


def take(arguments: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [arguments[name] for name in names]


def public(
    function: Callable[..., Any], first: tuple[str, ...], *, sampling: bool = False, lists: bool = False
) -> Callable[[dict[str, Any]], Any]:
    """Return a caller of a public op that takes positional arguments `first`, and the others by keyword."""

    def call(arguments: dict[str, Any]) -> Any:
        a = dict(arguments)
        if sampling:
            a["sampling"] = SamplingTensors(*(a.pop(name) for name in NAMES))
        if lists:
            a["candidates"] = Candidates(*(a.pop(name) for name in LISTS))
        positional = [a.pop(name) for name in first]
        return function(*positional, **a)

    return call


@functools.cache
def calls() -> dict[str, Call]:
    """Return sound arguments of every op, in the order in which the registered op takes them."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    good, bad, hidden, weight = random(BATCH, VOCAB), random(BATCH, VOCAB), random(BATCH, WIDTH), random(VOCAB, WIDTH)
    sampling = make_sampling_tensors(BATCH, alpha=0.3, top_k=[0, 4, 2], top_p=[1, 0.9, 1])
    rows = dict(zip(NAMES, sampling, strict=True))
    lists = dict(zip(LISTS, select_candidates(good, sampling, capacity=CAPACITY), strict=True))
    banned = torch.tensor([[1, -1], [2, 3], [-1, -1]])
    paged = make_paged([9, 20, 3], [(0, 8), (1, 3), (2, 2)], 4, 2, WIDTH, 4)._asdict()
    noise = {"seed": torch.tensor([1]), "sequence": torch.arange(BATCH)}
    at = torch.arange(BATCH)
    rope = {"q": random(BATCH, 4, WIDTH), "k": random(BATCH, 2, WIDTH), "v": random(BATCH, 2, WIDTH)}
    rope |= {"cos": random(5, WIDTH // 2), "sin": random(5, WIDTH // 2), "page_table": torch.tensor([[0], [2]]).int()}
    rope |= {"cache_row": torch.tensor([0, 1, 0]).int(), "position": at}
    rope |= {"keys": torch.zeros(4, 2, 4, WIDTH), "values": torch.zeros(4, 2, 4, WIDTH)}
    select = {"sampling.margin": sampling.margin, "banned": banned, "vocab_size": VOCAB, "capacity": CAPACITY}
    ops = torch.ops.cdgen
    loss = {"hidden": hidden, "weight": weight, "target": at, "ignore_index": -100, "chunk_rows": 2}

    def select_from(function: Callable[..., Any], first: tuple[str, ...]) -> Callable[[dict[str, Any]], Any]:
        call = public(function, (*first, "sampling"), sampling=True)
        return lambda arguments: call({**rows, **arguments})

    return {
        "select_candidates": Call(
            ops.select_candidates, select_from(select_candidates, ("good",)), {"good": good, **select}
        ),
        "select_candidates_linear": Call(
            ops.select_candidates_linear,
            select_from(select_candidates_linear, ("hidden", "weight")),
            {"hidden": hidden, "weight": weight, **select},
        ),
        "contrastive_sample": Call(
            lambda *a: ops.contrastive_sample(*a[:-2], codes.CONSTANT, *a[-2:]),
            public(contrastive_sample, ("good", "bad", "sampling"), sampling=True),
            {"good": good, "bad": bad, **rows, "banned": banned, "vocab_size": VOCAB}
            | {"outside_head": -2.0, "logprobs": True},
        ),
        "sample_candidates": Call(
            ops.sample_candidates,
            public(sample_candidates, ("candidates", "bad", "sampling"), sampling=True, lists=True),
            {**lists, "bad": bad, **rows, "vocab_size": VOCAB, "gathered": False, "logprobs": True},
        ),
        "gather_logits": Call(
            lambda hidden, weight, token, logit, count, best: ops.gather_logits(hidden, weight, token, count),
            public(gather_logits, ("hidden", "weight", "candidates"), lists=True),
            {"hidden": hidden, "weight": weight, **lists},
        ),
        "add_rms_norm": Call(
            ops.add_rms_norm,
            public(add_rms_norm, ("x", "residual", "weight", "eps")),
            {"x": hidden, "residual": hidden * 2, "weight": weight[0], "eps": 1e-5},
        ),
        "silu_mul": Call(ops.silu_mul, public(silu_mul, ("gate_up",)), {"gate_up": hidden}),
        "rope_and_store": Call(ops.rope_and_store, public(rope_and_store, ()), rope),
        "paged_attention": Call(
            ops.paged_attention,
            public(paged_attention, ()),
            {**paged, "scale": 0.5, "window": 0, "dropout": 0.3, **noise, "layer": 0, "prefill": False}
            | {"shared_lengths": torch.tensor([4, 4, 0]).int()},
        ),
        "softmax_gradient": Call(
            ops.softmax_gradient,
            lambda arguments: ops.softmax_gradient(*arguments.values()),  # it has no public function
            {"logits": good, "target": at, "ignore_index": -100, "gradient": True},
        ),
        "linear_cross_entropy": Call(
            lambda *a: ops.linear_cross_entropy(*a, True, True), public(linear_cross_entropy, ()), loss
        ),
    }


# What may happen to a tensor: one of its numbers, its dtype or its shape changes, or something else takes its place.
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    **{
        f"{place} = {value}": lambda x, place=place, value=value: with_number(x, place, value)
        for place in ("first", "last")
        for value in (torch.nan, torch.inf, -torch.inf, -1, 0, 3, VOCAB, 10**6, -(2**31), 2**62)
    },
    **{
        str(dtype): lambda x, dtype=dtype: x.to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool)
    },
    "no rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
    "a row less": lambda x: x[1:],
    "twice the rows": lambda x: torch.cat([x, x]),
    "no columns": lambda x: x[..., :0],
    "half the columns": lambda x: x[..., : x.shape[-1] // 2],
    "a dimension more": lambda x: x.unsqueeze(0),
    "a dimension less": lambda x: x.flatten(),
    "no dimension": lambda x: x.flatten()[0],
    "one row for all": lambda x: x[:1].expand(x.shape),
    "one column for all": lambda x: x[..., :1].expand(x.shape),
    "every second number": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed strides": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "another device": lambda x: x.to("meta"),
    "None": lambda x: None,
    "a number": lambda x: 1.5,
}
NUMBERS = [0, 1, -1, 7, VOCAB + 1, 2**62, -(2**63), 2**63, 0.5, torch.nan, None, "1"]  # replacements for a number


def with_number(x: Tensor, place: str, value: float) -> Tensor:
    """Return a copy with another first or last number, or with -7 if the dtype does not hold it."""
    x = x.clone()
    is_possible = x.is_floating_point() or (value == value and abs(value) <= torch.iinfo(x.dtype).max)
    x.view(-1)[0 if place == "first" else -1] = value if is_possible else -7
    return x


@st.composite
def wrong_calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the name of an op and what to change: up to three arguments, each with its change or new value."""
    name = draw(st.sampled_from(list(calls())))
    arguments = calls()[name].arguments
    keys = draw(st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=3, unique=True))
    choices = {Tensor: list(CHANGES), bool: [True, False]}
    return name, {key: draw(st.sampled_from(choices.get(type(arguments[key]), NUMBERS))) for key in keys}


def changed(name: str, changes: dict[str, Any]) -> Call:
    """Return the call with its changes."""
    call = calls()[name]
    arguments = {
        key: x.clone() if isinstance(x, Tensor) else x for key, x in call.arguments.items()
    }  # some are written
    new = {
        key: CHANGES[how](x) if isinstance(x := call.arguments[key], Tensor) else how for key, how in changes.items()
    }
    return call._replace(arguments={**arguments, **new})


fuzzed = settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@given(wrong_calls())
@fuzzed
def test_a_registered_op_raises_an_error_or_returns(wrong) -> None:
    """The registered ops have no checks but their implementation's. A crash would end this process."""
    name, arguments = wrong[0], changed(*wrong).arguments
    try:
        result = calls()[name].raw(*arguments.values())
    except Exception:  # torch raises many kinds
        return
    if any(isinstance(x, Tensor) and x.is_meta for x in arguments.values()):
        return  # the fake ran, and its results have no values
    if name in ("contrastive_sample", "sample_candidates"):
        assert ((result[0] >= min(codes.FAULTS)) & (result[0] < max(VOCAB, arguments["vocab_size"]))).all()


@given(wrong_calls())
@fuzzed
def test_a_public_op_raises_a_clear_error_or_returns(wrong) -> None:
    call = changed(*wrong)
    if wrong[0] == "softmax_gradient":  # it has no public function
        return
    try:
        call.public(call.arguments)
    except (ValueError, RuntimeError) as error:
        assert "\n" not in str(error), str(error)


@pytest.mark.parametrize("name", calls())
def test_the_fuzzed_arguments_are_sound_before_they_are_changed(name) -> None:
    call = calls()[name]
    raw, checked = call.raw(*call.arguments.values()), call.public(call.arguments)
    assert raw is not None and checked is not None
