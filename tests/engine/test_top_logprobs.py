"""The tokens that were most likely to be drawn: against the definition, on pages and in static batches."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdgen import CompletionOutput, ContrastiveLM, InputError, RequestOutput, SamplingParams, generate_corpus
from cdgen.models.pieces import pieces
from tests.helpers.recomputation import all_logits, distribution
from tests.helpers.sampling import free
from tests.helpers.tiny_models import VOCABULARY

PROMPTS = ["The quick brown", "Once", [5, 6, 7]]
METHODS: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "top_k": {"top_k": 2, "alpha": 0.01},
    "top_p": {"top_p": 0.6, "alpha": 0.01},
    "tail": {"outside_head": "shifted_good"},
    "constant": {"outside_head": -3.0},
    "greedy": {"temperature": 0.0, "alpha": 0.0, "n": 1},
    "warm": {"temperature": 1.7, "good_weight": 1.5, "contrast_strength": 0.5, "alpha": 0.05},
}


@pytest.fixture(params=["paged", "static"])
def lm(request: pytest.FixtureRequest, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> ContrastiveLM:
    if request.param == "static":
        monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
    return ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=5)


def expected_rows(
    models: tuple[torch.nn.Module, torch.nn.Module], request: RequestOutput, output: CompletionOutput
) -> list[torch.Tensor]:
    """Return GOOD's and BAD's logits for every token of a continuation, float64 [T, V], without a cache."""
    ids, start = request.prompt_token_ids + output.token_ids, len(request.prompt_token_ids) - 1
    return [all_logits(model, ids)[start:, :VOCABULARY] for model in models]


@pytest.mark.parametrize("name", METHODS)
def test_the_best_tokens_are_those_of_the_definition(name: str, lm: ContrastiveLM, good: Any, bad: Any) -> None:
    params = free(**{"n": 2, "logprobs": 6, "max_tokens": 5} | METHODS[name])
    for request in lm.generate(PROMPTS, params):
        for output in request.outputs:
            logits = expected_rows((good, bad), request, output)
            wanted, _ = distribution(*logits, params)
            others = [each.log_softmax(1) for each in logits]
            assert output.top_logprobs is not None and len(output.top_logprobs) == len(output.token_ids)
            for step, listed in enumerate(output.top_logprobs):
                best = wanted[step].sort(descending=True, stable=True)  # equal tokens in the order of their ids
                drawable = min(6, int((best.values > -torch.inf).sum()))
                assert [each.token_id for each in listed] == best.indices[:drawable].tolist()
                found = np.array([[each.logprob, each.good, each.bad] for each in listed])
                columns = torch.stack([best.values, *(each[step][best.indices] for each in others)], 1)
                np.testing.assert_allclose(found, columns[:drawable].numpy(), rtol=1e-4, atol=1e-4)
                assert {each.token_id: each.text for each in listed} == pieces(
                    lm.tokenizer, (each.token_id for each in listed)
                )
                if name == "greedy":
                    assert listed[0].token_id == output.token_ids[step]


def test_listing_tokens_changes_neither_tokens_nor_their_logprobs(lm: ContrastiveLM) -> None:
    params = free(n=2, logprobs=True, no_repeat_ngram_size=2, min_tokens=3, ignore_eos=False)
    for one, other in zip(lm.generate(PROMPTS, params), lm.generate(PROMPTS, replace(params, logprobs=3)), strict=True):
        for plain, listed in zip(one.outputs, other.outputs, strict=True):
            assert plain.top_logprobs is None and listed.top_logprobs is not None
            assert replace(listed, top_logprobs=None) == plain
            for token, drawn, best in zip(listed.token_ids, listed.logprobs or [], listed.top_logprobs, strict=True):
                assert best == sorted(best, key=lambda each: -each.logprob)
                same = [each for each in best if each.token_id == token]
                assert same == [] or same[0][2:] == pytest.approx(drawn, abs=1e-5)


def test_changed_logits_change_the_list_but_not_the_column_of_good(lm: ContrastiveLM, good: Any, bad: Any) -> None:
    """A banned token is not listed, and one with a bias comes first."""
    (plain,) = lm.generate([[5, 6, 7]], free(n=1, logprobs=3, max_tokens=1, alpha=0.0))
    first, second = (each.token_id for each in plain.outputs[0].top_logprobs[0][:2])
    biased = free(n=1, logprobs=3, max_tokens=1, alpha=0.0, logit_bias={first: -100.0, second: 100.0})
    (request,) = lm.generate([[5, 6, 7]], biased)
    (listed,) = request.outputs[0].top_logprobs
    assert listed[0].token_id == second and first not in [each.token_id for each in listed]
    (logits, _) = expected_rows((good, bad), request, request.outputs[0])
    assert listed[0].good == pytest.approx(float(logits[0].log_softmax(0)[second]), abs=1e-4)
    assert listed[0].logprob == pytest.approx(0.0, abs=1e-4)


def test_of_equal_tokens_the_lower_id_is_listed_first(good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits are equal."""
    lm = ContrastiveLM(good)
    monkeypatch.setattr("cdgen.models.llama.LlamaRunner.logits", lambda self, x: torch.zeros(len(x), VOCABULARY))
    params = SamplingParams(contrast_strength=0.0, alpha=0.0, logprobs=4, max_tokens=2, ignore_eos=True)
    (request,) = lm.generate([[5, 6]], params)
    (output,) = request.outputs
    assert output.top_logprobs is not None and len(output.top_logprobs) == 2
    for step in output.top_logprobs:
        assert [each.token_id for each in step] == [0, 1, 2, 3] and step[0].text == "<0>"
        assert [each.bad for each in step] == [None] * 4
        for column in ("logprob", "good"):
            assert [getattr(each, column) for each in step] == pytest.approx([-np.log(VOCABULARY)] * 4)


