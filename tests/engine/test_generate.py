"""generate(): tokens and log-probabilities against a recomputation, batches, dropout noise, and prompts.

The models are tiny and in float32, with peaked logits. Batches of another size round differently in the last bits,
which changes no token here.
"""

import functools
import operator
from pathlib import Path
from typing import Any

import pytest
import torch

import cdgen
from cdgen import CompletionOutput, ContrastiveLM, RequestOutput, SamplingParams
from cdgen.engine.requests import Prompts, batches, sequence_number
from cdgen.engine.static_backend import noise_seed
from cdgen.engine.text import decode_after
from cdgen.errors import InputError
from cdgen.models.llama import LlamaRunner
from cdgen_kernels import Samples, codes, make_sampling_tensors, reference
from tests.helpers.engines import continued
from tests.helpers.families import FAMILIES, family
from tests.helpers.sampling import free
from tests.helpers.tiny_models import SENTENCES, VOCABULARY, make_llama, make_tokenizer

PROMPTS = ["The quick brown", "Once", "How do you make bread? You take flour,", [5, 6, 7]]


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make models that are loaded during the test run in static batches, like models of other families."""
    monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")


def drawn(requests: list[RequestOutput]) -> list[list[list[int]]]:
    return [[output.token_ids for output in request.outputs] for request in requests]


# ------------------------------------------------------------------------------------------------ the numbers


def recomputed(
    good: torch.nn.Module,
    bad: torch.nn.Module,
    request: RequestOutput,
    output: CompletionOutput,
    params: SamplingParams,
) -> Samples:
    """Return the samples of every step by the definition, from full forward passes without a cache."""
    text = torch.tensor([request.prompt_token_ids + output.token_ids])
    with torch.inference_mode():
        logits = [model(text).logits[0, len(request.prompt_token_ids) - 1 : -1].double() for model in (good, bad)]
    steps = len(output.token_ids)
    sampling = make_sampling_tensors(
        steps,
        alpha=params.alpha,
        contrast_strength=params.contrast_strength,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        sequence=[sequence_number(request.prompt_token_ids, output.index)] * steps,
        position=[len(request.prompt_token_ids) + step for step in range(steps)],
    )
    outside = {"mask": (codes.MASK, 0.0), "shifted_good": (codes.SHIFTED_GOOD, 0.0)}.get(
        params.outside_head, (codes.CONSTANT, params.outside_head)
    )
    return reference.contrastive_sample(*logits, sampling, None, VOCABULARY, *outside, True)


def check_against_recomputation(
    good: torch.nn.Module,
    bad: torch.nn.Module,
    lm: ContrastiveLM,
    prompts: list[str | list[int]],
    params: SamplingParams,
) -> None:
    for request in lm.generate(prompts, params):
        assert [output.index for output in request.outputs] == list(range(params.n))
        for output in request.outputs:
            expected = recomputed(good, bad, request, output, params)
            assert output.token_ids == expected.token.tolist()
            ours = torch.tensor([[one.logprob, one.good, one.bad] for one in output.logprobs])
            torch.testing.assert_close(ours, torch.stack(expected[1:], 1), rtol=1e-4, atol=1e-4)
            assert output.cumulative_logprob == pytest.approx(float(expected.logprob.sum()), abs=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_logprobs_equal_a_full_recomputation(name, tokenizer) -> None:
    """Every family, prompts of different lengths, three continuations each, two batches."""
    good, bad = family(name, 0), family(name, 1)
    lm = ContrastiveLM(good, bad, tokenizer=tokenizer, max_num_seqs=7)
    check_against_recomputation(good, bad, lm, PROMPTS, free(n=3, logprobs=True, seed=11))


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.01, "temperature": 1.7},
        {"top_k": 2, "alpha": 0.01},
        {"top_p": 0.6, "alpha": 0.01},
        {"outside_head": "shifted_good"},
        {"outside_head": -3.0},
        {"contrast_strength": 0.5, "good_weight": 1.0, "temperature": 0.0, "n": 1},
    ],
    ids=str,
)
def test_every_parameter_reaches_the_op(changes, good, bad, lm) -> None:
    check_against_recomputation(good, bad, lm, PROMPTS, free(**{"n": 2, "logprobs": True} | changes))


def test_greedy_equals_a_loop_written_by_hand(good, bad, lm) -> None:
    (request,) = lm.generate("Once upon a time", free(temperature=0.0, max_tokens=30))
    text = list(request.prompt_token_ids)
    with torch.inference_mode():
        for _ in range(30):
            p_good, p_bad = (model(torch.tensor([text])).logits[0, -1].log_softmax(-1) for model in (good, bad))
            head = p_good >= p_good.max() + torch.log(torch.tensor(0.1))
            text.append(int(torch.where(head, p_good - p_bad, -torch.inf).argmax()))
    assert request.outputs[0].token_ids == text[len(request.prompt_token_ids) :]


# ------------------------------------------------------------------------------------------------ forks and batches


def test_each_prompt_is_computed_once(folders, monkeypatch, static) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    seen = []
    for model in (lm.pair.good, lm.pair.bad):
        original = model.last_logits
        monkeypatch.setattr(
            model, "last_logits", lambda ids, *rest, original=original: seen.append(ids.shape) or original(ids, *rest)
        )
    prompts = [[3] * 9, [4] * 7]
    lm.generate(prompts, free(n=5, max_tokens=6))
    assert seen[:2] == [(2, 9)] * 2, "prompts: once, not once per continuation"
    assert seen[2:] == [(10, 1)] * 2 * 5, "five more tokens, one at a time; no pass follows the sixth"


def test_each_prompt_is_computed_once_on_pages(folders, monkeypatch) -> None:
    seen = tokens_run(monkeypatch)
    lm = ContrastiveLM(folders["good"], folders["bad"])
    lm.generate([[3] * 9, [4] * 7], free(n=5, max_tokens=6))
    assert seen == [9 + 7] * 2 + [10] * 2 * 5
    seen.clear()
    ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=4).generate([[3] * 9], free(n=10, max_tokens=3))
    assert seen == [9] * 2 + [4] * 4 + [4] * 4 + [2] * 4, "the prompt is kept until its last continuation has started"


def tokens_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every pass of a runner adds its number of tokens."""
    seen, original = [], LlamaRunner.hidden_states

    def counted(self: LlamaRunner, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(ids))
        return original(self, ids, *rest)

    monkeypatch.setattr(LlamaRunner, "hidden_states", counted)
    return seen


