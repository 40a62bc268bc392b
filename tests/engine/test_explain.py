"""Explanations: equal to a recomputation with transformers and to what `generate` returns; what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine import explain as module
from cdgen.engine.sampling_params import METHODS
from cdgen.errors import InputError
from cdgen.models.tokenizers import decode
from cdgen.viewer.explanation import Explanation, Prediction
from tests.helpers.recomputation import CONFIGS, Recomputation, all_logits, family
from tests.helpers.tiny_models import SENTENCES, VOCABULARY, make_llama, make_tokenizer

TEXT = SENTENCES[1] + " né 😀"
TOLERANCE = 2e-4  # nats; the models compute in float32
PARAMS = [
    SamplingParams.for_method(name, **({"top_k": 3} if "top_k" in name else {"top_p": 0.6} if "top_p" in name else {}))
    for name in METHODS
]
PARAMS += [SamplingParams(temperature=0.7, good_weight=2.0), SamplingParams(temperature=0.7, top_k=2, alpha=0.01)]
UNUSUAL: list[dict[str, Any]] = [
    {"contrast_strength": -0.5},
    {"good_weight": 0.0},
    {"good_weight": 2.0, "contrast_strength": 0.5},
    {"alpha": 1.0},
    {"temperature": 0.0},
    {"temperature": 1e-4},
    {"temperature": 100.0, "alpha": 0.0},
    {"top_k": 1, "alpha": 0.0},
    {"top_p": 1e-6, "alpha": 0.0},
    {"outside_head": -3.0},
    {"outside_head": 5.0, "top_k": 4},
    {"outside_head": "shifted_good", "alpha": 1.0},
    {"good_weight": 0.0, "contrast_strength": 0.0, "outside_head": "shifted_good"},
]


def predictions(explanation: Explanation) -> list[Prediction]:
    """Return the predictions of all tokens after the first one."""
    return [token.prediction for token in explanation.tokens[1:] if token.prediction is not None]


@pytest.mark.parametrize("name", CONFIGS)
def test_predictions_equal_a_full_recomputation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family and every method. The text is longer than the blocks in which it is read."""
    monkeypatch.setattr("cdgen.engine.explain._POSITIONS", 20)
    models = family(name, 0), family(name, 1)
    lm = ContrastiveLM(*models, tokenizer=make_tokenizer())
    ids = lm.prompt_ids(TEXT, "")
    logits = [all_logits(model, ids) for model in models]
    for params in PARAMS:
        explanation = lm.explain(TEXT, params)
        assert [token.token_id for token in explanation.tokens] == ids
        assert explanation.params["method"] == params.method
        Recomputation(*logits, params).check(explanation.tokens, TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_unusual_parameters(name: str) -> None:
    models = family(name, 0), family(name, 1)
    lm = ContrastiveLM(*models, tokenizer=make_tokenizer())
    ids = lm.prompt_ids(TEXT, "")
    logits = [all_logits(model, ids) for model in models]
    for changes in UNUSUAL:
        params = SamplingParams(**changes)
        tolerance = TOLERANCE / min(1.0, params.temperature or 1.0)  # the temperature divides rounding errors, too
        Recomputation(*logits, params).check(lm.explain(ids, params).tokens, tolerance)


@pytest.mark.parametrize("name", ["mistral", "gpt2", "opt", "bloom"])
def test_neither_blocks_nor_short_lists_change_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has as many tokens as the models have positions, many more than a sliding window, and a full block."""
    models = family(name, 0), family(name, 1)
    lm = ContrastiveLM(*models, tokenizer=make_tokenizer())
    ids = torch.randint(2, VOCABULARY, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    logits = [all_logits(model, ids) for model in models]
    for positions, scores, short in ((256, 2**18, 1024), (255, 10 * VOCABULARY, 1), (9, 2 * VOCABULARY, 12)):
        for constant, value in (
            ("explain._POSITIONS", positions),
            ("explain._SCORES", scores),
            ("predictions._SHORT", short),
        ):
            monkeypatch.setattr(f"cdgen.engine.{constant}", value)
        Recomputation(*logits, SamplingParams()).check(lm.explain(ids).tokens, TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"alpha": 0.01, "temperature": 1.7, "no_repeat_ngram_size": 2, "min_tokens": 20, "ignore_eos": False},
     {"contrast_strength": 0.0}, {"outside_head": "shifted_good", "top_k": 5, "no_repeat_ngram_size": 1}],
    ids=str,
)  # fmt: skip
def test_log_probabilities_are_those_of_generate(name: str, changes: dict[str, Any]) -> None:
    lm = ContrastiveLM(family(name, 0), family(name, 1), tokenizer=make_tokenizer())
    params = SamplingParams(**{"n": 2, "max_tokens": 30, "ignore_eos": True, "logprobs": True} | changes)
    for request in lm.generate(["The quick brown", [5, 6, 7]], params):
        prompt = request.prompt_token_ids
        for output in request.outputs:
            assert len(output.token_ids) >= 20
            explanation = lm.explain(prompt + output.token_ids, params, prompt_length=len(prompt))
            assert explanation.prompt_length == len(prompt)
            for returned, found in zip(output.logprobs, predictions(explanation)[len(prompt) - 1 :], strict=True):
                assert (found.logprob, found.good) == pytest.approx(returned[:2], abs=1e-3)
                if params.contrast_strength:
                    assert found.bad == pytest.approx(returned.bad, abs=1e-3)


def test_the_number_of_logits_in_memory_is_bounded(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ContrastiveLM(folders["wide"], folders["good"])
    sizes: dict[str, list[int]] = {"logits": [], "scores": []}
    read, predict = lm.pair.good.logits, module.predictions

    def counted_logits(*arguments: Any) -> torch.Tensor:
        logits = read(*arguments)
        sizes["logits"].append(logits.numel())
        return logits

    def counted_scores(good: torch.Tensor, *rest: Any) -> list[Prediction]:
        sizes["scores"].append(good.numel())
        return predict(good, *rest)

    monkeypatch.setattr(lm.pair.good, "logits", counted_logits)
    monkeypatch.setattr(module, "predictions", counted_scores)
    monkeypatch.setattr(module, "_LOGITS", 7 * lm.pair.good.width + 1)
    monkeypatch.setattr(module, "_SCORES", 3 * VOCABULARY + 1)
    lm.explain([5] * 30)
    assert sizes["logits"] == [count * lm.pair.good.width for count in (7, 7, 7, 7, 1)]
    assert sizes["scores"] == [count * VOCABULARY for count in (*[3, 3, 1] * 4, 1)]


@pytest.mark.parametrize(
    "changes", [{}, {"alpha": 0.0, "contrast_strength": 0.0}, {"outside_head": "shifted_good"}, {"top_p": 0.3}], ids=str
)
def test_ties_are_decided_as_in_decoding(changes: dict[str, Any]) -> None:
    models = make_llama(0), make_llama(1)
    with torch.no_grad():
        for model in models:
            model.lm_head.weight[10:200] = model.lm_head.weight[9]
    lm = ContrastiveLM(*models, tokenizer=make_tokenizer())
    ids = [9, 12, 30, 199, 5, 7, 200]
    params = SamplingParams(**changes)
    Recomputation(*(all_logits(model, ids) for model in models), params).check(
        lm.explain(ids, params).tokens, TOLERANCE
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, **changes)
    for prompt in ([9, 12], [5], [250, 7, 30]):
        [drawn] = lm.generate([prompt], greedy)[0].outputs
        found = predictions(lm.explain(prompt + drawn.token_ids, greedy, prompt_length=len(prompt)))
        assert [one.best_id for one in found[len(prompt) - 1 :]] == drawn.token_ids


def test_banned_tokens_cannot_be_drawn(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    every = {"alpha": 0.0, "contrast_strength": 0.0}
    ids = [5, 6, 7, 5, 1, 6, 5, 6, 1]
    found = predictions(lm.explain(ids, SamplingParams(min_tokens=3, **every), prompt_length=4))
    assert [at for at, one in enumerate(found, 1) if one.logprob == -math.inf] == [4], "8 is the fifth new token"
    assert found[3].candidates == found[3].drawable == VOCABULARY - 1 and found[7].candidates == VOCABULARY
    tail = {"outside_head": "shifted_good", "no_repeat_ngram_size": 2}
    found = predictions(lm.explain(ids, SamplingParams(**tail)))
    assert [VOCABULARY - one.drawable for one in found] == [0, 0, 0, 1, 0, 1, 2, 2]
    assert all(one.candidates < 100 for one in found)
    cut = predictions(lm.explain(ids, SamplingParams(top_k=2, **every)))
    assert {(one.candidates, one.drawable) for one in cut} == {(VOCABULARY, 2)}
    found = predictions(lm.explain(ids, SamplingParams(no_repeat_ngram_size=2, **every)))
    assert [at for at, one in enumerate(found, 1) if one.logprob == -math.inf] == [7], "(5, 6) occurs twice"
    found = predictions(lm.explain(ids, SamplingParams(**every), prompt_length=6))
    assert all(one.logprob > -math.inf for one in found), "an end of text in the prompt is not banned"


def test_a_position_at_which_every_token_is_banned() -> None:
    lm = ContrastiveLM(make_llama(0, vocab_size=8))
    params = SamplingParams(no_repeat_ngram_size=1, alpha=0.0, contrast_strength=0.0)
    *_, before, last = predictions(lm.explain([*range(8), 3], params))
    assert before.candidates == 1 and before.best_id == 7 and before.logprob == 0
    assert last.candidates == last.drawable == 0 and last.logprob == -math.inf and last.best_id == last.good_best_id
    assert {one.token_id for one in last.listed} == {3, last.good_best_id}


def test_bad_is_run_without_contrast_and_good_alone_works(folders: dict[str, Path]) -> None:
    text = "The lazy dog"
    both = ContrastiveLM(folders["good"], folders["bad"]).explain(text, SamplingParams(contrast_strength=0.0))
    contrast = [one.contrast for one in predictions(both)]
    assert all(value is not None and value != 0 for value in contrast)
    assert both.bad == str(folders["bad"]) and both.params["method"] == "head"
    lm = ContrastiveLM(folders["good"])
    alone = lm.explain(text)
    assert alone.bad is None and alone.params["method"] == "head"
    for one, other in zip(predictions(alone), predictions(both), strict=True):
        assert (one.bad, one.contrast, one.logprob) == (None, None, other.logprob)
        assert all(candidate.bad is None for candidate in one.listed)
    with pytest.raises(InputError, match="there is no BAD; pass bad="):
        lm.explain(text, SamplingParams())


def test_padding_of_the_output_layer_has_no_probability(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["wide"], folders["good"])
    explanation = lm.explain(TEXT)
    ids = lm.prompt_ids(TEXT, "")
    logits = [all_logits(model.module, ids)[:, :VOCABULARY] for model in (lm.pair.good, lm.pair.bad)]
    Recomputation(*logits, SamplingParams()).check(explanation.tokens, TOLERANCE)
    assert max(explanation.pieces) < VOCABULARY


def test_a_dropout_bad_is_reproducible_and_leaves_the_users_generator_alone(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], dropout=0.5)
    state = torch.get_rng_state()
    first = lm.explain(TEXT, SamplingParams(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (lm.explain(TEXT, SamplingParams(seed=seed)) for seed in (1, 2))
    assert first == again and first.params["seed"] == 1 and first.bad == "dropout:0.5"
    assert [one.bad for one in predictions(first)] != [one.bad for one in predictions(other)]
    assert [one.good for one in predictions(first)] == [one.good for one in predictions(other)]


def test_tokens_of_a_text(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    explanation = lm.explain("né</s>")
    ids = [token.token_id for token in explanation.tokens]
    assert ids == lm.prompt_ids("né</s>", "") and 1 not in ids, "a string contains no special tokens"
    assert explanation.text == decode(lm.tokenizer, ids, False) == "<s>né</s>"
    assert [token.text for token in explanation.tokens[:4]] == ["<s>", "n", "", "é"]
    assert [explanation.pieces[token] for token in ids[:4]] == ["<s>", "n", b"\xc3", b"\xa9"]
    assert explanation.tokens[0].prediction is None and explanation.prompt_length == 1
    listed = {one.token_id for found in predictions(explanation) for one in found.listed}
    assert set(explanation.pieces) == listed | set(ids)
    assert explanation.special_ids == {0, 1} & set(explanation.pieces)
    assert lm.explain(ids) == explanation
    assert lm.explain([5, 6]).prompt_length == 0 and lm.explain([5, 6], prompt_length=2).prompt_length == 2
    empty = lm.explain("")
    assert [token.text for token in empty.tokens] == ["<s>"] and empty.prompt_length == 1


def test_without_a_tokenizer_tokens_are_their_ids(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["bare"])
    explanation = lm.explain([5, 1])
    assert explanation.text == "<5><1>" and explanation.pieces[5] == "<5>" and explanation.special_ids == frozenset()
    with pytest.raises(InputError, match=r"^text: is a string, but there is no tokenizer"):
        lm.explain("a")


def test_texts_and_parameters_that_are_refused(folders: dict[str, Path]) -> None:
    bad = make_llama(1)
    bad.config.max_position_embeddings = 40
    lm = ContrastiveLM(folders["good"], bad)
    assert len(lm.explain([5] * 40).tokens) == 40
    with pytest.raises(InputError, match=r"^text: has 41 tokens, but .* has 40 positions; shorten it$"):
        lm.explain([5] * 41, SamplingParams(contrast_strength=0.0))
    for ids, wrong in (([5, 300], 300), ([-1], -1)):
        with pytest.raises(InputError, match=f"^text: token id {wrong} is out of range; the vocabulary has 300 tokens"):
            lm.explain(ids)
    with pytest.raises(InputError, match=r"^stop_token_ids: 300 is out of range"):
        lm.explain([5], SamplingParams(stop_token_ids=(300,)))
    for length in (-1, 4, 1.5, True):
        with pytest.raises(InputError, match=r"^prompt_length = "):
            lm.explain([5, 6, 7], prompt_length=length)
    with pytest.raises(InputError, match=r"^text: token 0 is 'a', of type str; token ids are integers"):
        lm.explain(["a", "b"])
    with pytest.raises(InputError, match="sampling_params: is of type dict"):
        lm.explain("a", {"alpha": 0.1})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_reported_with_the_name_of_the_model(
    value: float, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdgen.engine.explain._POSITIONS", 4)
    lm = ContrastiveLM(folders["good"], folders["bad"])
    original = lm.pair.bad.logits

    def poisoned(ids: torch.Tensor, mask: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = original(ids, mask, *rest)
        logits[:, :, 5] = value if mask.shape[1] > 4 else 0
        return logits

    monkeypatch.setattr(lm.pair.bad, "logits", poisoned)
    with pytest.raises(InputError, match=r"/bad: gives logits that are NaN or infinite for one of the tokens 4 to 7 "):
        lm.explain([5] * 12)


def test_repr_is_one_short_line(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    explanation = lm.explain("\n".join(SENTENCES), prompt_length=3)
    line = repr(explanation)
    assert line.startswith("Explanation(text='<s>The quick brown fox jumps over the lazy dog.\\nOnce upon a")
    assert line.endswith("bad=" + repr(str(folders["bad"])) + ", method='contrastive')")
    assert "\n" not in line and f"tokens=<{len(explanation.tokens)}>, prompt_length=3" in line and len(line) < 400


def test_html(folders: dict[str, Path]) -> None:
    explanation = ContrastiveLM(folders["good"], folders["bad"]).explain("né <script>")
    assert explanation._repr_html_().startswith("<iframe ")
    page = explanation.to_html("A <title>")
    assert page.startswith("<!doctype html>") and "<title>A &lt;title&gt;</title>" in page