def test_a_vocabulary_with_fewer_tokens_is_listed_whole(lm: ContrastiveLM) -> None:
    (request,) = lm.generate([[5, 6]], free(n=1, logprobs=1000, alpha=0.0, max_tokens=2))
    for listed in request.outputs[0].top_logprobs:
        assert sorted(each.token_id for each in listed) == list(range(VOCABULARY))
        assert sum(np.exp(each.logprob) for each in listed) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("given", [True, False, None, np.True_])
def test_a_switch_lists_nothing(given: Any) -> None:
    params = SamplingParams(logprobs=given)
    assert params.logprobs is bool(given) and params.top_logprobs == 0


def test_a_number_is_stored_apart_from_the_switch() -> None:
    """Otherwise True would equal 1."""
    params = SamplingParams(logprobs=1)
    assert params == SamplingParams(logprobs=True, top_logprobs=1) != SamplingParams(logprobs=True)
    assert SamplingParams(logprobs=0) == SamplingParams(logprobs=True)  # as in vLLM
    assert replace(params, temperature=0.5).top_logprobs == 1 and replace(params, logprobs=2).top_logprobs == 2
    assert SamplingParams(**asdict(params)) == params


def test_prompts_with_other_numbers_are_decoded_in_one_call(lm: ContrastiveLM) -> None:
    each = [free(n=1, logprobs=logprobs, max_tokens=3) for logprobs in (2, True, False)]
    lengths = [[len(step) for step in request.outputs[0].top_logprobs or []] for request in lm.generate(PROMPTS, each)]
    assert all(1 <= length <= 2 for length in lengths[0]) and lengths[1:] == [[], []]


def test_a_corpus_has_no_columns_for_them(lm: ContrastiveLM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top_logprobs = 5: a corpus has columns for drawn tokens alone"):
        generate_corpus(lm, ["The fox"], tmp_path / "out", SamplingParams(logprobs=5, max_tokens=2))
    assert not (tmp_path / "out").exists()
