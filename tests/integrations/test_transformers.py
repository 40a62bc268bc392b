"""The three ways into transformers' `generate` draw from the op's distribution, and refuse what they cannot do."""

import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    LlamaForSequenceClassification,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from cdgen import ContrastiveLM, SamplingParams
from cdgen.errors import InputError
from cdgen.integrations.transformers import ContrastiveLogitsProcessor, contrastive_generate
from cdgen_kernels import RowFault
from tests.helpers.chi_square import FALSE_ALARM, p_value
from tests.helpers.families import family, ids
from tests.helpers.recomputation import all_logits, distribution
from tests.helpers.tiny_models import VOCABULARY

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "custom_generate"
WIDTH, PAD = 9, 1
CONTRAST = ("alpha", "contrast_strength", "good_weight", "outside_head")


class Case:
    """Two models, and a batch of prompts that are padded on the left."""

    def __init__(self, name: str) -> None:
        self.good, self.bad = family(name, 0), family(name, 1)
        self.mask = torch.ones(3, WIDTH, dtype=torch.long)
        self.mask[0, :4] = self.mask[2, :1] = 0
        self.ids = ids(3, WIDTH).masked_fill(self.mask == 0, PAD)
        self.prompts = [row[kept == 1].tolist() for row, kept in zip(self.ids, self.mask, strict=True)]
        self.inputs = {"input_ids": self.ids, "attention_mask": self.mask, "pad_token_id": PAD}


@pytest.fixture(scope="module")
def cases() -> Callable[[str], Case]:
    """Return a function that makes the case of a family once."""
    return functools.cache(Case)


@pytest.fixture(autouse=True)
def modules_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the copies that transformers makes of a custom_generate folder out of the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def as_function(case: Case, **options: Any) -> Any:
    return case.good.generate(
        **case.inputs, custom_generate=contrastive_generate, bad_model=case.bad, **{"top_k": 0} | options
    )


def as_folder(case: Case, **options: Any) -> Any:
    return case.good.generate(
        **case.inputs,
        custom_generate=str(FOLDER),
        trust_remote_code=True,
        bad_model=case.bad,
        **{"top_k": 0} | options,
    )


def as_processor(case: Case, **options: Any) -> Any:
    contrast = {name: options.pop(name) for name in CONTRAST if name in options}
    contrast["temperature"] = options.get("temperature", 1.0)
    processor = ContrastiveLogitsProcessor(case.bad, good=case.good, attention_mask=case.mask, **contrast)
    return case.good.generate(**case.inputs, logits_processor=[processor], **{"top_k": 0} | options)


FORMS = [as_function, as_folder, as_processor]


# gemma2 has a sliding window that the prompts exceed; gpt_neo's attention is wrong on a static cache.
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neo"])
def test_all_forms_decode_the_same_tokens_greedily(name: str, cases: Callable[[str], Case]) -> None:
    case = cases(name)
    params = SamplingParams(max_tokens=12, temperature=0)
    exact = [
        request.outputs[0].token_ids for request in ContrastiveLM(case.good, case.bad).generate(case.prompts, params)
    ]
    for form in FORMS:
        found = form(case, max_new_tokens=12)[:, WIDTH:].tolist()
        assert [row[: len(ids)] for row, ids in zip(found, exact, strict=True)] == [list(ids) for ids in exact]
        assert all(set(row[len(ids) :]) <= {PAD} for row, ids in zip(found, exact, strict=True))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_k": 4, "contrast_strength": 0.5, "good_weight": 1.5, "alpha": 0.02},
    {"top_p": 0.7, "outside_head": "shifted_good"},
    {"outside_head": -3.0, "temperature": 1.5, "alpha": 0.3},
]


