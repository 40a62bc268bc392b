"""Arguments of the public ops: numbers are never truncated, and tensors are named in errors of one line."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdgen_kernels import (
    SamplingTensors,
    add_rms_norm,
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

HUGE = 10**400  # no float and no tensor holds it
NAN, INF = float("nan"), float("inf")


def assert_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


# ------------------------------------------------------------------------------------------- make_sampling_tensors

NOT_WHOLE = [
    0.5,
    2.0,
    NAN,
    INF,
    "1",
    b"1",
    None,
    True,
    Fraction(1, 2),
    {},
    {1, 2},
    [1, 0.5, 1],
    [[1, 2, 3]],
    np.ones(3),
]
NOT_WHOLE += [
    torch.ones(3),
    torch.tensor(True),
    np.array(["1", "2", "3"]),
    HUGE,
    -HUGE,
    torch.ones(3, dtype=torch.cfloat),
]


@pytest.mark.parametrize("name", ["top_k", "seed", "sequence", "position"])
@pytest.mark.parametrize("value", NOT_WHOLE, ids=lambda x: repr(x)[:20])
def test_per_row_integers_must_be_integers(name, value) -> None:
    if name == "sequence" and value is None:
        return  # the default
    assert_refused(lambda: make_sampling_tensors(3, **{name: value}), f"^{name}")


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), [2, 2], (2, np.int32(2))])
def test_anything_that_is_an_integer_is_accepted(value) -> None:
    for name in ("top_k", "seed", "sequence", "position"):
        assert getattr(make_sampling_tensors(2, **{name: value}), name).tolist() == [2, 2]
    assert make_sampling_tensors(2, seed=np.array([1, 2], dtype=np.int16)).seed.tolist() == [1, 2]
    assert make_sampling_tensors(2, seed=range(1, 3)).seed.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("top_k", 0, 2**31 - 1),
        ("seed", -(2**63), 2**63 - 1),
        ("sequence", -(2**63), 2**63 - 1),
        ("position", 0, 2**63 - 1),
    ],
)
def test_bounds_of_integers_are_those_of_their_tensors(name, lowest, highest) -> None:
    for value in (lowest, highest):
        assert getattr(make_sampling_tensors(2, **{name: value}), name).tolist() == [value] * 2
        assert getattr(make_sampling_tensors(2, **{name: [value, 1]}), name).tolist() == [value, 1]
    for value in (lowest - 1, highest + 1, 2**64, -(2**70), [1, highest + 1], [lowest - 1, 1]):
        assert_refused(
            lambda value=value: make_sampling_tensors(2, **{name: value}), f"{name} = .* a whole number from"
        )
    for value in (10**5000, [1, -(10**5000)], Fraction(10**5000)):  # Python refuses to print these
        assert_refused(lambda value=value: make_sampling_tensors(2, **{name: value}), f"{name} = an? .* must be")
    if name != "top_k":
        assert_refused(lambda: make_sampling_tensors(2, **{name: np.uint64(2**63)}), name)
    else:
        assert_refused(lambda: make_sampling_tensors(2, top_k=torch.tensor([1, 2**32 + 5])), "top_k = 4294967301: must")


NOT_REAL = [
    "0.5",
    b"x",
    None,
    True,
    HUGE,
    NAN,
    INF,
    -INF,
    1e300,
    {},
    [0.5, "x"],
    [[0.5, 0.5]],
    0.5j,
    torch.tensor(True),
]


@pytest.mark.parametrize("name", ["alpha", "good_weight", "contrast_strength", "temperature", "top_p"])
@pytest.mark.parametrize("value", NOT_REAL, ids=lambda x: repr(x)[:20])
def test_per_row_reals_must_be_finite_numbers_of_float32(name, value) -> None:
    assert_refused(lambda: make_sampling_tensors(2, **{name: value}), f"^{name}")


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2), [0.5, 0.5]]
)
def test_anything_that_is_a_real_number_is_accepted(value) -> None:
    for name in ("good_weight", "contrast_strength", "temperature", "top_p"):
        column = getattr(make_sampling_tensors(2, **{name: value}), name)
        torch.testing.assert_close(column, torch.full((2,), 0.5))
    assert make_sampling_tensors(2, alpha=value).margin.tolist() == make_sampling_tensors(2, alpha=0.5).margin.tolist()
    assert make_sampling_tensors(2, good_weight=np.array([1, 2])).good_weight.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["good_weight", "contrast_strength", "top_p"])
def test_numbers_that_float32_turns_into_0_are_refused(name) -> None:
    for value in (1e-50, 1e-39, [0.5, 1e-50], torch.tensor(1e-50, dtype=torch.float64)):
        assert_refused(lambda value=value: make_sampling_tensors(2, **{name: value}), f"{name} = 1e-.* float32 holds")
    assert getattr(make_sampling_tensors(2, **{name: 1e-37}), name)[0] > 0


def test_a_tiny_alpha_keeps_its_margin() -> None:
    """Only the logarithm of alpha is stored."""
    margin = make_sampling_tensors(1, alpha=1e-300).margin
    torch.testing.assert_close(margin, torch.tensor([690.7755]))


@pytest.mark.parametrize("batch", [2.5, True, "2", -1, None, HUGE, 2**31])
def test_the_batch_is_an_integer(batch) -> None:
    assert_refused(lambda: make_sampling_tensors(batch), "batch = ")


# ------------------------------------------------------------------------------------------------ numbers of the ops


def integers() -> dict[str, Callable[[Any], Any]]:
    """Return one call for each whole-number argument of each op, by "op.argument"."""
    good, bad, hidden, weight = torch.randn(2, 30), torch.randn(2, 30), torch.randn(2, 4), torch.randn(30, 4)
    s = make_sampling_tensors(2)
    lists = select_candidates(good, s)
    paged = make_paged([9], [(0, 8)], 4, 2, 8)
    target = torch.zeros(2, dtype=torch.int64)
    return {
        "select_candidates.vocab_size": lambda n: select_candidates(good, s, vocab_size=n),
        "select_candidates.capacity": lambda n: select_candidates(good, s, capacity=n),
        "select_candidates_linear.vocab_size": lambda n: select_candidates_linear(hidden, weight, s, vocab_size=n),
        "select_candidates_linear.capacity": lambda n: select_candidates_linear(hidden, weight, s, capacity=n),
        "contrastive_sample.vocab_size": lambda n: contrastive_sample(good, bad, s, vocab_size=n),
        "sample_candidates.vocab_size": lambda n: sample_candidates(lists, bad, s, vocab_size=n),
        "sample_candidates (no BAD).vocab_size": lambda n: sample_candidates(lists, None, s, vocab_size=n),
        "paged_attention.window": lambda n: paged_attention(*paged, scale=1.0, window=n),
        "paged_attention.layer": lambda n: paged_attention(*paged, scale=1.0, layer=n),
        "linear_cross_entropy.ignore_index": lambda n: linear_cross_entropy(hidden, weight, target, ignore_index=n),
        "linear_cross_entropy.chunk_rows": lambda n: linear_cross_entropy(hidden, weight, target, chunk_rows=n),
    }


@pytest.mark.parametrize("name", integers())
def test_integers_of_the_ops(name) -> None:
    call, argument = integers()[name], name.split(".")[1]
    wrong = [1.5, 2.0, NAN, "2", True, [2], HUGE, -HUGE] + [-1] * (argument != "ignore_index")
    for value in (*wrong, torch.tensor(2.0), np.float32(2)):
        assert_refused(lambda value=value: call(value), f"{argument} = ")
    for value in (30, np.int64(30), torch.tensor(30)):
        call(value)


@pytest.mark.parametrize("value", ["tail", None, True, [1.0], NAN, INF, 1e39, -1e39, HUGE])
def test_outside_head_is_a_mode_or_a_number_of_float32(value) -> None:
    good, sampling = torch.randn(2, 1000), make_sampling_tensors(2, top_k=700)
    assert_refused(lambda: contrastive_sample(good, None, sampling, outside_head=value), "outside_head = ")


def test_numbers_that_outside_head_accepts() -> None:
    good, bad, sampling = torch.randn(2, 1000), torch.randn(2, 1000), make_sampling_tensors(2, seed=3, alpha=0.9)
    for one, other in [(-2, np.float32(-2)), (-2, torch.tensor(-2.0)), (-INF, "mask")]:
        tokens = [contrastive_sample(good, bad, sampling, outside_head=x).token for x in (one, other)]
        assert tokens[0].equal(tokens[1])


def test_reals_of_the_layer_ops() -> None:
    paged, x = make_paged([9], [(0, 8)], 4, 2, 8), torch.randn(2, 8)
    for value in ("0.5", None, HUGE, True):
        assert_refused(lambda value=value: paged_attention(*paged, scale=value), "scale = ")
        assert_refused(lambda value=value: paged_attention(*paged, scale=1.0, dropout=value), "dropout = ")
        assert_refused(lambda value=value: add_rms_norm(x, None, x[0], value), "eps = ")
    assert_refused(lambda: paged_attention(*paged, scale=1.0, dropout=NAN), "dropout = nan: must be at least 0")


# ------------------------------------------------------------------------------------------------ tensors of the ops

WRONG_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "dtype": lambda x: x.to(torch.float64 if x.is_floating_point() else torch.int16),
    "shape": lambda x: x[:-1],
    "dimensions": lambda x: x.unsqueeze(0),
    "stride": lambda x: torch.stack([x, x], -1)[..., 0],
    "device": lambda x: x.to("meta"),
    "type": lambda x: x.tolist(),
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
@pytest.mark.parametrize("field", SamplingTensors._fields)
def test_fields_of_sampling_tensors(field, wrong) -> None:
    good, sampling = torch.randn(3, 30), make_sampling_tensors(3)
    lists = select_candidates(good, sampling)
    edited = sampling._replace(**{field: WRONG_TENSORS[wrong](getattr(sampling, field))})
    message = "sampling: has batch size 2" if wrong == "shape" else f"sampling.{field}: expected contiguous"
    for call in (
        lambda: contrastive_sample(good, None, edited),
        lambda: select_candidates(good, edited),
        lambda: sample_candidates(lists, good, edited),
    ):
        assert_refused(call, message)


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
@pytest.mark.parametrize("field", ["token", "logit", "count", "max"])
def test_fields_of_candidates(field, wrong) -> None:
    hidden, weight, sampling = torch.randn(3, 4), torch.randn(30, 4), make_sampling_tensors(3)
    lists = select_candidates_linear(hidden, weight, sampling, capacity=9)
    edited = lists._replace(**{field: WRONG_TENSORS[wrong](getattr(lists, field))})
    for call in (
        lambda: sample_candidates(edited, torch.randn(3, 30), sampling),
        lambda: gather_logits(hidden, weight, edited),
    ):
        assert_refused(call, "candidates|sampling")


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_tensors_of_the_layer_ops(wrong) -> None:
    """Strided queries and hidden states are copied; caches and indices must be contiguous."""
    change = WRONG_TENSORS[wrong]
    paged = make_paged([9, 20], [(0, 8), (1, 3)], 4, 2, 8)
    copied = {"q", "page_table"} if wrong == "stride" else {"page_table"} if wrong == "shape" else set()
    for field in set(paged._fields) - copied:
        edited = paged._replace(**{field: change(getattr(paged, field))})
        assert_refused(lambda edited=edited: paged_attention(*edited, scale=1.0), "expected|device|contiguous")
    lengths = change(torch.zeros(2, dtype=torch.int32))
    assert_refused(
        lambda: paged_attention(*paged, scale=1.0, shared_lengths=lengths), "shared_lengths: expected .*int32 .2,. on"
    )
    for edited in ([[1.0, 2.0]], torch.zeros(2, 3), torch.zeros(2, 0), torch.zeros(4), torch.zeros(2, 4).double()):
        assert_refused(lambda edited=edited: silu_mul(edited), "gate_up: expected")
    at = torch.tensor([0, 1])
    names = ("q", "k", "v", "cos", "sin", "page_table", "cache_row", "position", "keys", "values")
    q, k, angles, store = torch.randn(2, 4, 8), torch.randn(2, 2, 8), torch.randn(5, 4), torch.zeros(3, 2, 4, 8)
    table = torch.tensor([[0], [2]]).int()
    tensors = (q, k, k, angles, angles, table, at.int(), at, store, store.clone())
    arguments = dict(zip(names, tensors, strict=True))
    for name in names:
        if wrong == "stride" and name not in ("cache_row", "position", "keys", "values"):
            continue
        if wrong == "shape" and name == "page_table":
            continue
        if wrong == "dtype" and name == "keys":
            continue  # the cache may have a dtype of its own
        edited = {**arguments, name: change(arguments[name])}
        assert_refused(lambda edited=edited: rope_and_store(**edited), "expected|device|contiguous")


def test_layers_without_columns_and_caches_without_heads_are_refused() -> None:
    """They would divide by zero."""
    assert_refused(lambda: add_rms_norm(torch.zeros(3, 0), None, torch.zeros(0), 1e-5), "expected x and residual")
    paged = make_paged([9], [(0, 8)], 4, 2, 8)
    for keys in (paged.keys[:, :0], paged.keys[:, :, :0]):
        assert_refused(
            lambda keys=keys: paged_attention(*paged._replace(keys=keys, values=keys), scale=1.0), "keys, values"
        )


def test_tensors_of_the_sampling_ops() -> None:
    good, bad, sampling = torch.randn(3, 30), torch.randn(3, 30), make_sampling_tensors(3)
    hidden, weight, banned = torch.randn(3, 4), torch.randn(30, 4), torch.full((3, 2), -1)
    for wrong in (
        banned.bool(),
        banned.float(),
        banned.to(torch.uint8),
        banned[:2],
        banned.to("meta"),
        [[1], [2], [3]],
    ):
        assert_refused(lambda wrong=wrong: contrastive_sample(good, bad, sampling, banned=wrong), "banned: ")
        assert_refused(lambda wrong=wrong: select_candidates(good, sampling, banned=wrong), "banned: ")
        assert_refused(lambda wrong=wrong: select_candidates_linear(hidden, weight, sampling, banned=wrong), "banned: ")
    assert_refused(lambda: contrastive_sample(good, bad.to("meta"), sampling), "bad: is on meta")
    assert_refused(lambda: contrastive_sample(good, bad[:, :0], sampling), "bad: expected")
    assert_refused(lambda: contrastive_sample(good.tolist(), bad, sampling), "good: expected .* got list")
    assert_refused(lambda: contrastive_sample(good, bad, tuple(sampling)), "sampling: expected SamplingTensors")
    assert_refused(lambda: select_candidates_linear(hidden, weight.T.contiguous().T, sampling), "weight: rows must be")
    assert_refused(lambda: select_candidates_linear(hidden, weight.double(), sampling), "hidden, weight: expected")
    assert_refused(lambda: sample_candidates(tuple(select_candidates(good, sampling)), bad, sampling), "candidates: ")
    strided = hidden.T.contiguous().T
    assert torch.equal(
        select_candidates_linear(strided, weight, sampling).token,
        select_candidates_linear(hidden, weight, sampling).token,
    )
