"""SamplingParams: methods by name, and values out of range."""

import pytest

from cdgen import SamplingParams
from cdgen.engine.sampling_params import METHODS
from cdgen.errors import InputError


def test_method_is_derived_from_the_values():
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


@pytest.mark.parametrize(
    "name, value",
    [("n", 0), ("n", 1.5), ("max_tokens", 0), ("alpha", 1.1), ("alpha", float("nan")), ("temperature", -1),
     ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("seed", -1), ("seed", 2**63), ("good_weight", -1),
     ("contrast_strength", "much"),
     ("outside_head", "elsewhere"), ("outside_head", float("inf")), ("stop", ("",)), ("stop_token_ids", (-1,)),
     ("min_tokens", 257), ("no_repeat_ngram_size", -1), ("ignore_eos", 1)],
)  # fmt: skip
def test_values_out_of_range_name_the_field(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)
