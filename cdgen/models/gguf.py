"""GGUF metadata that transformers ignores although it changes the logits: it is applied or refused here."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import GGUF_CONFIG_MAPPING

from cdgen.errors import InputError
from cdgen.models.configs import MOST_LAYERS

_REMEDY = "use the model's safetensors"
_ROPE_FACTORS = "rope_freqs.weight"
_UNUSED = ("context_length", "tensor_data_layout", "vocab_size", "rope.scaling.finetuned")  # no effect on logits
_LINEAR_ROPE = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")  # see scale_rope
_NEUTRAL = {  # values that switch an unknown feature off
    "attention.causal": True, "attention.clamp_kqv": 0, "attention.max_alibi_bias": 0, "attention.sliding_window": 0,
    "attn_logit_softcapping": 0, "embedding_scale": 1, "expert_count": 0, "expert_used_count": 0,
    "final_logit_softcapping": 0, "logit_scale": 1, "pooling_type": 0, "residual_scale": 1,
    "rope.scaling.attn_factor": 1, "rope.scaling.original_context_length": 0,
}  # fmt: skip


class Gguf(NamedTuple):
    """The metadata of a GGUF file.

    Attributes:
        architecture: the name by which llama.cpp knows the architecture.
        parameters: the architecture's parameters, without its name in front.
        token_ids: special token ids, by their names in transformers' configs; None if they are not stated.
        shapes: shapes of the tensors, by name.
        rope_factors: float32 [d / 2], divisors of the rotary frequencies; None if they are not stated.
    """

    architecture: str
    parameters: dict[str, Any]
    token_ids: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    rope_factors: torch.Tensor | None


def read_gguf(path: Path) -> Gguf:
    """Read the metadata of a GGUF file.

    Raises:
        InputError: the package gguf is not installed, or the file states more layers than any model has.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f'{path}: to read GGUF files: pip install ".[gguf]"') from error
    reader = GGUFReader(path)
    architecture = _value(reader.fields["general.architecture"])
    prefix, wanted = f"{architecture}.", re.compile(rf"{re.escape(architecture)}\.|tokenizer\.ggml\.\w+_token_id$")
    values = {name: _value(field) for name, field in reader.fields.items() if wanted.match(name)}
    parameters = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    if parameters.get("block_count", 0) > MOST_LAYERS:
        raise InputError(f"{path}: {prefix}block_count = {parameters['block_count']}: must be at most {MOST_LAYERS}")
    stated = {name: values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    # llama.cpp ends a text at any of the three.
    ends = [stated[name] for name in ("eos", "eot", "eom") if stated[name] is not None]
    ids = {"bos_token_id": stated["bos"], "eos_token_id": ends or None, "pad_token_id": stated["padding"]}
    factors = [torch.tensor(tensor.data).float() for tensor in reader.tensors if tensor.name == _ROPE_FACTORS]
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    return Gguf(architecture, parameters, ids, shapes, factors[0] if factors else None)


def _value(field: Any) -> Any:
    """Return the content of a field: a number, a string, or a list of either."""
    parts = [field.parts[index] for index in field.data]
    strings = field.types[-1].name == "STRING"
    values = [part.tobytes().decode() if strings else part.tolist()[0] for part in parts]
    return values if field.types[0].name == "ARRAY" else values[0]


def check_gguf(source: str | Path, file: Gguf, module: PreTrainedModel) -> None:
    """Raise InputError if the file holds a parameter or a tensor that the loaded model does not use."""
    config = module.config
    honoured = GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"), {})
    for name, value in file.parameters.items():
        if honoured.get(name) is not None or name in (*_UNUSED, *_LINEAR_ROPE):
            continue
        if not _same(value, _NEUTRAL.get(name)) and not _same(value, _own_value(name, config)):
            raise InputError(
                f"{source}: {file.architecture}.{name} = {value}: transformers ignores it in GGUF files; {_REMEDY}"
            )
    if surplus := sorted(file.shapes.keys() - _used(file, module) - {_ROPE_FACTORS}):
        raise InputError(
            f"{source}: its weights hold {surplus[0]} {list(file.shapes[surplus[0]])}, which transformers ignores in "
            f"GGUF files; {_REMEDY}"
        )


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, (int, float)):
        return math.isclose(value, other, rel_tol=1e-6)
    return other is not None and bool(value == other)


def _own_value(name: str, config: PretrainedConfig) -> Any:
    """Return the value that a transformers model uses for a GGUF parameter; None if it is unknown."""
    rope = getattr(config, "rope_parameters", None) or {}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = {
        "attention.key_length": head_dim,
        "attention.layer_norm_epsilon": getattr(config, "layer_norm_eps", None),
        "attention.scale": head_dim**-0.5,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attention.value_length": head_dim,
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
        "rope.freq_base": rope.get("rope_theta"),
        "use_parallel_residual": getattr(config, "use_parallel_residual", None),
    }
    return own.get(name)


def _used(file: Gguf, module: PreTrainedModel) -> set[str]:
    """Return the names of a model's tensors in GGUF files; tensors of experts, which are merged, count as used."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = gguf.get_tensor_name_map(architecture, module.config.num_hidden_layers)
    used = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in module.state_dict()}
    return {name for name in used if name} | {name for name in file.shapes if "_exps." in name}


def scale_rope(source: str | Path, file: Gguf, module: PreTrainedModel) -> None:
    """Apply the file's scaling of the rotary frequencies: linear, or by a divisor for each frequency, as in Llama 3.

    Raises:
        InputError: the scaling is of another type, or the model's rotary embedding is not a plain one.
    """
    kind = file.parameters.get("rope.scaling.type", "linear")  # llama.cpp's default
    factor = file.parameters.get("rope.scaling.factor", file.parameters.get("rope.scale_linear", 0)) or 1
    if kind not in ("none", "linear"):
        raise InputError(f"{source}: rope.scaling.type = {kind}: transformers ignores it in GGUF files; {_REMEDY}")
    divisor = torch.tensor(float(1 if kind == "none" else factor))
    if file.rope_factors is not None:
        divisor = divisor * file.rope_factors
    if bool((divisor == 1).all()):
        return
    rope: Any = getattr(module.base_model, "rotary_emb", None)
    if getattr(rope, "rope_type", None) != "default" or divisor.shape not in ((), rope.inv_freq.shape):
        raise InputError(f"{source}: the scaling of its rotary embedding is not supported for GGUF files; {_REMEDY}")
    if not bool((divisor > 0).all()):  # NaN as well
        raise InputError(f"{source}: the scaling of its rotary embedding is not positive")
    for name in ("inv_freq", "original_inv_freq"):
        buffer = getattr(rope, name)
        buffer.copy_(buffer / divisor.to(buffer.device))
