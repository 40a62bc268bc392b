"""Loading, unsupported models, vocabularies, and BADs made from GOOD."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers

from cdgen import ContrastiveLM, SamplingParams
from cdgen.errors import InputError
from cdgen.models.bad import attention_dropout, first_layers, parse_bad
from cdgen.models.configs import stored_dtype
from cdgen.models.dtypes import default_dtype
from cdgen.models.language_model import LanguageModel
from cdgen.models.loading import load
from cdgen.models.vocabulary import shared_vocab_size
from tests.helpers.families import FAMILIES, family, ids
from tests.helpers.tiny_models import VOCABULARY, make_llama, make_tokenizer

# ------------------------------------------------------------------------------------------------ loading


def test_loads_a_folder_as_it_was_saved(folders, good) -> None:
    model, tokenizer = load(folders["good"])
    assert not model.module.training and model.width == VOCABULARY and model.eos_token_ids == {1}
    for name, tensor in good.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor), name
    assert len(tokenizer.get_vocab()) == VOCABULARY
    assert load(folders["bare"])[1] is None
    assert load(folders["good"], dtype="bfloat16")[0].module.dtype == torch.bfloat16


def test_on_a_gpu_float32_checkpoints_are_used_in_bfloat16(folders, good, tmp_path, monkeypatch, caplog) -> None:
    """The device is a stand-in, since there is no GPU. Rotary frequencies keep float32."""
    monkeypatch.setattr("cdgen.models.loading.usable_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *rest: module)
    monkeypatch.setattr("cdgen.models.loading.free_memory", lambda device: None)
    copy.deepcopy(good).half().save_pretrained(tmp_path / "half")
    copy.deepcopy(good).bfloat16().save_pretrained(tmp_path / "brain")
    (tmp_path / "old").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "old" / file).write_bytes((folders["bare"] / file).read_bytes())
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as transformers 4 wrote it
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    silent = shutil.copytree(tmp_path / "old", tmp_path / "silent") / "config.json"
    silent.write_text(json.dumps({key: x for key, x in config.items() if key != "torch_dtype"}))
    for source, given, wanted in (
        (folders["good"], {}, torch.bfloat16),
        (tmp_path / "silent", {}, torch.bfloat16),
        (tmp_path / "old", {}, torch.bfloat16),
        (tmp_path / "brain", {}, torch.bfloat16),
        (tmp_path / "half", {}, torch.float16),
        (folders["good"], {"dtype": "float32"}, torch.float32),
        (tmp_path / "half", {"dtype": "bfloat16"}, torch.bfloat16),
    ):
        caplog.clear()
        module = load(source, **given)[0].module
        assert {parameter.dtype for parameter in module.parameters()} == {wanted}
        assert module.model.rotary_emb.inv_freq.dtype == torch.float32
        said = [record.getMessage() for record in caplog.records]
        kind = {"good": "float32", "old": "float32", "silent": "quantised or unstated"}.get(source.name)
        line = f"{source}: weights ({kind}) are loaded in bfloat16; use dtype='float32' for"
        assert said == ([f"{line} full precision"] if kind and not given else [])
        assert default_dtype(stored_dtype(source), "cuda") == wanted or given, "what cdgen plan assumes"
    assert load(folders["good"])[0].module.model.norm.weight.equal(good.model.norm.weight.bfloat16())


def test_fingerprint_depends_on_contents_not_on_the_folder(folders, tmp_path) -> None:
    here = load(folders["good"])[0]
    load(folders["good"])[0].module.save_pretrained(tmp_path / "copy")
    there = load(tmp_path / "copy")[0]
    assert here.fingerprint == there.fingerprint != load(folders["bad"])[0].fingerprint
    assert attention_dropout(here, 0.3).fingerprint == f"{here.fingerprint}+dropout:0.3"
    changed = copy.deepcopy(here.module)
    changed.model.norm.weight.data[0] += 1e-3
    changed.save_pretrained(tmp_path / "changed")
    assert load(tmp_path / "changed")[0].fingerprint != here.fingerprint
    assert load(changed)[0].fingerprint != load(here.module)[0].fingerprint  # models that are passed loaded
    (tmp_path / "changed" / "modeling.py").write_text("")
    without, with_code = (load(tmp_path / "changed", trust_remote_code=trusted)[0] for trusted in (False, True))
    assert without.fingerprint != with_code.fingerprint, "code that may run decides what the model computes"


def test_models_without_attention_cache_are_refused() -> None:
    mamba = transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    rwkv = transformers.RwkvConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    for config in (mamba, rwkv):
        with pytest.raises(InputError, match=f"{config.model_type} keeps a state"):
            load(transformers.AutoModelForCausalLM.from_config(config))
    t5 = transformers.T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    with pytest.raises(InputError, match="encoder-decoder"):
        load(transformers.T5ForConditionalGeneration(t5))


# ------------------------------------------------------------------------------------------------ vocabularies


def test_models_must_share_a_vocabulary(folders, good, tokenizer) -> None:
    with pytest.raises(InputError, match=r"id \d+ is '.*' to GOOD and '.*' to BAD"):
        ContrastiveLM(folders["good"], folders["other"])
    narrow = make_llama(4, vocab_size=VOCABULARY - 1)
    with pytest.raises(InputError, match=f"tokenizer has {VOCABULARY} tokens, .* scores {VOCABULARY - 1}"):
        ContrastiveLM(folders["good"], narrow)
    with pytest.raises(InputError, match="GOOD scores 300 tokens, BAD 299"):
        ContrastiveLM(good, narrow)
    larger = make_tokenizer()
    larger.add_tokens(["<extra>"])
    wide = load(make_llama(3, vocab_size=VOCABULARY + 20))[0]
    with pytest.raises(InputError, match="GOOD has 300 tokens, BAD has 301"):
        shared_vocab_size(wide, wide, tokenizer, larger)


def test_padding_of_an_output_layer_is_never_drawn(folders, tokenizer) -> None:
    wide, wider = make_llama(3, vocab_size=VOCABULARY + 20), make_llama(3, vocab_size=VOCABULARY + 33)
    wide.lm_head.weight.data[VOCABULARY:] *= 50  # GOOD alone would nearly always draw padding
    for models in ((wide, folders["bad"]), (folders["bad"], wide), (wide, wider)):
        lm = ContrastiveLM(*models, tokenizer=tokenizer)
        assert lm.pair.vocab_size == VOCABULARY
        for alpha in (0.1, 0.0):
            requests = lm.generate("The", SamplingParams(n=8, max_tokens=20, alpha=alpha, ignore_eos=True))
            assert max(token for output in requests[0].outputs for token in output.token_ids) < VOCABULARY


# ------------------------------------------------------------------------------------------------ BAD from GOOD


def logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    at = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.inference_mode():
        return model.last_logits(tokens, torch.ones_like(tokens), at, model.new_cache(tokens.shape[1]))


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_bad_is_good_with_noise_in_its_attention_alone(name) -> None:
    good = LanguageModel(family(name), name)
    before, state = logits(good, ids(2, 10)), torch.get_rng_state()
    bad = attention_dropout(good, 0.4)
    assert torch.equal(torch.get_rng_state(), state), "attention_dropout changed the state of the user's generator"
    drawn = [logits(bad, ids(2, 10)) for _ in range(3)]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert torch.equal(logits(good, ids(2, 10)), before), "GOOD itself became noisy"
    torch.manual_seed(7)
    again = logits(bad, ids(2, 10))
    torch.manual_seed(7)
    assert torch.equal(logits(bad, ids(2, 10)), again)
    shared = {t.data_ptr() for t in (*good.module.parameters(), *good.module.buffers())}
    assert {t.data_ptr() for t in (*bad.module.parameters(), *bad.module.buffers())} == shared
    quiet = copy.deepcopy(bad.module).eval()  # with every dropout off it equals GOOD, so nothing else changed
    assert torch.equal(logits(LanguageModel(quiet, name), ids(2, 10)), before)
    loud = [part for part in bad.module.modules() if part.training]
    assert loud and all("Attention" in type(part).__name__ or isinstance(part, torch.nn.Dropout) for part in loud)


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_dropout_probability_is_the_given_one(p) -> None:
    """Equal weights over 16 keys and unit vectors as values: the output shows each weight, scaled or dropped."""
    bad = attention_dropout(LanguageModel(family("llama"), "llama"), p).module
    attention = bad.model.layers[0].self_attn
    interface = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS[bad.config._attn_implementation]
    keys, values = torch.ones(500, 2, 16, 16), torch.eye(16).expand(500, 2, 16, 16)
    out, _ = interface(attention, torch.ones(500, 4, 1, 16), keys, values, None, dropout=attention.attention_dropout)
    assert attention.training
    dropped = out == 0  # 32,000 weights: p within ten standard deviations
    assert abs(dropped.float().mean() - p) < 10 * (p * (1 - p) / dropped.numel()) ** 0.5
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / 16 / (1 - p)))


def test_dropout_is_refused_if_the_attention_has_none() -> None:
    class Quiet(transformers.LlamaForCausalLM):
        pass

    model = Quiet(FAMILIES["llama"]()).eval()
    for layer in model.model.layers:
        del layer.self_attn.attention_dropout
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    wrapped = LanguageModel.__new__(LanguageModel)
    wrapped.__dict__.update(module=model, name="quiet", files=(), rule="", parent=None, noisy=False)
    with pytest.raises(InputError, match="llama"):
        attention_dropout(wrapped, 0.3)
    for p in (0, 1, -0.1):
        with pytest.raises(InputError, match="between 0 and 1"):
            attention_dropout(LanguageModel(family("llama"), "llama"), p)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_bad_equals_a_truncated_model(name) -> None:
    good = LanguageModel(family(name), name)
    before = logits(good, ids(2, 10))
    bad = first_layers(good, 2)
    config = FAMILIES[name]()
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = 2
    if kinds is not None:
        config.layer_types = kinds[:2]
    by_hand = transformers.AutoModelForCausalLM.from_config(config).eval()
    missing = by_hand.load_state_dict(good.module.state_dict(), strict=False).missing_keys
    assert not missing and bad.num_layers == 2
    with torch.inference_mode():
        torch.testing.assert_close(logits(bad, ids(2, 10)), by_hand(ids(2, 10)).logits[:, -1], rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(good, ids(2, 10)), before) and good.num_layers == 3
    shared = {t.data_ptr() for t in (*good.module.parameters(), *good.module.buffers())}
    assert {t.data_ptr() for t in (*bad.module.parameters(), *bad.module.buffers())} <= shared
    for n in (0, 3):
        with pytest.raises(InputError, match="must be 1 to 2; GOOD has 3 layers"):
            first_layers(good, n)


def test_parse_bad() -> None:
    assert parse_bad("dropout:0.3") == {"dropout": 0.3}
    assert parse_bad("layers:12") == {"layers": 12}
    assert parse_bad("some/folder") == {"bad": "some/folder"}
    with pytest.raises(InputError, match=r"^bad = 'dropout:much': use dropout:0\.3, layers:12, or a path or hub name"):
        parse_bad("dropout:much")