def test_bad_is_not_run_without_contrast(folders, monkeypatch) -> None:
    seen = tokens_run(monkeypatch)
    lm = ContrastiveLM(folders["good"], folders["bad"])
    (request,) = lm.generate([[3] * 9], free(contrast_strength=0.0, logprobs=True))
    assert seen == [9] + [1] * 11, "GOOD alone"
    assert all(one.bad is None for one in request.outputs[0].logprobs)


def test_bad_is_not_run_without_contrast_in_a_static_batch(folders, monkeypatch, static) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    monkeypatch.setattr(lm.pair.bad, "last_logits", lambda *_: pytest.fail("BAD was run"))
    (request,) = lm.generate("Once", free(contrast_strength=0.0, logprobs=True))
    assert all(one.bad is None for one in request.outputs[0].logprobs)


def test_forked_continuations_equal_those_computed_alone(lm) -> None:
    (request,) = lm.generate("The lazy dog", free(n=4))
    for index, output in enumerate(request.outputs):
        alone = continued(lm, Prompts([request.prompt_token_ids]), [(0, index)], free())[0]
        assert alone.token_ids == output.token_ids
    assert len({tuple(output.token_ids) for output in request.outputs}) > 1


def test_batching_and_n_do_not_change_a_continuation(folders) -> None:
    outputs = [
        drawn(ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=size).generate(PROMPTS, free(n=8, seed=3)))
        for size in (64, 16, 8, 5, 3)
    ]
    assert all(output == outputs[0] for output in outputs)
    four = drawn(ContrastiveLM(folders["good"], folders["bad"]).generate(PROMPTS, free(n=4, seed=3)))
    assert four == [continuations[:4] for continuations in outputs[0]]


def test_static_batches_and_pages_draw_the_same_tokens(lm, folders, static) -> None:
    """Some sequences end while others continue."""
    other = ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=16)
    assert other.static_reason and not lm.static_reason
    params = free(n=6, max_tokens=20, stop_token_ids=tuple(range(40, 120)), no_repeat_ngram_size=2, alpha=0.01)
    expected = drawn(lm.generate(PROMPTS, params))
    assert drawn(other.generate(PROMPTS, params)) == expected
    assert len({len(tokens) for request in expected for tokens in request}) > 4


def test_sequences_keep_their_numbers_in_any_order(lm) -> None:
    params = free()
    ids = Prompts([lm.prompt_ids(prompt, "") for prompt in PROMPTS])
    forward, backward = [(p, 0) for p in range(4)], [(p, 0) for p in reversed(range(4))]
    assert [c.token_ids for c in continued(lm, ids, forward, params)] == [
        c.token_ids for c in reversed(continued(lm, ids, backward, params))
    ]
    assert drawn(lm.generate(PROMPTS, free(seed=1))) != drawn(lm.generate(PROMPTS, free(seed=2)))


def test_batches_hold_whole_prompts_if_they_fit() -> None:
    sequences = [(p, c) for p in range(5) for c in range(3)]
    assert [len(batch) for batch in batches(sequences, 3, 7)] == [6, 6, 3]
    assert [len(batch) for batch in batches(sequences, 3, 2)] == [2] * 7 + [1]
    assert functools.reduce(operator.iadd, batches(sequences, 3, 7), []) == sequences


# ------------------------------------------------------------------------------------------------ the dropout BAD


