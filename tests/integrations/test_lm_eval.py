"""The model type `cdgen` of lm-evaluation-harness.

Tests of what the class itself does run without lm-eval too, with a stand-in for its base class. The others compare with
lm-eval's own class for transformers models, and need it.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cdgen import SamplingParams
from cdgen.errors import InputError
from cdgen.evaluation.scoring.contrastive_scorer import contrastive_logprobs
from cdgen.integrations.lm_eval_options import generation_params, max_num_seqs, pair_params, split_stops, stop_strings
from tests.helpers.tiny_models import SENTENCES, make_llama, make_tokenizer

MODULE = "cdgen.integrations.lm_eval"
INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not INSTALLED, reason='lm-eval is not installed; pip install ".[lm-eval]"')
GREEDY = {"until": ["\n"], "max_gen_toks": 12}

# Context and continuation. Several share a context; some have no context, or spaces, characters of several bytes or
# special tokens at the border; the context of the last ones exceeds the models' 256 positions.
LONG = " ".join(SENTENCES * 6)
PAIRS = [
    ("", "The quick brown fox"),
    ("", "x"),
    ("Once upon a time", " there was a small house"),
    ("Once upon a time", " there"),
    ("Once upon a time", " jumps"),
    ("Once upon a time ", "there was a small house"),
    ("Once upon a time  \n", "there"),
    ("The lazy d", "og."),
    ("Það er kalt", " í húsinu við ána"),
    ("猫が", "いる。"),
    ("<s>You take flour", ", water"),
    ("You take</s>", " salt"),
    (LONG, " the river"),
    (LONG, " a cat"),
]


class Request(NamedTuple):
    """What lm-eval passes for a request."""

    args: tuple[Any, ...]


class Standin:
    """The part of lm-eval's TemplateLM that the class uses, for a context that is not empty."""

    def loglikelihood(self, requests: list[Request]) -> list[tuple[float, bool]]:
        encoded = []
        for context, continuation in (request.args for request in requests):
            before = self.tok_encode(context)
            encoded.append(((context, continuation), before, self.tok_encode(context + continuation)[len(before) :]))
        return self._loglikelihood_tokens(encoded)


def standins() -> dict[str, ModuleType]:
    """Return modules that stand in for those of lm-eval."""
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry", "lm_eval.models")
    modules = {name: ModuleType(name) for name in names}
    vars(modules["lm_eval.api.model"])["TemplateLM"] = Standin
    vars(modules["lm_eval.api.registry"])["register_model"] = lambda name: lambda found: found
    return modules


@pytest.fixture(scope="module")
def cdgen_lm() -> Iterator[Any]:
    """Return the class CdgenLM."""
    if INSTALLED:
        yield importlib.import_module(MODULE).CdgenLM
        return
    modules = standins()
    sys.modules.update(modules)
    yield importlib.import_module(MODULE).CdgenLM
    for name in (*modules, MODULE):
        del sys.modules[name]


@pytest.fixture(scope="module")
def lm(cdgen_lm: Any, folders: dict[str, Path]) -> Any:
    return cdgen_lm(str(folders["good"]))