# The folder calls the function, so one setting suffices for it.
SAMPLED = [(form, options) for form in (as_function, as_processor) for options in SETTINGS] + [(as_folder, SETTINGS[1])]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("form", "options"), SAMPLED)
def test_all_forms_sample_from_the_distribution_of_the_op(
    name: str, form: Callable[..., Any], options: dict[str, Any], cases: Callable[[str], Case]
) -> None:
    case, n = cases(name), 400
    set_seed(5)
    drawn = form(case, do_sample=True, max_new_tokens=2, num_return_sequences=n, eos_token_id=None, **options)
    params = SamplingParams(**options)
    for prompt, tokens in zip(case.prompts, drawn[:, WIDTH:].reshape(3, n, 2).numpy(), strict=True):
        assert p_value(tokens[:, 0], exact(case, prompt, params)) > FALSE_ALARM
        first = int(np.bincount(tokens[:, 0]).argmax())
        second = tokens[tokens[:, 0] == first, 1]  # these models have read a token with their caches
        assert p_value(second, exact(case, [*prompt, first], params)) > FALSE_ALARM


def exact(case: Case, prompt: list[int], params: SamplingParams) -> torch.Tensor:
    """Return the probabilities of the next token [V], computed in float64 from both models' logits."""
    good, bad = (all_logits(model, [*prompt, 0])[-1:] for model in (case.good, case.bad))
    return distribution(good, bad, params)[0][0].exp()


