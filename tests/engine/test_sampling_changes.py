"""Parameters of each prompt, penalties, biases and bad words: every token is the one that a float64 reference draws."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cdgen import ContrastiveLM, RequestOutput, SamplingParams
from cdgen.engine.device_state import DeviceState
from cdgen.engine.engine import Engine
from cdgen.errors import InputError
from tests.helpers.engines import PROMPTS, free
from tests.helpers.recomputation import family
from tests.helpers.reference_draws import Reference
from tests.helpers.tiny_models import make_llama, make_tokenizer

BIAS = {40: 5.0, 5: -3.0, 77: 4.5, 299: 3.5}
# Fields that may differ in a batch. Temperature 0 shows a changed distribution at once, since random models repeat.
BY_ROW: list[dict[str, Any]] = [
    {"n": 2, "seed": 3, "repetition_penalty": 1.8, "alpha": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {"n": 3, "alpha": 0.02, "top_k": 5, "presence_penalty": -1.5, "frequency_penalty": 2.0},
    {"top_p": 0.8, "seed": 9, "max_tokens": 5, "alpha": 0.001},
    {"good_weight": 2.0, "contrast_strength": 0.5, "repetition_penalty": 0.6, "max_tokens": 20},
    {"n": 2},
    {"temperature": 0.7, "alpha": 0.3, "frequency_penalty": -0.5, "seed": 2**63 - 1},
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> ContrastiveLM:
    """Return a pair on the paged backend, and one on the static backend, with fewer rows than sequences."""
    name = request.param
    return ContrastiveLM(family(name, 0), family(name, 1), tokenizer=make_tokenizer(), max_num_seqs=4)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each run of the engine adds its number of sequences."""
    found: list[int] = []
    original = Engine.run

    def run(engine: Engine) -> None:
        finished, engine._on_finished = engine._on_finished, lambda *given: (count.append(1), finished(*given))
        count: list[int] = []
        original(engine)
        found.append(len(count))

    monkeypatch.setattr(Engine, "run", run)
    return found


@pytest.mark.parametrize("logprobs", [False, True], ids=["listed", "logprobs"])
def test_parameters_that_differ_by_row_share_batches(lm: ContrastiveLM, logprobs: bool, runs: list[int]) -> None:
    each = [free(**{"n": 1, "logprobs": logprobs} | changes) for changes in BY_ROW]
    requests = lm.generate(PROMPTS, each)
    Reference(lm).check_all(requests, each)
    assert [len(output.token_ids) for request in requests for output in request.outputs].count(9) == 9
    assert runs == [11] if lm.static_reason is None else max(runs) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": BIAS},
        {"logit_bias": BIAS, "repetition_penalty": 1.5, "frequency_penalty": 1.0, "temperature": 0.0, "n": 1},
        {"logit_bias": BIAS, "no_repeat_ngram_size": 2, "presence_penalty": 2.0, "outside_head": -3.0},
        {"bad_words": ("the", " house", "x"), "logit_bias": BIAS},
        {"repetition_penalty": 3.0, "contrast_strength": 0.0, "alpha": 0.0},
        {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "min_tokens": 5, "ignore_eos": False,
         "logit_bias": {1: 5.0}, "bad_words": ("in", "on")},
        {"frequency_penalty": 2.0, "top_k": 3, "outside_head": "shifted_good"},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0, "top_p": 0.5, "alpha": 0.001},
    ],
    ids=str,
)  # fmt: skip
def test_every_token_is_the_one_of_the_reference(lm: ContrastiveLM, changes: dict[str, Any]) -> None:
    params = free(**changes)
    requests = lm.generate(PROMPTS, params)
    Reference(lm).check_all(requests, [params] * len(PROMPTS))
    lists = free(**changes | {"logprobs": False})
    found = lm.generate(PROMPTS, lists)
    assert [[x.token_ids for x in each.outputs] for each in found] == [
        [x.token_ids for x in each.outputs] for each in requests
    ]


def test_other_differences_are_decoded_in_groups(lm: ContrastiveLM, runs: list[int]) -> None:
    """Outputs come back in the order of the prompts; equal prompts are told apart by their order in the whole call."""
    each = [
        free(logprobs=True, n=2),
        free(logprobs=False, contrast_strength=0.0),
        free(logprobs=True, n=2, logit_bias=BIAS),
        free(logprobs=False, bad_words=("the",), n=1),
        free(logprobs=True, n=2, top_k=4),
        free(logprobs=False, contrast_strength=0.0, alpha=0.5, presence_penalty=1.0),
        free(logprobs=True, n=2, stop_token_ids=(7, 8, 9), min_tokens=4),
        free(logprobs=True, n=2, contrast_strength=0.0),
    ]
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[3]]
    Reference(lm).check_all(lm.generate(prompts, each), each)
    if lm.static_reason is None:
        assert runs == [4, 6, 2, 1, 2, 2]


