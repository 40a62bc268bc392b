"""SamplingParams: methods by name, min_p, and values out of range."""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from cdgen import SamplingParams
from cdgen.engine.device_state import sampling_tensors
from cdgen.engine.sampling_params import FIELDS, METHODS
from cdgen.errors import InputError
from cdgen_kernels.sampling_tensors import LOWEST_TEMPERATURE


def test_method_is_derived_from_the_values() -> None:
    for name in METHODS:
        assert SamplingParams.for_method(name).method == name
    assert SamplingParams(outside_head=-20.0).method == "contrastive"
    assert SamplingParams.for_method("top_k", top_k=5, n=3) == SamplingParams(
        alpha=0, contrast_strength=0, top_k=5, n=3
    )
    with pytest.raises(InputError, match="with contrast_strength=0 this is 'head'"):
        SamplingParams.for_method("contrastive", contrast_strength=0)
    with pytest.raises(InputError, match="use one of ancestral"):
        SamplingParams.for_method("magic")
    assert SamplingParams(stop="x").stop == ("x",) and hash(SamplingParams()) == hash(SamplingParams())


def test_min_p_is_alpha_without_contrast() -> None:
    params = SamplingParams(min_p=0.2)
    assert params == SamplingParams(alpha=0.2, contrast_strength=0) == SamplingParams.for_method("head", min_p=0.2)
    assert params.method == "head" and repr(params).startswith("SamplingParams(n=1, max_tokens=256, alpha=0.2, ")
    assert SamplingParams(min_p=0.0).method == "ancestral", "as in vLLM, 0 switches it off"
    contrastive = SamplingParams(min_p=0.2, contrast_strength=1.0)
    assert (contrastive.alpha, contrastive.contrast_strength, contrastive.method) == (0.2, 1.0, "contrastive")
    assert SamplingParams(min_p=None) == SamplingParams(), "an argument that is not given changes nothing"


def test_min_p_is_not_a_field() -> None:
    """Manifests and the command line list the fields, and `alpha` holds the value."""
    params = SamplingParams(min_p=0.2)
    assert "min_p" not in {*FIELDS, *asdict(params), *(field.name for field in fields(params)), *vars(params)}


@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_alpha_and_min_p_exclude_each_other(alpha) -> None:
    """Even if both are the same, or alpha is its default."""
    with pytest.raises(InputError, match=rf"^min_p = 0\.2: alpha = {alpha} sets the same threshold"):
        SamplingParams(alpha=alpha, min_p=0.2)
    with pytest.raises(InputError, match=r"with min_p=0\.2 this is 'head'"):
        SamplingParams.for_method("contrastive", min_p=0.2)
    with pytest.raises(InputError, match=r"'ancestral': with min_p=0\.2 this is 'head'"):
        SamplingParams.for_method("ancestral", min_p=0.2)


def test_replace_knows_min_p() -> None:
    """`replace` passes every field to the constructor, as if it had been given."""
    params = SamplingParams(min_p=0.2)
    assert replace(params, n=3) == SamplingParams(n=3, min_p=0.2)
    assert replace(params, temperature=0.5) == SamplingParams(min_p=0.2, temperature=0.5)
    assert replace(params, min_p=0.3) == SamplingParams(min_p=0.3)
    assert replace(params, alpha=0.3) == SamplingParams(alpha=0.3, contrast_strength=0.0)
    assert replace(SamplingParams(), min_p=0.3) == SamplingParams(min_p=0.3)
    assert replace(replace(SamplingParams(), n=2), min_p=0.3) == SamplingParams(min_p=0.3, n=2)
    assert replace(SamplingParams(alpha=0.4), min_p=0.3) == SamplingParams(min_p=0.3)
    contrastive = SamplingParams(contrast_strength=1.0)
    assert replace(contrastive, min_p=0.3) == SamplingParams(alpha=0.3), "a strength that was given stays"
    with pytest.raises(InputError, match=r"^min_p = 0\.2: alpha = 0\.1 sets the same threshold"):
        replace(params, alpha=0.1, min_p=0.2)
    copied = pickle.loads(pickle.dumps(params))
    assert replace(copied, min_p=0.3) == SamplingParams(min_p=0.3) and json.dumps(asdict(params))


