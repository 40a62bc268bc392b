"""ContrastiveLM's own arguments, its limits, and continuations as long as the models allow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cdgen import ContrastiveLM
from cdgen.engine.requests import default_batch
from cdgen.errors import InputError
from tests.helpers.families import family
from tests.helpers.sampling import free
from tests.helpers.tiny_models import make_llama


@pytest.mark.parametrize(
    "name, value",
    [("max_num_seqs", 0), ("max_num_seqs", 2.5), ("max_num_seqs", True), ("max_num_seqs", 10**30),
     ("max_num_seqs", "8"),
     ("kv_cache_memory_bytes", float("nan")), ("kv_cache_memory_bytes", -1), ("kv_cache_memory_bytes", 0),
     ("kv_cache_memory_bytes", 1.5e9), ("kv_cache_memory_bytes", 10**400), ("kv_cache_memory_bytes", False),
     ("dropout", float("nan")), ("dropout", "0.3"), ("dropout", 1.5), ("dropout", 1e-50),
     ("layers", 1.5), ("layers", True), ("layers", 0), ("layers", 10**30),
     ("trust_remote_code", "no"), ("trust_remote_code", 1)],
)  # fmt: skip
def test_arguments_out_of_range_are_named(name: str, value: Any, good: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=f"^{name} = ") as caught:
        ContrastiveLM(good, **{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_numbers_of_numpy_and_torch(good: LlamaForCausalLM) -> None:
    lm = ContrastiveLM(good, layers=np.int64(1), max_num_seqs=torch.tensor(3), kv_cache_memory_bytes=np.array(10**6))
    assert (lm.max_num_seqs, lm.kv_cache["kv_cache_memory_bytes"], lm.pair.bad.num_layers) == (3, 10**6, 1)
    assert ContrastiveLM(good, dropout=np.float32(0.5)).pair.bad.dropout == 0.5


def test_the_default_batch_is_that_of_the_device(good: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ContrastiveLM(good).max_num_seqs == default_batch("cpu") == 64
    assert default_batch("cuda") == 512
    monkeypatch.setattr("cdgen.engine.llm.default_batch", lambda kind: {"cpu": 2, "cuda": 3}[kind])
    monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "a reason")
    assert ContrastiveLM(good).max_num_seqs == 2, "static batches keep all their sequences in memory"


def test_repr_names_the_models(folders: dict[str, Path], good: LlamaForCausalLM) -> None:
    assert repr(ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=8)) == (
        f"ContrastiveLM(good={str(folders['good'])!r}, bad={str(folders['bad'])!r}, dtype=float32, device=cpu, "
        "vocab_size=300, max_num_seqs=8)"
    )
    assert "bad='dropout:0.3'" in repr(ContrastiveLM(good, dropout=0.3)) and "bad=None" in repr(ContrastiveLM(good))


@pytest.mark.parametrize("kind", ["paged", "static", "small batch"])
def test_continuations_as_long_as_the_models_allow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models have 256 and 40 positions: without contrast, BAD's do not count."""
    if kind == "static":
        monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
    bad = make_llama(1)
    bad.config.max_position_embeddings = 40
    lm = ContrastiveLM(make_llama(0), bad, max_num_seqs=2 if kind == "small batch" else 64)
    prompts = [[5] * 3, [6] * 39, [7] * 20]
    requests = lm.generate(prompts, free(max_tokens=None, n=3))
    lengths = [[len(output.token_ids) for output in request.outputs] for request in requests]
    assert lengths == [[37] * 3, [1] * 3, [20] * 3]
    assert {output.finish_reason for request in requests for output in request.outputs} == {"length"}
    for prompt, request in zip(prompts, requests, strict=True):
        (same,) = lm.generate([prompt], free(max_tokens=40 - len(prompt), n=3))
        assert same.outputs == request.outputs
    (alone,) = lm.generate([[5] * 250], free(max_tokens=None, contrast_strength=0.0))
    assert len(alone.outputs[0].token_ids) == 6
    with pytest.raises(InputError, match="prompt 0: 40 tokens and max_tokens = 1 more exceed the models' 40 positions"):
        lm.generate([[5] * 40], free(max_tokens=None))


def test_models_without_a_position_limit_need_max_tokens() -> None:
    lm = ContrastiveLM(family("bloom", 0))
    with pytest.raises(InputError, match=r"^max_tokens = None: the models do not state for how many positions"):
        lm.generate([[5]], free(max_tokens=None, contrast_strength=0.0))
    with pytest.raises(InputError, match=r"^a cache for 1 sequences of 2147483648 tokens cannot be allocated: .*"):
        lm.generate([[5]], free(max_tokens=2**31 - 1, contrast_strength=0.0))


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {"top_k": 1}, {"alpha": 1.0}], ids=str)
def test_equal_continuations_are_refused_unless_bad_is_noisy(given: dict[str, float], good: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=r"^n = 8: with .* all continuations of a prompt are equal"):
        ContrastiveLM(good, layers=1).generate([[5]], free(n=8, **given))
    noisy = ContrastiveLM(good, dropout=0.5)
    with pytest.raises(InputError, match=r"^n = 8: with .* all continuations of a prompt are equal"):
        noisy.generate([[5]], free(n=8, contrast_strength=0.0, **given))
    if "temperature" in given:
        (request,) = noisy.generate([[5]], free(n=8, alpha=0.0, max_tokens=40, **given))
        assert len({tuple(output.token_ids) for output in request.outputs}) > 1


def test_one_call_returns_a_limited_number_of_continuations(good: LlamaForCausalLM) -> None:
    """The list of pairs alone would fill the memory."""
    lm = ContrastiveLM(good)
    with pytest.raises(InputError, match=r"^n: 11 prompts have 11,000,000 continuations, but one call"):
        lm.generate([[5]] * 11, free(n=10**6, contrast_strength=0.0))


def test_arguments_of_other_types_are_refused(good, tokenizer) -> None:
    with pytest.raises(InputError, match="tokenizer: is of type int; give a transformers tokenizer or a folder"):
        ContrastiveLM(good, tokenizer=5)
    lm = ContrastiveLM(good, tokenizer=tokenizer)
    for params in ({"n": 2}, {}, "greedy", 0):
        with pytest.raises(InputError, match=r"sampling_params: is of type .*; use SamplingParams"):
            lm.generate("a", params)
