"""Checks of a model's weights: every tensor is used, has the shape of its parameter, and holds numbers."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cdgen.errors import InputError, first_line
from cdgen.models.dtypes import dtype_name

# Masks and other buffers that old versions of transformers stored; the tensors of the same names have no dimension or
# four. transformers itself knows most of them.
_OLD_BUFFERS = re.compile(r"\.(attn|attention)\.(masked_)?bias$")

_NUMBERS = 100_000_000  # parameters that may be missing or of another shape without harm: 0.4 GB


class Stored(NamedTuple):
    """The shape of a stored tensor, and its dtype as safetensors calls it, such as BF16."""

    shape: tuple[int, ...]
    dtype: str


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Return shape and dtype of the tensors in safetensors files by name; only the headers are read.

    Raises:
        InputError: a file is damaged, or two files hold tensors of the same name.
    """
    tensors: dict[str, Stored] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found = {name: Stored(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: is truncated or damaged: {first_line(error)}") from error
        if twice := sorted(tensors.keys() & found.keys()):
            raise InputError(f"{path}: holds {twice[0]}, which another of the model's files holds as well")
        tensors |= found
    return tensors


def check_amount(source: str | Path, skeleton: PreTrainedModel, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise InputError if the config states a far larger model than is stored, before memory for it is taken.

    transformers fills tensors that are missing or have another shape with random numbers before it reports them.

    Args:
        source: the model, for the message.
        skeleton: the model on the device "meta".
        shapes: the shapes of the stored tensors, by name.
    """
    packed = getattr(skeleton.config, "quantization_config", None)  # an integer then holds up to 16 parameters
    held = sum(map(math.prod, shapes.values()))
    needed = sum(parameter.numel() for parameter in skeleton.parameters())
    if needed <= (32 if packed else 2) * held + _NUMBERS:
        return
    own, prefix = skeleton.state_dict(), f"{skeleton.base_model_prefix}."
    for name, shape in sorted(shapes.items()):
        parameter = own.get(name, own.get(prefix + name))
        if parameter is not None and tuple(parameter.shape) != shape:
            raise InputError(f"{source}: {_of_another_shape(name, shape, parameter.shape)}")
    raise InputError(f"{source}: its weights hold {held:,} numbers, but its config states a model of {needed:,}")


def check_all_used(
    source: str | Path, module: PreTrainedModel, found: dict[str, Any], stored: dict[str, Stored]
) -> None:
    """Raise InputError unless the weights are exactly those that the config describes.

    transformers initialises missing tensors at random, ignores surplus ones, and converts integers. Its report leaves
    out the buffers that checkpoints of older versions hold and that are computed now.

    Args:
        source: the model, for the message.
        module: the loaded model.
        found: the report of transformers (`output_loading_info`).
        stored: the stored tensors; empty for a GGUF file.
    """
    own = module.state_dict()
    if mismatched := sorted(found["mismatched_keys"]):
        name, shape, needed = mismatched[0]
        raise InputError(f"{source}: {_of_another_shape(name, shape, needed)}{_more(mismatched)}")
    if missing := sorted(found["missing_keys"]):
        name = _tensor(missing[0], own[missing[0]].shape if missing[0] in own else None)
        raise InputError(f"{source}: its weights lack {name}, which the config states{_more(missing)}")
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    buffers = {name for name, shape in shapes.items() if len(shape) in (0, 4) and _OLD_BUFFERS.search(name)}
    if surplus := sorted(set(found["unexpected_keys"]) - buffers):
        raise InputError(
            f"{source}: its weights hold {_tensor(surplus[0], shapes.get(surplus[0]))}, which a model with this config "
            f"does not use{_more(surplus)}; correct the config or remove the tensor"
        )
    if twice := _same_parameter(own, f"{module.base_model_prefix}.", stored):
        first, second = (_tensor(name, shapes[name]) for name in twice)
        raise InputError(
            f"{source}: its weights hold {first} and {second}, which are one parameter; remove one of them"
        )
    if found.get("error_msgs"):
        raise InputError(f"{source}: cannot load the model: {found['error_msgs'][0]}")
    if stored and getattr(module, "hf_quantizer", None) is None:
        if getattr(module.config, "quantization_config", None):
            raise InputError(f"{source}: its weights are quantised by a method that transformers does not know")
        prefix = f"{module.base_model_prefix}."
        for name, tensor in stored.items():
            parameter = own.get(name, own.get(prefix + name))
            # Weights of another name are those of experts, which transformers merges.
            is_float = name.endswith(".weight") if parameter is None else parameter.is_floating_point()
            if is_float and "F" not in tensor.dtype:
                raise InputError(f"{source}: {_tensor(name, tensor.shape)} is stored as {tensor.dtype}, not as floats")


def _same_parameter(own: Mapping[str, Any], prefix: str, stored: Iterable[str]) -> tuple[str, str] | None:
    """Return two stored names that transformers takes for one of the model's parameters, or None.

    It adds or removes the prefix of the base model where that is needed, and loads either of the two without a word.

    Args:
        own: the model's parameters by name.
        prefix: the prefix of the base model, such as "model.".
        stored: the names in the files.
    """
    taken: dict[str, str] = {}
    for name in sorted(stored):
        parameter = next((each for each in (name, prefix + name, name.removeprefix(prefix)) if each in own), None)
        if parameter in taken:
            return taken[parameter], name
        if parameter is not None:
            taken[parameter] = name
    return None


def _of_another_shape(name: str, shape: Iterable[int], needed: Iterable[int]) -> str:
    return f"{_tensor(name, shape)} has another shape than the config states, {list(needed)}"


def _tensor(name: str, shape: Iterable[int] | None) -> str:
    return name if shape is None else f"{name} {list(shape)}"


def _more(names: list[Any]) -> str:
    return f" ({len(names)} tensors in all)" if len(names) > 1 else ""


def check_finite(source: str | Path, module: PreTrainedModel) -> None:
    """Raise InputError if a weight is NaN or infinite; every weight is read once, on the model's device."""
    tensors = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel()
    }
    if not tensors:
        return
    extremes = [torch.stack(tensor.aminmax()).float() for tensor in tensors.values()]  # NaN if one of them is
    finite = torch.stack([extreme.to(module.device) for extreme in extremes]).isfinite().all(1).tolist()
    for (name, tensor), good in zip(tensors.items(), finite, strict=True):
        if not good:
            kind = dtype_name(tensor.dtype)
            raise InputError(f"{source}: {_tensor(name, tensor.shape)} holds NaN or infinity in {kind}")