def test_dropout_bad_is_noisy_reproducible_and_leaves_the_users_generator_alone(folders, good) -> None:
    lm = ContrastiveLM(folders["good"], dropout=0.5)
    params = free(n=4, max_tokens=30, alpha=0.01)
    state = torch.get_rng_state()
    first = drawn(lm.generate(PROMPTS, params))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert drawn(lm.generate(PROMPTS, params)) == first
    assert drawn(ContrastiveLM(folders["good"], folders["good"]).generate(PROMPTS, params)) != first, "no noise"
    assert noise_seed(0, 1) != noise_seed(1, 0) and noise_seed(0, sequence_number([1])) != noise_seed(0, 0)


def test_dropout_noise_differs_from_batch_to_batch(folders, static) -> None:
    """Both prompts are the same tokens, so BAD's logits can differ only by their noise."""
    lm = ContrastiveLM(folders["good"], dropout=0.5)
    seen = []
    original = lm.pair.bad.last_logits
    lm.pair.bad.last_logits = lambda *args: seen.append(original(*args)) or seen[-1]
    for prompt in (0, 1):
        continued(lm, Prompts([[5, 6, 7]] * 2), [(prompt, 0)], free(max_tokens=1))
    assert not torch.equal(*seen)


# ------------------------------------------------------------------------------------------------ prompts and texts


def test_prompts_of_every_kind(lm) -> None:
    as_text = lm.generate("Once upon", free())
    ids = lm.tokenizer("Once upon")["input_ids"]
    assert drawn(as_text) == drawn(lm.generate([ids], free())) == drawn(lm.generate(ids, free()))
    assert as_text[0].prompt == "Once upon" and as_text[0].prompt_token_ids == ids
    mixed = lm.generate(["Once upon", ids], free())
    assert mixed[1].prompt == "<s>Once upon"
    assert lm.generate([], free()) == []
    assert lm.generate("", free())[0].prompt_token_ids == [0]


def test_error_messages_name_the_prompt(lm, good, bad) -> None:
    with pytest.raises(
        InputError, match="prompt 1: 250 tokens and max_tokens = 12 more exceed the models' 256 positions"
    ):
        lm.generate([[5], [5] * 250], free())
    with pytest.raises(InputError, match="prompt 0: token id 300 is out of range"):
        lm.generate([300, 5], free())
    with pytest.raises(InputError, match="prompt 0: token id -1"):
        lm.generate([-1, 5], free())
    without = make_llama(0)
    without.config.bos_token_id = None
    nameless = ContrastiveLM(without, tokenizer=make_tokenizer(bos=False))
    with pytest.raises(InputError, match="prompt 1: is empty"):
        nameless.generate(["a", ""], free(contrast_strength=0.0))
    with pytest.raises(InputError, match="there is no BAD; pass bad="):
        nameless.generate("a", free())
    with pytest.raises(InputError, match="there is no tokenizer"):
        ContrastiveLM(good, bad).generate("a", free())
    with pytest.raises(InputError, match="give one of them"):
        ContrastiveLM(good, bad, dropout=0.3)


def test_text_is_what_the_new_tokens_add(lm) -> None:
    for request in lm.generate(SENTENCES, free(n=3)):
        for output in request.outputs:
            whole = lm.tokenizer.decode(request.prompt_token_ids + output.token_ids, skip_special_tokens=True)
            assert request.prompt + output.text == whole
    ids = lm.tokenizer("né", add_special_tokens=False)["input_ids"]
    assert decode_after(lm.tokenizer, ids[:2], ids[2:], True) == "é"  # the prompt ends within a character
    assert "</s>" in decode_after(lm.tokenizer, [5], [1, 6], False) and "</s>" not in decode_after(
        lm.tokenizer, [5], [1, 6], True
    )


def test_the_tokenizers_own_end_of_text_is_not_part_of_a_prompt(folders) -> None:
    from tokenizers import processors

    closing = make_tokenizer()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    lm = ContrastiveLM(folders["good"], folders["bad"], tokenizer=closing)
    assert lm.prompt_ids("Once", "")[-1] != 1 and 1 not in lm.prompt_ids("Once</s>", "")
    assert lm.prompt_ids("Once</s>", "", parse_special=True)[-1] == 1


def test_progress_counts_the_tokens_of_the_outputs(folders) -> None:
    seen = []
    lm = ContrastiveLM(folders["good"], folders["bad"])
    requests = lm.generate(PROMPTS, SamplingParams(n=3, max_tokens=40), progress=seen.append)
    assert sum(seen) == sum(len(o.token_ids) for r in requests for o in r.outputs)


def test_public_names() -> None:
    assert {"ContrastiveLM", "SamplingParams", "RequestOutput", "CompletionOutput", "__version__"} <= set(dir(cdgen))
    assert [getattr(cdgen, name).__name__ for name in cdgen.__all__ if name != "__version__"] == [
        name for name in cdgen.__all__ if name != "__version__"
    ]
    with pytest.raises(AttributeError):
        cdgen.nothing  # noqa: B018


def test_real_model_writes_text(smollm2) -> None:
    lm = ContrastiveLM(smollm2, layers=15)
    (request,) = lm.generate(
        "The capital of France is", SamplingParams(max_tokens=6, temperature=0.0, contrast_strength=0.0, alpha=0.0)
    )
    assert "Paris" in request.outputs[0].text