def test_a_seed_draws_what_ContrastiveLM_draws(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    params = SamplingParams(n=2, max_tokens=10, seed=7, temperature=0.8)
    outputs = ContrastiveLM(case.good, case.bad).generate(case.prompts, params)
    expected = [output.token_ids for request in outputs for output in request.outputs]
    found = as_function(case, do_sample=True, temperature=0.8, max_new_tokens=10, seed=7, num_return_sequences=2)
    rows = found[:, WIDTH:].tolist()
    assert [row[: len(ids)] for row, ids in zip(rows, expected, strict=True)] == [list(ids) for ids in expected]


def test_without_a_seed_draws_follow_the_generator_of_torch(cases: Callable[[str], Case]) -> None:
    found = []
    for seed in (1, 1, 2):
        set_seed(seed)
        found.append(as_function(cases("llama"), do_sample=True, max_new_tokens=8, temperature=2.0))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "options",
    [
        {"suppress_tokens": [252, 166]},
        {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 6, "eos_token_id": list(range(2, 150))},
        {"bad_words_ids": [[7], [31, 8]], "forced_eos_token_id": 1},
        {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(40 * batch, 40 * batch + 40))},
    ],
)
def test_other_processors_change_goods_logits(options: dict[str, Any], cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    changed = as_function(case, max_new_tokens=10, **options)
    assert torch.equal(changed, as_processor(case, max_new_tokens=10, **options))
    assert not torch.equal(changed, as_function(case, max_new_tokens=10))


def test_generation_ends_at_end_of_text_and_at_criteria(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    whole = as_function(case, max_new_tokens=10, eos_token_id=None)
    end = int(whole[1, WIDTH + 3])
    stopped = as_function(case, max_new_tokens=10, eos_token_id=end)
    for row, before in zip(stopped[:, WIDTH:].tolist(), whole[:, WIDTH:].tolist(), strict=True):
        length = before.index(end) + 1 if end in before else 10
        assert row == (before[:length] + [PAD] * 10)[: len(row)]
    at_two = lambda ids, scores: torch.full((len(ids),), ids.shape[1] == WIDTH + 2)  # noqa: E731
    assert torch.equal(
        as_function(case, max_new_tokens=10, eos_token_id=None, stopping_criteria=[at_two]), whole[:, : WIDTH + 2]
    )


def test_the_output_has_scores_logits_and_a_cache(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    options = {"temperature": 0.7, "top_k": 6, "do_sample": True, "max_new_tokens": 3}
    keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    output = as_function(case, seed=3, **options, **keep)
    assert torch.equal(output.sequences, as_function(case, seed=3, **options))
    params = SamplingParams(temperature=0.7, top_k=6)
    for row, prompt in enumerate(case.prompts):
        for step in range(3):
            text = [*prompt, *output.sequences[row, WIDTH : WIDTH + step].tolist()]
            torch.testing.assert_close(
                output.scores[step][row].softmax(0).double(), exact(case, text, params), atol=2e-5, rtol=1e-3
            )
            torch.testing.assert_close(
                output.logits[step][row].double(), all_logits(case.good, [*text, 0])[-1], atol=1e-4, rtol=1e-4
            )
    transitions = case.good.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    assert transitions.isfinite().all()
    assert output.cache.get_seq_length() == WIDTH + 2


class Recorder(BaseStreamer):
    """Keeps what a streamer receives, and may interrupt the generation."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.received: list[torch.Tensor] = []
        self.ended, self._interrupt_at = False, interrupt_at

    def put(self, value: torch.Tensor) -> None:
        self.received.append(value)
        if len(self.received) == self._interrupt_at:
            raise KeyboardInterrupt

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(("form", "name"), [(as_function, "token_streamer"), (as_folder, "streamer")])
def test_a_streamer_receives_prompts_and_tokens(
    form: Callable[..., Any], name: str, cases: Callable[[str], Case]
) -> None:
    streamer = Recorder()
    found = form(cases("llama"), max_new_tokens=5, **{name: streamer})
    prompts, *tokens = streamer.received
    assert streamer.ended and torch.equal(torch.cat([prompts, torch.stack(tokens, 1)], 1), found)


def test_an_interrupt_leaves_models_and_processor_usable(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    expected = as_function(case, max_new_tokens=6)
    with pytest.raises(KeyboardInterrupt):
        as_function(case, max_new_tokens=6, token_streamer=Recorder(interrupt_at=4))
    assert torch.equal(as_function(case, max_new_tokens=6), expected)

    processor = ContrastiveLogitsProcessor(case.bad, attention_mask=case.mask)
    longer = torch.cat([case.ids, case.ids[:, -1:]], 1)
    processor(case.ids, torch.zeros(3, VOCABULARY))
    # The first layer has extended its cache when the second one is interrupted.
    hook = case.bad.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        processor(longer, torch.zeros(3, VOCABULARY))
    hook.remove()
    anew = ContrastiveLogitsProcessor(case.bad, attention_mask=torch.nn.functional.pad(case.mask, (0, 1), value=1))
    torch.testing.assert_close(processor(longer, torch.zeros(3, VOCABULARY)), anew(longer, torch.zeros(3, VOCABULARY)))


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class Recomputing(LogitsProcessor):
    """What ContrastiveLogitsProcessor computes at the default settings, without a cache."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = self._case.mask.repeat_interleave(len(input_ids) // 3, 0)
        mask = torch.nn.functional.pad(mask, (0, input_ids.shape[1] - WIDTH), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        bad = self._case.bad(input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        good = scores.log_softmax(1)
        return torch.where(good >= good.amax(1, keepdim=True) + np.log(0.1), good - bad.log_softmax(1), -torch.inf)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "do_sample": True}])
def test_the_cache_of_the_processor_follows_beams(options: dict[str, Any], cases: Callable[[str], Case]) -> None:
    case = cases("gpt2")
    processors = (Recomputing(case), ContrastiveLogitsProcessor(case.bad, good=case.good, attention_mask=case.mask))
    found = []
    for processor in processors:
        set_seed(0)
        found.append(case.good.generate(**case.inputs, max_new_tokens=12, logits_processor=[processor], **options))
    assert torch.equal(*found)


def test_the_processor_can_be_used_again_and_in_assisted_generation(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    processor = ContrastiveLogitsProcessor(case.bad)
    for options in ({}, {"prompt_lookup_num_tokens": 3}):
        for row in (1, 2, 1):
            inputs = {"input_ids": torch.tensor([case.prompts[row] * 2]), "max_new_tokens": 12, **options}
            found = case.good.generate(**inputs, pad_token_id=PAD, logits_processor=[processor])
            inputs.pop("prompt_lookup_num_tokens", None)
            expected = case.good.generate(
                **inputs, pad_token_id=PAD, custom_generate=contrastive_generate, bad_model=case.bad
            )
            assert torch.equal(found, expected)


@pytest.mark.slow
def test_static_caches_are_compiled_where_transformers_would(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(backend=backend, fullgraph=True, mode=None)
    config._compile_all_devices = True
    found = as_function(case, max_new_tokens=6, cache_implementation="static", compile_config=config)
    assert len(graphs) == 2  # one per model: no step is compiled again
    assert torch.equal(found, as_function(case, max_new_tokens=6))


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("num_beams = 3", {"num_beams": 3}),
    ("contrastive_generate samples or decodes greedily, without assisted", {"prompt_lookup_num_tokens": 2}),
    ("min_p: use alpha", {"min_p": 0.1, "do_sample": True}),
    ("typical_p", {"typical_p": 0.9, "do_sample": True}),
    ("top_h", {"top_h": 0.4, "do_sample": True}),
    ("epsilon_cutoff", {"epsilon_cutoff": 0.1, "do_sample": True}),
    ("eta_cutoff", {"eta_cutoff": 0.1, "do_sample": True}),
    ("renormalize_logits", {"renormalize_logits": True}),
    ("use_cache = False", {"use_cache": False}),
    ("cache_implementation = 'offloaded'", {"cache_implementation": "offloaded"}),
    ("prefill_chunk_size", {"prefill_chunk_size": 4}),
    ("output_attentions", {"output_attentions": True, "return_dict_in_generate": True}),
    ("(cache|past_key_values): ", {"past_key_values": DynamicCache()}),
    ("logits_processor: TemperatureLogitsWarper needs", {"logits_processor": [TemperatureLogitsWarper(0.5)]}),
    (
        "logits_processor: TemperatureLogitsWarper is given twice",
        {"logits_processor": [TemperatureLogitsWarper(0.5)], "temperature": 0.7, "do_sample": True},
    ),
    ("alpha = 2", {"alpha": 2.0}),
    ("outside_head = 'none'", {"outside_head": "none"}),
    ("seed = -1", {"seed": -1}),
    ("token_streamer = 5: give a streamer", {"token_streamer": 5}),
    ("bad_model: is of type str", {"bad_model": "bad"}),
]


@pytest.mark.parametrize(("message", "options"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    message: str, options: dict[str, Any], cases: Callable[[str], Case]
) -> None:
    case = cases("llama")
    options = {"bad_model": case.bad, "max_new_tokens": 4} | options
    with pytest.raises(InputError, match=f"^{message}"):
        case.good.generate(**case.inputs, custom_generate=contrastive_generate, **options)


def test_prompts_must_be_token_ids_padded_on_the_left(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    options = {"custom_generate": contrastive_generate, "bad_model": case.bad, "max_new_tokens": 4}
    with pytest.raises(InputError, match=r"^inputs_embeds: "):
        case.good.generate(inputs_embeds=torch.zeros(1, 4, 64), **options)
    with pytest.raises(InputError, match=r"^attention_mask: ends with padding"):
        case.good.generate(input_ids=case.ids, attention_mask=case.mask.flip(1), **options)
    kinds = "attention_mask, position_ids"
    for message, prompts in (
        (f"{kinds}: shape (3, 4) does not fit prompts of (3, 9)", {"attention_mask": case.mask[:, -4:]}),
        (f"{kinds}: shape (3, 7) does not fit", {"attention_mask": case.mask[:, 2:]}),
        (f"{kinds}: shape (1, 9) does not fit", {"attention_mask": case.mask[:1]}),
        (f"{kinds}: shape (3, 4) does not fit", {"position_ids": case.ids[:, -4:]}),
        ("input_ids: are empty", {"input_ids": case.ids[:1, :0]}),
        (f"input_ids: token id {VOCABULARY} is out of range", {"input_ids": case.ids.clamp(min=VOCABULARY)}),
        ("input_ids: token id -1 is out of range", {"input_ids": case.ids.clamp(max=-1)}),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            case.good.generate(**{"input_ids": case.ids} | prompts, **options)
    with pytest.raises(TypeError, match=r"missing 1 required keyword-only argument: 'bad_model'$"):
        case.good.generate(input_ids=case.ids, custom_generate=contrastive_generate, max_new_tokens=4)


def test_the_folder_refuses_what_generate_would_drop(
    cases: Callable[[str], Case], tokenizer: PreTrainedTokenizerFast
) -> None:
    case = cases("llama")
    with pytest.raises(ValueError, match=r"^assistant_model, synced_gpus"):
        as_folder(case, assistant_model=case.bad)
    with pytest.raises(ValueError, match=r"^stop_strings: pass the tokenizer"):
        as_folder(case, stop_strings="a")
    whole = as_folder(case, max_new_tokens=8, eos_token_id=None)
    token = tokenizer.decode(whole[1, WIDTH + 1])
    ended = as_folder(case, max_new_tokens=8, stop_strings=[token], tokenizer=tokenizer)
    assert ended[1, WIDTH + 2 :].eq(PAD).all() and torch.equal(ended[1, : WIDTH + 2], whole[1, : WIDTH + 2])


def test_the_processor_needs_the_mask_of_its_prompts(cases: Callable[[str], Case]) -> None:
    case = cases("llama")

    def generate(ids: torch.Tensor, **options: Any) -> None:
        processor = options.pop("processor", None) or ContrastiveLogitsProcessor(case.bad, **options)
        case.good.generate(input_ids=ids, max_new_tokens=3, pad_token_id=PAD, logits_processor=[processor])

    with pytest.raises(InputError, match=r"^attention_mask: required for more than one prompt"):
        generate(case.ids)
    with pytest.raises(InputError, match=r"^attention_mask: must be"):
        generate(case.ids, attention_mask=case.mask.flip(1))
    with pytest.raises(InputError, match=r"^attention_mask: has shape"):
        generate(case.ids[:2], attention_mask=case.mask)
    for others in (case.mask[:, -3:], torch.ones(3, WIDTH + 1), case.mask[1:2]):  # the last one: 3 beams of a prompt
        with pytest.raises(InputError, match=r"^attention_mask: has shape .* does not fit prompts of \(3, 9\)"):
            generate(case.ids, attention_mask=others)
    processor = ContrastiveLogitsProcessor(case.bad, attention_mask=case.mask)
    with pytest.raises(InputError, match=r"^input_ids: token id 300 is out of range"):
        processor(case.ids.clamp(min=300), torch.zeros(3, VOCABULARY))
    processor = ContrastiveLogitsProcessor(case.bad, attention_mask=case.mask)
    generate(case.ids, processor=processor)
    with pytest.raises(InputError, match=r"^attention_mask: belongs to other prompts"):
        generate(case.ids.flip(0), processor=processor)
    for mask in (case.mask.tolist(), case.mask.numpy()):
        generate(case.ids, attention_mask=mask)
    with pytest.raises(InputError, match=r"^attention_mask: must be"):
        generate(case.ids, attention_mask=case.mask[:, :0])
    processor = ContrastiveLogitsProcessor(case.bad)
    generate(case.ids[1:2], processor=processor)
    with pytest.raises(InputError, match=r"^attention_mask: required for more than one prompt"):
        generate(case.ids, processor=processor)  # what it has read before belongs to another call


def test_sequences_beyond_the_positions_of_a_model_are_refused(cases: Callable[[str], Case]) -> None:
    """Before anything is drawn, or when BAD would have to read them: padding takes no positions."""
    case = cases("gpt2")
    case.bad.config.n_positions = WIDTH + 3  # the models keep the embeddings of all their positions
    try:
        as_function(case, max_new_tokens=3)
        with pytest.raises(InputError, match=r"^bad_model \(.*\): has 12 positions, but a sequence may have 13 tokens"):
            as_function(case, max_new_tokens=4)
        as_processor(case, max_new_tokens=4)  # does not read the last token
        with pytest.raises(InputError, match=r"^bad \(.*\): has 12 positions"):
            as_processor(case, max_new_tokens=6, eos_token_id=None)
    finally:
        case.bad.config.n_positions = 256


def test_a_bad_must_be_a_causal_model_in_evaluation_mode(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    base, classifier = case.bad.model, LlamaForSequenceClassification(case.bad.config)
    training = family("gpt2", 1).train()
    double = family("llama", 1).double()
    for bad, reason in (
        (base, "LlamaModel is not a causal language model; load it with AutoModelForCausalLM"),
        (classifier, "LlamaForSequenceClassification is not a causal language model"),
        (training, "is in training mode; call its method"),
        (double, "its logits are float64; convert it to float32"),
    ):
        for form in forms_with(case.good, bad):
            with pytest.raises(InputError, match=rf"^bad(_model)? \(.*\): {reason}"):
                form()


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def forms_with(good: PreTrainedModel, bad: PreTrainedModel) -> list[Callable[[], torch.Tensor]]:
    """Return the three forms for one unpadded prompt, as functions."""
    options = {"input_ids": ids(1, 6), "attention_mask": torch.ones(1, 6, dtype=torch.long), "max_new_tokens": 4}
    return [
        lambda: good.generate(**options, custom_generate=contrastive_generate, bad_model=bad),
        lambda: good.generate(**options, custom_generate=str(FOLDER), trust_remote_code=True, bad_model=bad),
        lambda: good.generate(**options, logits_processor=[ContrastiveLogitsProcessor(bad, good=good)]),
    ]


def test_a_bad_of_another_vocabulary_is_refused_by_name(folders: dict[str, Path]) -> None:
    good, other = load(folders["good"]), load(folders["other"])  # both score 300 tokens
    assert other.config.vocab_size == good.config.vocab_size == VOCABULARY
    for form in forms_with(good, other):
        with pytest.raises(
            InputError, match=r"^bad(_model)? \(.*other\): the models do not share a vocabulary: id \d+"
        ):
            form()
    wide = load(folders["wide"])  # the same tokenizer, and a padded output layer
    for form in forms_with(good, wide):
        assert form().max() < VOCABULARY
    weaker = load(folders["wide"])
    wide.lm_head.weight.data[VOCABULARY:] *= 10  # padding would be drawn, if it counted
    weaker.model.norm.weight.data *= 0.5
    for form in forms_with(wide, weaker):
        assert form().max() < VOCABULARY
    wide.config.name_or_path = ""  # now without a tokenizer
    for form in forms_with(good, wide):
        with pytest.raises(InputError, match=r"^bad(_model)? \(LlamaForCausalLM\): .* scores 320 tokens, GOOD 300"):
            form()
    processor = ContrastiveLogitsProcessor(wide)
    with pytest.raises(InputError, match=r"^bad \(LlamaForCausalLM\): .* scores 320 tokens, GOOD 300"):
        good.generate(input_ids=ids(1, 6), max_new_tokens=4, logits_processor=[processor])


def test_a_model_that_brings_the_folder_generates_with_it(
    folders: dict[str, Path], tmp_path: Path, bad: PreTrainedModel
) -> None:
    shutil.copytree(folders["good"], tmp_path / "good")
    shutil.copytree(FOLDER / "custom_generate", tmp_path / "good" / "custom_generate")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "good", trust_remote_code=True)
    prompt = {"input_ids": ids(1, 6), "max_new_tokens": 4}
    expected = load(folders["good"]).generate(**prompt, custom_generate=contrastive_generate, bad_model=bad)
    assert torch.equal(model.generate(**prompt, bad_model=bad), expected)


def test_logits_that_allow_no_token_are_reported(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    with pytest.raises(RowFault, match=r"^row 1: "):
        as_function(case, max_new_tokens=4, logits_processor=[NanInRowOne()])


class NanInRowOne(LogitsProcessor):
    """Sets a logit of row 1 to NaN."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[1, 3] = torch.nan
        return scores


@pytest.mark.slow
def test_the_page_of_the_folder(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    page = FOLDER / "README.md"
    assert "custom_generate" in ModelCard.load(page).data.tags  # the hub finds such repositories by this tag
    [program] = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    program = program.replace('"path/to/custom_generate"', repr(str(FOLDER)))
    for name in ("good", "bad"):
        program = program.replace(f'"path/to/{name}"', repr(str(folders[name])))
    exec(compile(program, str(page), "exec"), {})
    assert len(capsys.readouterr().out) > 20