def test_the_text_of_a_bad_word_is_not_written(lm: ContrastiveLM) -> None:
    """Greedy decoding writes a word of several tokens, again and again; with the ban, its last token never follows."""
    params = free(n=1, temperature=0.0, max_tokens=40, logprobs=False)
    [before] = lm.generate([PROMPTS[0]], params)[0].outputs
    texts = [lm.tokenizer.decode(before.token_ids[at : at + 3]) for at in range(30)]
    word = next(
        text
        for text in texts
        if text.strip() == text and len(text) > 1 and len(lm.tokenizer.encode(text, add_special_tokens=False)) == 3
    )
    banned = free(n=1, temperature=0.0, max_tokens=40, logprobs=False, bad_words=(word,))
    requests = lm.generate([PROMPTS[0]], banned)
    Reference(lm).check_all(requests, [banned])
    assert word in before.text and word not in requests[0].outputs[0].text
    assert requests[0].outputs[0].token_ids != before.token_ids


def test_a_word_that_the_prompt_begins_is_not_banned(lm: ContrastiveLM) -> None:
    """As in vLLM: only tokens of the continuation count."""
    word = lm.tokenizer.decode([40, 41])
    assert lm.tokenizer.encode(word, add_special_tokens=False) == [40, 41]
    params = free(n=1, temperature=0.0, logit_bias={41: 100.0}, bad_words=(word,), repetition_penalty=1.0)
    [request] = lm.generate([[5, 40]], params)
    assert request.outputs[0].token_ids[0] == 41


def test_the_forms_of_a_bad_word(folders: dict[str, Path]) -> None:
    pair = ContrastiveLM(folders["good"]).pair

    def forms(*words: str) -> list[list[int]]:
        return pair.bad_word_ids(SamplingParams(bad_words=words))

    def encoded(text: str) -> list[int]:
        ids: list[int] = pair.tokenizer.encode(text, add_special_tokens=False)
        return ids

    assert forms("house") == [encoded("house"), encoded(" house")] and encoded("house") != encoded(" house")[1:]
    assert forms("  house") == forms("house"), "leading spaces do not count"
    assert forms("</s>") == [[1]] and len(forms("a", "b")) > 2
    assert encoded(" Z") == [*encoded(" "), *encoded("Z")] and forms("Z") == [encoded("Z")], "one ban serves both"


def _drawn(request: RequestOutput) -> list[tuple[list[int], list[tuple[float, float | None]]]]:
    """Return the tokens of each output, and their log-probabilities of being drawn and under BAD."""
    return [
        (output.token_ids, [(each.logprob, each.bad) for each in output.logprobs or ()]) for output in request.outputs
    ]


def test_unpenalised_rows_keep_their_tokens_bit_for_bit(exact: None, folders: dict[str, Path]) -> None:
    """A batch in which other rows have penalties or other parameters changes nothing."""
    lm = ContrastiveLM(folders["good"], folders["bad"])
    plain = free(alpha=0.02)
    expected = lm.generate(PROMPTS, plain)
    each = [free(alpha=0.02, repetition_penalty=1.5), *[plain] * (len(PROMPTS) - 2), free(n=1, top_k=3, seed=8)]
    found = lm.generate(PROMPTS, each)
    # GOOD's log-probability is computed by another function if there are penalties.
    assert list(map(_drawn, found[1:-1])) == list(map(_drawn, expected[1:-1])) and found[0] != expected[0]
    assert lm.generate(PROMPTS, [plain] * len(PROMPTS)) == expected
    neutral = free(alpha=0.02, repetition_penalty=1.0, presence_penalty=0.0, logit_bias={}, bad_words=None)
    assert neutral == plain and lm.generate(PROMPTS, neutral) == expected


