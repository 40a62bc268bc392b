"""Weights and configs: only what the files of a folder state counts, and whatever is wrong with them is named."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig

from cdgen.engine.model_sizes import shapes
from cdgen.errors import InputError
from cdgen.models.loading import load
from cdgen.training.config import TrainConfig
from cdgen.training.model import build
from tests.helpers.checkpoints import edit, edit_weights, refusal
from tests.helpers.families import LLAMA_LIKE, family
from tests.helpers.tiny_models import make_llama

Q = "model.layers.0.self_attn.q_proj"


# ------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.pop("model.norm.weight"), "its weights lack model.norm.weight [32], which the config states"),
        (lambda x: x.pop("lm_head.weight"), "its weights lack lm_head.weight [300, 32]"),
        (lambda x: x.update({f"{Q}.bias": torch.ones(32)}), f"its weights hold {Q}.bias [32], which a model with this"),
        (lambda x: x.update({"score.weight": torch.ones(2, 32)}), "its weights hold score.weight [2, 32]"),
        (lambda x: x.update({f"{Q}.weight": torch.ones(64, 16)}), f"{Q}.weight [64, 16] has another shape"),
        (lambda x: x.update({f"{Q}.weight": torch.ones(32, 32).long()}), f"{Q}.weight [32, 32] is stored as I64"),
        (
            lambda x: x.update({f"{Q}.weight".removeprefix("model."): 3 * x[f"{Q}.weight"]}),
            f"hold layers.0.self_attn.q_proj.weight [32, 32] and {Q}.weight [32, 32], which are one parameter; remove",
        ),
        (
            lambda x: x.update({f"model.{Q}.weight": 3 * x[f"{Q}.weight"]}),
            f"hold {Q}.weight [32, 32] and model.{Q}.weight [32, 32], which are one parameter",
        ),
        (lambda x: x[f"{Q}.weight"][3].fill_(torch.nan), f"{Q}.weight [32, 32] holds NaN or infinity in float32"),
        (lambda x: x["model.norm.weight"][:1].fill_(-torch.inf), "model.norm.weight [32] holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(folder, change, reason) -> None:
    edit_weights(folder, change)
    assert reason in refusal(folder)


def test_a_config_that_does_not_fit_the_weights_is_refused(folder) -> None:
    config, before = folder / "config.json", (folder / "config.json").read_text()
    for changes, reason in (
        (
            {"num_hidden_layers": 2},
            r"lack model.layers.1.input_layernorm.weight [32], which the config states (9 tensors",
        ),
        ({"intermediate_size": 48}, "mlp.down_proj.weight [32, 64] has another shape than the config states, [32, 48]"),
        ({"attention_bias": True}, "self_attn.k_proj.bias"),
        ({"quantization_config": {"quant_method": "new"}}, "quantised by a method that transformers does not know"),
    ):
        config.write_text(before)
        edit(config, **changes)
        assert reason in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": 2**30}, "lm_head.weight [300, 32] has another shape than the config states, [1073741824, 32]"),
        ({"intermediate_size": 2**30}, "mlp.down_proj.weight [32, 64] has another shape than the config states"),
        ({"model_type": "mixtral", "num_local_experts": 2**20}, "numbers, but its config states a model of 6"),
    ],
)
def test_memory_is_not_taken_for_a_model_larger_than_its_files(folder, monkeypatch, changes, reason) -> None:
    edit(folder / "config.json", **changes)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # it takes memory for all that the config states
    assert reason in refusal(folder)


def test_weights_of_experts_are_floats(tmp_path) -> None:
    """Files hold one tensor for each expert, which transformers merges under another name."""
    config = MixtralConfig(**LLAMA_LIKE, num_local_experts=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    load(tmp_path)
    edit_weights(tmp_path, lambda x: x.update({name: x[name].int() for name in x if "experts.0.w1" in name}))
    assert "experts.0.w1.weight" in (message := refusal(tmp_path)) and "is stored as I32, not as floats" in message


def test_weights_beyond_the_range_of_the_dtype_are_refused(folder) -> None:
    edit_weights(folder, lambda x: x["lm_head.weight"][0].fill_(1e6))
    load(folder, dtype="float32")
    assert "lm_head.weight [300, 32] holds NaN or infinity in float16" in refusal(folder, dtype="float16")


def test_nan_in_a_model_that_is_passed_loaded_is_found() -> None:
    model = make_llama(0)
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(InputError, match=r"model\.norm\.weight \[64\] holds NaN"):
        load(model)


def test_old_buffers_and_copies_of_tied_weights_are_no_surplus(folder, tmp_path) -> None:
    edit_weights(folder, lambda x: x.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(folder)
    edit(folder / "config.json", tie_word_embeddings=True)
    edit_weights(folder, lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"].clone()}))
    load(folder)
    edit_weights(folder, lambda x: x.pop("lm_head.weight"))
    load(folder)
    family("gpt2").save_pretrained(tmp_path / "gpt2")
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}  # as on the hub
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors, tmp_path / "gpt2" / "model.safetensors", metadata={"format": "pt"})
    load(tmp_path / "gpt2")


# ------------------------------------------------------------------------------------------------ special tokens


def test_special_tokens_are_those_that_the_files_state(folder) -> None:
    config, generation = folder / "config.json", folder / "generation_config.json"

    def found() -> tuple[set[int], int | None]:
        model = load(folder)[0]
        return model.eos_token_ids, model.module.config.bos_token_id

    assert found() == ({1}, 0)
    edit(generation, eos_token_id=[5, 6])
    assert found() == ({1, 5, 6}, 0)
    edit(config, bos_token_id=None, eos_token_id=None)
    assert LlamaConfig().eos_token_id == 2, "what transformers fills in"
    assert found() == ({5, 6}, None)
    edit(generation, bos_token_id=None, eos_token_id=None)
    assert found() == (set(), None)
    generation.unlink()
    assert found() == (set(), None)
    edit(config, eos_token_id=[7, 300, 10**30, -1])  # tokens without a logit never end a text
    assert found() == ({7}, None)
    assert load(folder)[0].module.generation_config.eos_token_id == [7, 300, 10**30, -1]


@pytest.mark.parametrize("name", ["opt", "gpt2", "gemma2", "bloom"])
def test_other_architectures_do_not_fill_in_special_tokens(name, tmp_path) -> None:
    family(name).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    edit(tmp_path / "config.json", bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = load(tmp_path)[0]
    assert model.eos_token_ids == set()
    assert model.module.config.pad_token_id is model.module.config.bos_token_id is None


# ------------------------------------------------------------------------------------------------ anything in a file


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", "two"),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("num_key_value_heads", True),
        ("hidden_size", -4),
        ("vocab_size", 2.5),
        ("hidden_act", "foo"),
        ("hidden_act", ["silu"]),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "small"),
        ("rope_parameters", {"rope_type": "foo", "rope_theta": 1e4}),
        ("rope_scaling", {"type": "foo", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
        ("rope_parameters", []),
        ("attention_dropout", 5.0),
        ("attention_dropout", -1),
        ("attention_dropout", "half"),
        ("is_causal", False),
        ("dtype", "float99"),
        ("dtype", "nn"),
        ("torch_dtype", 5),
        ("model_type", "foo"),
        ("model_type", 5),
        ("eos_token_id", "two"),
        ("bos_token_id", 1.5),
        ("eos_token_id", {}),
        ("auto_map", 5),
        ("id2label", 5),
        ("layer_types", 5),
        ("text_config", 5),
        ("quantization_config", 5),
        ("sub_configs", 5),
        ("to_dict", 5),
    ],
)
def test_any_value_of_a_config_is_refused_in_one_line(folder, name, value, capfd) -> None:
    edit(folder / "config.json", **{name: value})
    message = refusal(folder)
    assert "config.json: " in message or "cannot load the model: " in message
    with pytest.raises(InputError, match=str(folder)):  # and by cdgen plan
        shapes(str(folder), None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\0" * 50, b"[]", b"null", b'{"a": "\xe9"}', b"[" * 100_000, b'{"a": NaN}']
)
def test_damaged_files_are_named(folder, file, content) -> None:
    (folder / file).unlink()
    if content is None:
        (folder / file).mkdir()
    else:
        (folder / file).write_bytes(content)
    assert file in refusal(folder)


def test_a_truncated_weight_file_is_named(folder) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "model.safetensors: is truncated or damaged" in refusal(folder)


def test_logits_that_are_nan_are_refused(folder) -> None:
    edit(folder / "config.json", rms_norm_eps=-5.0)
    assert "its logits are NaN" in refusal(folder)


def test_training_refuses_configs_in_one_line(folder, tokenizer) -> None:
    config = TrainConfig(corpus="c", tokenizer="t", out="o", model=str(folder), block_size=64)
    assert isinstance(build(config, tokenizer), LlamaForCausalLM)
    for name, value in (("num_attention_heads", 0), ("hidden_act", "foo"), ("model_type", "t5"), ("layer_types", 5)):
        before = (folder / "config.json").read_text()
        edit(folder / "config.json", **{name: value})
        with pytest.raises(InputError, match=str(folder)) as caught:
            build(config, tokenizer)
        assert "\n" not in str(caught.value)
        (folder / "config.json").write_text(before)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"or a folder with a config\.json"):
        build(config, tokenizer)
