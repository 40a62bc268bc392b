"""SamplingParams: methods by name, min_p, and values out of range."""

from dataclasses import asdict, fields, replace

import pytest

from cdgen import SamplingParams
from cdgen.engine.sampling_params import FIELDS, METHODS
from cdgen.errors import InputError


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
    assert params.method == "head" and type(params.alpha) is type(SamplingParams().alpha) is float
    assert SamplingParams(min_p=0.0).method == "ancestral", "as in vLLM, 0 switches it off"
    contrastive = SamplingParams(min_p=0.2, contrast_strength=1.0)
    assert (contrastive.alpha, contrastive.contrast_strength, contrastive.method) == (0.2, 1.0, "contrastive")
    assert SamplingParams(min_p=None) == SamplingParams(), "an argument that is not given changes nothing"
    assert replace(params, n=3) == SamplingParams(n=3, min_p=0.2)


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


@pytest.mark.parametrize(
    "name, value",
    [("n", 0), ("n", 1.5), ("max_tokens", 0), ("alpha", 1.1), ("alpha", float("nan")),
     ("min_p", 1.1), ("min_p", "much"), ("temperature", -1),
     ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("seed", -1), ("seed", 2**63), ("good_weight", -1),
     ("contrast_strength", "much"),
     ("outside_head", "elsewhere"), ("outside_head", float("inf")), ("stop", ("",)), ("stop_token_ids", (-1,)),
     ("min_tokens", 257), ("no_repeat_ngram_size", -1), ("ignore_eos", 1)],
)  # fmt: skip
def test_values_out_of_range_name_the_field(name, value) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)