@pytest.fixture(scope="module")
def hf(folders: dict[str, Path]) -> Any:
    """Return the same model in lm-eval's own class."""
    huggingface = importlib.import_module("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=str(folders["good"]), device="cpu", dtype="float32", batch_size=3)


def requests(items: list[Any]) -> list[Any]:
    return [Request(item if isinstance(item, tuple) else (item,)) for item in items]


def test_log_probabilities_are_those_of_the_models_logits(lm: Any) -> None:
    pairs = [("Once upon a time", " there was"), ("Once upon a time", " jumps"), ("You take", " salt and time.")]
    module, tokenizer = lm.lm.pair.good.module, lm.tokenizer
    for (context, continuation), found in zip(pairs, lm.loglikelihood(requests(pairs)), strict=True):
        ids = tokenizer(context + continuation, return_tensors="pt")["input_ids"]
        first = len(tokenizer(context)["input_ids"])
        with torch.inference_mode():
            logprobs = module(ids).logits[0].log_softmax(1)
        expected = logprobs[first - 1 : -1].gather(1, ids[0, first:, None]).sum()
        assert found[0] == pytest.approx(float(expected), abs=1e-4)


def test_greedy_continuations_are_recognised_and_generated(lm: Any, folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["good"])
    context = SENTENCES[0]
    ids = lm.tokenizer(context, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
    text = lm.tokenizer.decode(new, skip_special_tokens=True)
    stop = text[len(text) // 2 :][:3]
    generated = lm.generate_until(
        requests([(context, {"max_gen_toks": 12}), (context, {"max_gen_toks": 12, "until": [stop]})])
    )
    assert generated == [text, text.split(stop)[0]]
    whole = ((context, text), ids[0].tolist(), new.tolist())
    other = ((context, text), ids[0].tolist(), [*new.tolist()[:-1], 5 if new[-1] != 5 else 6])
    assert [greedy for _, greedy in lm._loglikelihood_tokens([whole, other])] == [True, False]


def test_a_pair_is_scored_and_decoded(cdgen_lm: Any, folders: dict[str, Path]) -> None:
    pair = cdgen_lm(str(folders["good"]), bad=str(folders["bad"]), contrast_strength=0.8, alpha=0.2)
    assert pair.params == SamplingParams(outside_head="shifted_good", contrast_strength=0.8, alpha=0.2)
    context, continuation = "Once upon a time", " there was a small house"
    ids = pair.tokenizer(context + continuation, return_tensors="pt")["input_ids"]
    first = len(pair.tokenizer(context)["input_ids"])
    with torch.inference_mode():
        outputs = [model.module(ids).logits[0] for model in (pair.lm.pair.good, pair.lm.pair.bad)]
    logprobs = contrastive_logprobs(*outputs, pair.params)
    expected = logprobs[first - 1 : -1].gather(1, ids[0, first:, None]).sum()
    ((found, _),) = pair.loglikelihood(requests([(context, continuation)]))
    assert found == pytest.approx(float(expected), abs=1e-4)

    greedy = SamplingParams(
        outside_head="shifted_good", contrast_strength=0.8, alpha=0.2, temperature=0, max_tokens=12, stop=("\n",)
    )
    expected_text = pair.lm.generate(context, greedy)[0].outputs[0].text
    assert pair.generate_until(requests([(context, GREEDY)])) == [expected_text]
    sampled = pair.generate_until(requests([(context, GREEDY | {"temperature": 1.0})] * 3))
    assert len(set(sampled)) > 1


def test_a_long_context_loses_its_start(lm: Any) -> None:
    (full,), (cut,) = (
        lm._loglikelihood_tokens([((LONG, " a"), before, [40, 41])])
        for before in (lm.tok_encode(LONG), lm.tok_encode(LONG)[-255:])
    )
    assert full == cut
    assert len(lm.generate_until(requests([(LONG, GREEDY)]))) == 1


def test_rolling_log_probabilities_cover_every_token_once(lm: Any) -> None:
    found = lm.loglikelihood_rolling(requests(["", SENTENCES[0], LONG]))
    ids = lm.tok_encode(SENTENCES[0])
    assert found[0] == 0 or lm.tok_encode("")  # with a start-of-text token, an empty text has one token
    assert found[1] == pytest.approx(lm._loglikelihood_tokens([(("", ""), [0], ids)])[0][0], abs=1e-4)
    assert found[2] < found[1] < 0


def test_requests_that_cannot_be_carried_out(cdgen_lm: Any, lm: Any, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="0 tokens; it must have 1 to 256"):
        lm._loglikelihood_tokens([(("a", ""), [5], [])])
    with pytest.raises(InputError, match="max_gen_toks = 256: leaves no room"):
        lm.generate_until(requests([("a", {})]))
    with pytest.raises(InputError, match="has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    with pytest.raises(InputError, match="has no tokenizer; pass tokenizer=FOLDER"):
        cdgen_lm(str(folders["bare"]))
    model = make_llama(3)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[0, 0] = 1e38
        model.model.layers[0].mlp.down_proj.weight[:] = 1e38
    broken = cdgen_lm(model, tokenizer=make_tokenizer())
    with pytest.raises(InputError, match="gives NaN as a log-probability in the text 'Once upon'"):
        broken.loglikelihood(requests([("Once", " upon")]))


def test_messages_of_a_chat_become_a_text(cdgen_lm: Any, folders: dict[str, Path]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    chat = cdgen_lm(str(folders["good"]), tokenizer=tokenizer)
    text = chat.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert text == "<s>user: Hello</s>"
    ids = chat.tok_encode(text)
    assert ids[0] == 0 and ids[1] != 0 and ids[-1] == 1  # one start-of-text token, and special tokens are read
    assert chat.tok_encode("user")[0] == 0


def test_model_arguments_describe_a_distribution() -> None:
    tail = SamplingParams.for_method("contrastive_tail")
    assert pair_params(None, None, {}) is None
    assert pair_params("path", None, {}) == tail == pair_params("path", "contrastive_tail", {})
    assert pair_params("path", "contrastive", {"alpha": 0.3}) == SamplingParams(alpha=0.3)
    assert pair_params("path", None, {"outside_head": -20}) == SamplingParams(outside_head=-20)
    for arguments, message in [
        ((None, "contrastive", {}), "method: applies only to the contrastive distribution of two models; add bad="),
        ((None, None, {"alpha": 0.1}), "alpha: applies only"),
        (("path", None, {"parallelize": True}), "parallelize: is not an argument of the model type cdgen"),
        (("path", "contrastiv", {}), "method = 'contrastiv': use one of"),
        (("path", None, {"alpha": 2}), "alpha = 2"),
    ]:
        with pytest.raises(InputError, match=message):
            pair_params(*arguments)
    assert [max_num_seqs(size) for size in (1, "1", "auto", "auto:4", 8, "8")] == [None] * 4 + [8, 8]
    for size in (0, "many", -1, 1.5):
        with pytest.raises(InputError, match="batch_size"):
            max_num_seqs(size)


def test_generation_options_become_sampling_parameters(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, tail = SamplingParams.for_method("ancestral"), SamplingParams.for_method("contrastive_tail")
    found = generation_params({"until": ["x"], "do_sample": False, "temperature": 0.7}, plain, ("x",), (1,))
    expected = {"max_tokens": 256, "temperature": 0, "stop": ("x",), "stop_token_ids": (1,)}
    assert found == SamplingParams(alpha=0, contrast_strength=0, **expected)
    for options, temperature in [
        ({}, 0),
        ({"temperature": 0.0}, 0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": True}, 1),
        ({"do_sample": True, "temperature": 0.5}, 0.5),
    ]:
        assert generation_params(options, tail, (), ()).temperature == temperature
    many = generation_params({"max_gen_toks": 5, "max_tokens": 9, "top_k": 3, "top_p": 0.9}, tail, (), ())
    assert (many.max_tokens, many.top_k, many.top_p, many.method) == (5, 3, 0.9, "contrastive_tail")
    changes = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    changes |= {"logit_bias": {5: 1.0}, "bad_words": ["a"]}
    adjusted = generation_params(changes | {"presence_penalty": None}, plain, (), ())
    assert (adjusted.repetition_penalty, adjusted.presence_penalty, adjusted.frequency_penalty) == (1.2, 0.0, -0.5)
    assert (adjusted.logit_bias, adjusted.bad_words) == (((5, 1.0),), ("a",))
    with pytest.raises(InputError, match="generation_kwargs: num_beams is not supported; use until"):
        generation_params({"num_beams": 4}, plain, (), ())
    for option, value in (("temperature", "x"), ("do_sample", "false"), ("max_gen_toks", "x"), ("max_tokens", 2.5)):
        with pytest.raises(InputError, match=rf"^{option} = "):
            generation_params({option: value}, plain, (), ())
    assert stop_strings("a", "</s>") == ["a", "</s>"] and stop_strings(None, None) == []
    assert stop_strings(["a", "", "a"], "</s>") == ["a", "</s>"]
    with pytest.raises(InputError, match=r"until = \[3\]"):
        stop_strings([3], None)
    assert split_stops(["a", "</s>", "\n"], tokenizer) == (("a", "\n"), (1,))


def test_a_missing_lm_eval_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r'needs lm-eval .* pip install "\.\[lm-eval\]"'):
        importlib.import_module(MODULE)


@needs_lm_eval
def test_log_probabilities_equal_those_of_lm_evals_own_class(lm: Any, hf: Any) -> None:
    expected, found = (one.loglikelihood(requests(PAIRS), disable_tqdm=True) for one in (hf, lm))
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], rtol=0, atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@needs_lm_eval
def test_rolling_log_probabilities_equal_those_of_lm_evals_own_class(lm: Any, hf: Any) -> None:
    texts = [*SENTENCES, "", "猫がいる。", LONG, " ".join([LONG, LONG, LONG])]
    expected, found = (one.loglikelihood_rolling(requests(texts), disable_tqdm=True) for one in (hf, lm))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


@needs_lm_eval
def test_texts_equal_those_of_lm_evals_own_class(lm: Any, hf: Any) -> None:
    contexts = [*SENTENCES, "猫がいる。 ", LONG]
    plain = [(context, {"max_gen_toks": 20, "until": []}) for context in contexts]
    expected = hf.generate_until(requests(plain), disable_tqdm=True)
    assert lm.generate_until(requests(plain), disable_tqdm=True) == expected
    stops = sorted({text[3:5] for text in expected if len(text) > 5})
    with_stops = [(context, {"max_gen_toks": 20, "until": stops}) for context in contexts]
    expected = hf.generate_until(requests(with_stops), disable_tqdm=True)
    assert lm.generate_until(requests(with_stops), disable_tqdm=True) == expected
    # In a batch, lm-eval's own class would add a second start-of-text token if another text comes first.
    alone = requests([("<s>You take", {"max_gen_toks": 20, "until": []})])
    assert lm.generate_until(alone, disable_tqdm=True) == hf.generate_until(alone, disable_tqdm=True)


@needs_lm_eval
@pytest.mark.slow
def test_the_command_runs_a_task(hf: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    pairs = [(sentence, " ".join(sentence.split()[::-1])) for sentence in SENTENCES]
    records = [json.dumps({"good": good, "bad": bad}) for good, bad in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(records), encoding="utf-8")
    task = f"""
task: tiny_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "pairs.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[good, bad]}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
    (tmp_path / "tiny_pairs.yaml").write_text(task, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root / "kernels"), str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", MODULE, "--model", "cdgen", "--tasks", "tiny_pairs", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folders['good']},dtype=float32", "--include_path", str(tmp_path)]
    command += ["--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    lines = sorted(map(json.loads, samples.read_text(encoding="utf-8").splitlines()), key=lambda line: line["doc_id"])
    found = [[float(value) for (value, _), *_ in line["resps"]] for line in lines]
    expected = hf.loglikelihood(requests([("", text) for pair in pairs for text in pair]), disable_tqdm=True)
    np.testing.assert_allclose(np.ravel(found), [value for value, _ in expected], rtol=0, atol=1e-4)


@needs_lm_eval
def test_an_error_of_the_command_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: importlib.import_module(MODULE).CdgenLM("nowhere"))
    assert importlib.import_module(MODULE).main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: nowhere: ")
