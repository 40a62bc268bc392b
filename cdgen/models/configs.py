"""A model's config files: checked before transformers reads them, since it accepts almost any value."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cdgen.errors import InputError
from cdgen.models.files import locate, read_json
from cdgen.models.load_errors import loading

MOST_LAYERS = 1000  # transformers takes seconds to build so many

_GREATEST = 2**31 - 1
_SIZES = {  # greatest values; all of them are whole numbers of at least 1
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "vocab_size", "head_dim"), _GREATEST),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), _GREATEST),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _GREATEST),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), MOST_LAYERS),
}
_POSITIVE = ("rope_theta", "factor")
_DROPOUTS = ("dropout", "_pdrop", "_dropout_prob")  # ends of names
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_ROPE_TYPES = (("rope_scaling", "type"), ("rope_parameters", "type"))  # the names in old configs
_OTHER_ROPES = ("default", "mrope", "su")  # those of some model types have further names
_CODE = "_implementation"  # end of the names of values that choose code; some have a value for each part of the model
_PLAIN = (*_SIZES, *_POSITIVE, *_ACTIVATIONS, *_TOKEN_IDS)  # values that are never objects


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the transformers config of the model that :func:`~cdgen.models.loading.load` would load.

    Raises:
        InputError: there is no such model, or its config cannot be used.
    """
    with loading(source, "the config"):
        located = locate(source, trust_remote_code)
        if located.gguf is None:
            check_code(source, read_config(located.folder), trust_remote_code)
        options = {"gguf_file": located.gguf} if located.gguf else {}
        return AutoConfig.from_pretrained(str(located.folder), trust_remote_code=trust_remote_code, **options)


def stored_dtype(source: str | Path, *, trust_remote_code: bool = False) -> torch.dtype | None:
    """Return the dtype that a checkpoint's config states; None if it states none, and for GGUF files."""
    with loading(source, "the config"):
        located = locate(source, trust_remote_code)
        content = {} if located.gguf else read_config(located.folder)
    return _dtype(content)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check config.json.

    Raises:
        InputError: it is damaged, names code or weights to load from elsewhere, or holds a value that no model has.
    """
    path = folder / "config.json"
    content = read_json(path)
    _check_values(path, content, custom="auto_map" in content)
    return content


def check_code(source: str | Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Raise InputError if a model needs Python code that comes with it, and that code is not trusted."""
    if not trust_remote_code and "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise InputError(f"{source}: needs Python code that comes with it, which runs only with trust_remote_code=True")


def _check_values(path: Path, content: dict[str, Any], custom: bool, within: str = "") -> None:
    for name, value in content.items():
        if isinstance(value, dict) and name not in _PLAIN and not name.endswith(_CODE):
            _check_values(path, value, custom, name)
        elif problem := _problem("rope_type" if (within, name) in _ROPE_TYPES else name, value, custom):
            raise InputError(f"{path}: {name} = {value!r}: {problem}")
    if "transformers_weights" in content:
        raise InputError(f"{path}: transformers_weights is not supported; weights are read from model.safetensors")


def _problem(name: str, value: Any, custom: bool) -> str | None:
    """Return what is wrong with a value of config.json.

    Args:
        name: name of the value.
        value: the value.
        custom: the model comes with its own code, which may know other activation functions and rope types.
    """
    if not _is_finite(value) and name != "time_step_limit":  # the limit of Mamba models is infinite
        return "must be finite"
    if name in _SIZES and value is not None and not isinstance(value, list):  # a list has a value per layer
        number = value if isinstance(value, int) and not isinstance(value, bool) else 0
        return None if 1 <= number <= _SIZES[name] else f"must be a whole number from 1 to {_SIZES[name]}"
    if name in _POSITIVE and not (isinstance(value, (int, float)) and value > 0):
        return "must be a number above 0"
    if name.endswith(_DROPOUTS) and value is not None and not _is_probability(value):
        return "must be a number from 0 to 1"
    if name == "is_causal" and value is False:
        return "cdgen reads models from left to right"
    if name in _ACTIVATIONS and not custom and value is not None and str(value) not in ACT2FN:
        return "no such activation function"
    if name == "rope_type" and not custom and str(value) not in (*_OTHER_ROPES, *ROPE_INIT_FUNCTIONS):
        return f"must be one of {', '.join(sorted({*_OTHER_ROPES, *ROPE_INIT_FUNCTIONS}))}"
    if name in _TOKEN_IDS and not _is_token_id(value):
        return "must be a token id, or a list of them"
    if name in ("dtype", "torch_dtype") and value is not None and _named_dtype(value) is None:
        return "no such dtype"
    if name.endswith(_CODE) and "/" in str(value):  # transformers would run code from the hub
        return "kernels from the hub are not used"
    return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_probability(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_token_id(value: Any) -> bool:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(one, int) and not isinstance(one, bool) for one in values)


def _named_dtype(value: Any) -> torch.dtype | None:
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    return found if isinstance(found, torch.dtype) else None


def _dtype(config: dict[str, Any]) -> torch.dtype | None:
    """Return the dtype of config.json, which versions of transformers before 5 call torch_dtype."""
    return _named_dtype(config.get("dtype", config.get("torch_dtype")))


class StatedIds(NamedTuple):
    """The special token ids that a model's files state, by name: in its config, its text config, and for generation."""

    config: dict[str, Any]
    text: dict[str, Any]
    generation: dict[str, Any]


def stated_ids(folder: Path) -> StatedIds:
    """Read the special token ids of a folder. Without a generation_config.json, generation has those of the config.

    Raises:
        InputError: config.json or generation_config.json is damaged.
    """
    config, path = read_config(folder), folder / "generation_config.json"
    generation = read_json(path) if path.exists() else config
    _check_values(path, generation, custom=False)
    return StatedIds(config, config.get("text_config", {}), generation)


def keep_stated_ids(module: PreTrainedModel, stated: StatedIds) -> None:
    """Remove the special token ids that no file states; transformers fills in those of the model's class."""
    text = module.config.get_text_config()
    for name in _TOKEN_IDS:
        if text is not module.config:
            setattr(text, name, stated.text.get(name))
        setattr(module.config, name, stated.config.get(name))
        setattr(module.generation_config, name, stated.generation.get(name))
