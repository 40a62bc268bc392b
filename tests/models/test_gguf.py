"""GGUF files: metadata that transformers ignores is applied or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdgen.errors import InputError
from cdgen.models.llama import LlamaRunner
from cdgen.models.loading import load
from cdgen.models.vocabulary import shared_vocab_size
from tests.helpers.families import ids as random_ids
from tests.helpers.tiny_models import VOCABULARY, make_llama

gguf = pytest.importorskip("gguf")


def test_loads_gguf(tmp_path, tokenizer) -> None:
    model = make_llama(5)
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    for source in (tmp_path, tmp_path / "model.gguf"):
        loaded, found = load(source)
        with torch.inference_mode():
            torch.testing.assert_close(
                loaded.module(random_ids(1, 9)).logits, model(random_ids(1, 9)).logits, rtol=1e-4, atol=1e-4
            )
        assert shared_vocab_size(loaded, load(model)[0], found, tokenizer) == VOCABULARY
        assert loaded.fingerprint.startswith("sha256:") and len(loaded.files) == 1
    (tmp_path / "second.gguf").write_bytes((tmp_path / "model.gguf").read_bytes())
    with pytest.raises(InputError, match="holds 2 GGUF files; name one of them"):
        load(tmp_path)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    ids: dict[str, int] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    **parameters: Any,
) -> None:
    """Write a Llama as a float32 GGUF file in llama.cpp's layout, with its order of rows for rotary embeddings.

    Args:
        path: the file.
        model: the model.
        tokenizer: its tokenizer.
        ids: special token ids by name; default: bos 0, eos 1.
        tensors: additional tensors.
        parameters: additional metadata of the architecture; `__` stands for a dot.
    """
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    for name, value in parameters.items():
        key = f"llama.{name.replace('__', '.')}"
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3, 3] + [1] * (config.vocab_size - 2))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    for name, token in ({"bos": 0, "eos": 1} if ids is None else ids).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        prefix, part = "", stem
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            prefix = f"blk.{layer}."
        if part in heads:
            tensor = tensor.view(heads[part], 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{prefix}{names[part]}.weight", tensor.contiguous().numpy())
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(module: LlamaForCausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return module(random_ids(1, 40)).logits


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        {"rope__scaling__factor": 4.0},  # llama.cpp takes a factor without a type as linear
        {"rope__scale_linear": 4.0},  # as old files call it
    ],
)
def test_linear_rope_scaling_is_honoured(tmp_path, tokenizer, parameters) -> None:
    model = make_llama(5)
    scaled = make_llama(5, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    write_gguf(tmp_path / "m.gguf", model, tokenizer, **parameters)
    loaded = load(tmp_path)[0].module
    torch.testing.assert_close(logits(loaded), logits(scaled), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(scaled), logits(model), atol=1e-2)
    torch.testing.assert_close(LlamaRunner(loaded, 40).cos, LlamaRunner(scaled, 40).cos)


def test_divisors_of_the_rotary_frequencies_are_honoured(tmp_path, tokenizer) -> None:
    """llama.cpp stores the scaling of Llama 3.1 as a tensor."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model, scaled = make_llama(5), make_llama(5, rope_parameters=rope)
    divisors = model.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    write_gguf(tmp_path / "m.gguf", model, tokenizer, tensors={"rope_freqs.weight": divisors})
    torch.testing.assert_close(logits(load(tmp_path)[0].module), logits(scaled), rtol=1e-4, atol=1e-4)


def test_neutral_metadata_is_accepted(tmp_path, tokenizer) -> None:
    model = make_llama(5)
    neutral = {"rope__scaling__type": "none", "rope__scaling__factor": 4.0, "rope__dimension_count": 16}
    neutral |= {"attention__key_length": 16, "attention__value_length": 16, "attention__sliding_window": 0}
    neutral |= {"logit_scale": 1.0, "attention__causal": True, "expert_count": 0}
    write_gguf(tmp_path / "m.gguf", model, tokenizer, **neutral)
    torch.testing.assert_close(logits(load(tmp_path)[0].module), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.attn_factor", 2.0),
        ("attention.sliding_window", 8),
        ("attention.value_length", 8),
        ("attention.clamp_kqv", 1.5),
        ("attention.scale", 0.5),
        ("logit_scale", 0.25),
        ("final_logit_softcapping", 30.0),
        ("attention.causal", False),
        ("something_new", 3),
    ],
)
def test_metadata_that_would_be_ignored_is_refused(tmp_path, tokenizer, name, value) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama(5), tokenizer, **{name.replace(".", "__"): value})
    with pytest.raises(InputError, match=rf"{tmp_path}.*{name} = .*; use the model's safetensors"):
        load(tmp_path)


def test_a_file_of_more_layers_than_any_model_has_is_refused_at_once(tmp_path, tokenizer) -> None:
    model = make_llama(5)
    write_gguf(tmp_path / "m.gguf", model, tokenizer)
    count = b"llama.block_count" + int(gguf.GGUFValueType.UINT32).to_bytes(4, "little")
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content.replace(count + b"\2\0\0\0", count + b"\0\0\0\x20"))
    with pytest.raises(InputError, match=r"m\.gguf: llama\.block_count = 536870912: must be at most 1000"):
        load(tmp_path)


def test_tensors_that_would_be_ignored_are_refused(tmp_path, tokenizer) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama(5), tokenizer, tensors={"blk.0.attn_q.bias": torch.ones(64)})
    with pytest.raises(InputError, match=r"hold blk\.0\.attn_q\.bias \[64\], which transformers ignores"):
        load(tmp_path)


def test_special_tokens_are_those_that_the_file_states(tmp_path, tokenizer) -> None:
    for name, ids, ends, bos in (
        ("none", {}, set(), None),
        ("both", {"bos": 5, "eos": 7}, {7}, 5),
        ("turn", {"eos": 7, "eot": 9, "eom": 10}, {7, 9, 10}, None),
    ):
        write_gguf(tmp_path / f"{name}.gguf", make_llama(5), tokenizer, ids=ids)
        model = load(tmp_path / f"{name}.gguf", with_tokenizer=False)[0]
        assert model.eos_token_ids == ends and model.module.config.bos_token_id == bos, name


def test_damaged_files_give_one_line_with_their_name(tmp_path, tokenizer) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama(5), tokenizer)
    content = (tmp_path / "m.gguf").read_bytes()
    for damaged in (b"", b"GGUF", content[:-400], content[:200], b"\0" * 200, content[:4] + b"\xff" * 20):
        (tmp_path / "m.gguf").write_bytes(damaged)
        with pytest.raises(InputError, match=f"^{tmp_path}.*cannot load ") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