def test_biases_and_bad_words_have_one_form() -> None:
    """Equal parameters are equal and have one hash, whatever form they were given in; JSON keeps them."""
    forms: list[Any] = [
        {7: 2, 5: -1.5},
        [(7, 2.0), (5, -1.5)],
        ((5, -1.5), (7, 2)),
        {np.int64(5): torch.tensor(-1.5), 7: 2},
        {"7": 2, "5": -1.5},  # an object in JSON
    ]
    made = [SamplingParams(logit_bias=form, bad_words=["a", " b"]) for form in forms]
    assert set(made) == {made[0]} and made[0].logit_bias == ((5, -1.5), (7, 2.0)) and made[0].bad_words == ("a", " b")
    assert SamplingParams(**json.loads(json.dumps(asdict(made[0])))) == made[0] == replace(made[0])
    assert SamplingParams(logit_bias=None, bad_words=None) == SamplingParams(logit_bias={}, bad_words=[])
    assert SamplingParams(bad_words="the").bad_words == ("the",)
    changed = [SamplingParams(**{f"{name}_penalty": 0.5}) for name in ("repetition", "presence", "frequency")]
    assert all(each.penalizes for each in changed) and not made[0].penalizes
    assert made[0].method == changed[0].method == "contrastive"


TOO_SMALL, TOO_GREAT = 1e-46, 1e300  # float32 holds 0 and infinity in their places


@pytest.mark.parametrize(
    "name, value",
    [("n", 0), ("n", 1.5), ("n", 2.0), ("n", True), ("n", 10**9), ("n", "2"), ("n", None), ("n", np.array([2])),
     ("max_tokens", 0), ("max_tokens", 10**30), ("max_tokens", np.float64(3)),
     ("alpha", 1.1), ("alpha", float("nan")), ("alpha", TOO_SMALL), ("alpha", "0.1"), ("alpha", False),
     ("min_p", 1.1), ("min_p", "much"), ("min_p", TOO_SMALL), ("min_p", torch.tensor([0.1, 0.2])),
     ("temperature", -1), ("temperature", TOO_SMALL), ("temperature", TOO_GREAT), ("temperature", 10**400),
     ("temperature", float("inf")), ("temperature", 1e-40),
     ("top_k", -2), ("top_k", 2**32 + 5), ("top_k", 2**31), ("top_k", 1.5), ("top_k", np.bool_(True)),
     ("top_p", 0), ("top_p", 1.1), ("top_p", 1e-50), ("top_p", 1j),
     ("seed", -1), ("seed", 2**63), ("seed", int("9" * 400)), ("seed", 10**5000), ("seed", 1.0), ("seed", b"1"),
     ("good_weight", -1), ("good_weight", TOO_GREAT), ("good_weight", TOO_SMALL),
     ("contrast_strength", "much"), ("contrast_strength", TOO_GREAT), ("contrast_strength", -TOO_GREAT),
     ("contrast_strength", TOO_SMALL), ("contrast_strength", {}), ("contrast_strength", -(10**5000)),
     ("outside_head", "elsewhere"), ("outside_head", float("inf")), ("outside_head", -1e39), ("outside_head", None),
     ("stop", ("",)), ("stop", 5), ("stop", b"x"), ("stop", {"x": 1}), ("stop", [5]), ("stop", (10**5000,)),
     ("stop", "\ud800"), ("stop", ("x", "a\udcff")),
     ("stop_token_ids", (-1,)), ("stop_token_ids", 5), ("stop_token_ids", "12"), ("stop_token_ids", [1.5]),
     ("stop_token_ids", [True]), ("stop_token_ids", [2**40]), ("stop_token_ids", {1: 2}),
     ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", float("nan")),
     ("repetition_penalty", TOO_GREAT), ("repetition_penalty", None), ("presence_penalty", 2.1),
     ("presence_penalty", "1"), ("frequency_penalty", -2.1), ("frequency_penalty", TOO_SMALL),
     ("logit_bias", {-1: 1.0}), ("logit_bias", {2**31: 1.0}), ("logit_bias", {"five": 1.0}), ("logit_bias", {1.5: 1.0}),
     ("logit_bias", {5: "1"}), ("logit_bias", {5: float("inf")}), ("logit_bias", {5: None}), ("logit_bias", 5),
     ("logit_bias", [5]), ("logit_bias", [(5, 1, 2)]), ("logit_bias", [(5, 1.0), (5, 1.0)]), ("logit_bias", "ab"),
     ("bad_words", ("",)), ("bad_words", (" ",)), ("bad_words", 5), ("bad_words", [5]), ("bad_words", "\ud800"),
     ("min_tokens", 257), ("min_tokens", 10**30), ("no_repeat_ngram_size", -1), ("no_repeat_ngram_size", 10**30),
     ("ignore_eos", 1), ("ignore_eos", None), ("logprobs", -1),
     ("logprobs", 1001), ("logprobs", "yes"), ("top_logprobs", 3), ("skip_special_tokens", "yes")],
    ids=lambda value: str(value)[:20] if not isinstance(value, (int, tuple)) else "",
)  # fmt: skip
def test_values_out_of_range_name_the_field(name, value) -> None:
    with pytest.raises(InputError, match=f"^{name} = ") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("make", [np.int64, np.int32, np.array, torch.tensor], ids=lambda make: make.__name__)