def test_nothing_is_computed_for_unused_parameters() -> None:
    state = DeviceState(free(), [1], cache_rows=3, max_num_seqs=4, device=torch.device("cpu"))
    cache_row, position = torch.tensor([0, 1, 2, -1]), torch.tensor([4, 4, 4, 4])
    assert state.adjustment(cache_row, position) is None and state.banned(cache_row, position) is None
    sampling = state.sampling(cache_row, position, cache_row)
    assert all(one is other for one, other in zip(sampling[:7], state._sampling[:7], strict=True)), "not copied"
    assert state._history is None


@pytest.mark.parametrize(
    "changes", [{"repetition_penalty": 1.7, "frequency_penalty": 0.4}, {"logit_bias": BIAS}], ids=str
)
def test_explain_agrees_with_generate(lm: ContrastiveLM, changes: dict[str, Any]) -> None:
    params = free(n=1, bad_words=("the", "a"), presence_penalty=0.3, **changes)
    request = lm.generate([PROMPTS[3]], params)[0]
    prompt, output = request.prompt_token_ids, request.outputs[0]
    explanation = lm.explain(prompt + output.token_ids, params, prompt_length=len(prompt))
    assert output.logprobs is not None
    for token, found in zip(explanation.tokens[len(prompt) :], output.logprobs, strict=True):
        assert token.prediction is not None
        values = (token.prediction.logprob, token.prediction.good, token.prediction.bad)
        assert values == pytest.approx(found, abs=2e-4)
    wanted = Reference(lm).logprobs(prompt, output.token_ids, params)[0]
    for row, token in zip(wanted, explanation.tokens[len(prompt) :], strict=True):
        assert token.prediction is not None
        assert token.prediction.best_id == int(row.argmax())
        assert token.prediction.drawable == int((row > -torch.inf).sum())
    assert explanation.params["bad_words"] == ["the", "a"] and explanation.params["presence_penalty"] == 0.3
    explanation.to_html()


def test_a_noisy_bad_has_one_seed_per_batch(exact: None, folders: dict[str, Path], runs: list[int]) -> None:
    lm = ContrastiveLM(folders["good"], dropout=0.5)
    each = [free(n=1, seed=seed, top_k=top_k) for seed, top_k in ((1, 0), (2, 0), (1, 5), (2, 5))]
    found = lm.generate(PROMPTS[:4], each)
    assert runs == [2, 2]
    assert [lm.generate([prompt], own)[0] for prompt, own in zip(PROMPTS[:4], each, strict=True)] == found


def test_lists_and_values_that_are_refused(folders: dict[str, Path]) -> None:
    lm, bare = ContrastiveLM(folders["good"], folders["bad"]), ContrastiveLM(folders["bare"])
    one = free(n=1)
    for count, text in ((1, "1 entry"), (3, "3 entries")):
        with pytest.raises(InputError, match=rf"^sampling_params: has {text} for 2 prompts; give one SamplingParams"):
            lm.generate(PROMPTS[:2], [one] * count)
    with pytest.raises(InputError, match=r"^sampling_params\[1\]: is of type dict; use SamplingParams"):
        lm.generate(PROMPTS[:2], [one, {"n": 1}])
    with pytest.raises(InputError, match=r"^prompt 1: 250 tokens and max_tokens = 9 more exceed"):
        lm.generate([[5], [5] * 250], [free(max_tokens=200), one])
    with pytest.raises(InputError, match=r"^sampling_params\[1\]: n = 2: with temperature = 0 all continuations"):
        lm.generate(PROMPTS[:2], [one, free(n=2, temperature=0.0)])
    with pytest.raises(
        InputError, match=r"^sampling_params\[1\]: logit_bias: 300 is out of range; the vocabulary has 300 tokens"
    ):
        lm.generate(PROMPTS[:2], [one, free(logit_bias={300: 1.0})])
    with pytest.raises(InputError, match=r"^bad_words: words need a tokenizer; pass tokenizer=$"):
        bare.generate([[5]], SamplingParams(bad_words=("a",), max_tokens=5, contrast_strength=0.0))
    assert lm.generate([], []) == [] and len(lm.generate("a", [one])) == 1


def test_unequal_limits_fit_their_own_sequences() -> None:
    """The longest sequence has its own prompt and limit, not the greatest of each."""
    model = make_llama(0)
    lm = ContrastiveLM(model, make_llama(1), max_num_seqs=2)
    each = [free(n=1, max_tokens=200), free(n=1, max_tokens=5), free(n=2, max_tokens=None)]
    found = lm.generate([[5], [6] * 240, [7] * 250], each)
    assert [len(output.token_ids) for request in found for output in request.outputs] == [200, 5, 6, 6]