def test_integers_of_numpy_and_torch(make: Callable[[int], Any]) -> None:
    expected = SamplingParams(n=2, max_tokens=7, top_k=5, seed=3, stop_token_ids=(4,), temperature=2.0)
    params = SamplingParams(
        n=make(2), max_tokens=make(7), top_k=make(5), seed=make(3), stop_token_ids=[make(4)], temperature=make(2)
    )
    assert params == expected and type(params.n) is type(params.stop_token_ids[0]) is int
    assert SamplingParams(top_k=make(-1)).top_k == 0
    assert SamplingParams(stop_token_ids=np.array([4, 5])).stop_token_ids == (4, 5)


@pytest.mark.parametrize("make", [np.float64, np.float32, np.array, torch.tensor, Fraction])
def test_real_numbers_of_other_types(make: Callable[[float], Any]) -> None:
    params = SamplingParams(temperature=make(0.5), contrast_strength=make(0.25), outside_head=make(-20.0))
    assert params == SamplingParams(temperature=0.5, contrast_strength=0.25, outside_head=-20)
    assert isinstance(params.temperature, float) and json.dumps(asdict(params))
    assert SamplingParams(ignore_eos=np.bool_(True)).ignore_eos is True


def test_the_greatest_and_least_numbers_that_the_ops_hold() -> None:
    great, least = 3.4e38, 1.18e-38
    params = SamplingParams(
        temperature=great, contrast_strength=-great, good_weight=great, top_p=least, top_k=2**31 - 1, alpha=least,
        seed=2**63 - 1, outside_head=-great,
    )  # fmt: skip
    rows = sampling_tensors(params, 1, torch.device("cpu"))
    for name in ("temperature", "contrast_strength", "good_weight", "top_p", "top_k", "seed"):
        assert getattr(rows, name).item() == pytest.approx(getattr(params, name), rel=1e-6)
    assert math.copysign(1, SamplingParams(temperature=-0.0).temperature) == 1


@pytest.mark.parametrize("temperature", [1.18e-38, 1e-20, 9.9e-6])
def test_a_temperature_that_the_ops_take_for_0_is_0(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, n=2)
    assert params == SamplingParams(temperature=0, n=2)
    with pytest.raises(InputError, match="temperature = 0"):
        params.check_distinct()
    assert SamplingParams(temperature=LOWEST_TEMPERATURE).temperature == LOWEST_TEMPERATURE


def test_what_vllm_leaves_out() -> None:
    assert SamplingParams(top_k=-1, stop=None, stop_token_ids=None, logprobs=None, min_p=0.0) == (
        SamplingParams.for_method("ancestral")
    )
    assert SamplingParams(max_tokens=None).max_tokens is None and SamplingParams(max_tokens=None, min_tokens=9)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    seeds = [SamplingParams(seed=None).seed for _ in range(4)]
    assert len(set(seeds)) == 4 and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    params = SamplingParams(seed=None)
    assert replace(params, n=3).seed == params.seed, "chosen once, so that outputs can be repeated"


@pytest.mark.parametrize("given", [{"temperature": 0}, {"top_k": 1}, {"alpha": 1}], ids=str)
def test_equal_continuations_are_refused(given: dict[str, float]) -> None:
    (name, value), *_ = given.items()
    with pytest.raises(InputError, match=f"^n = 8: with {name} = {value} all continuations of a prompt are equal"):
        SamplingParams(n=8, **given).check_distinct()
    SamplingParams(n=1, **given).check_distinct()
    SamplingParams(n=8, top_k=2).check_distinct()
    SamplingParams(n=8, alpha=1, outside_head=-20.0).check_distinct()
