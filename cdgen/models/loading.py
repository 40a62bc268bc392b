"""Loading a language model from a folder, a hub name or a GGUF file."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cdgen.errors import InputError, first_line
from cdgen.hardware import free_memory, free_memory_text
from cdgen.models.configs import StatedIds, check_code, keep_stated_ids, read_config, stated_ids, stored_dtype
from cdgen.models.dtypes import default_dtype, dtype_name, float_dtype
from cdgen.models.files import Located, locate, weight_files
from cdgen.models.gguf import check_gguf, read_gguf, scale_rope
from cdgen.models.language_model import LanguageModel
from cdgen.models.load_errors import loading
from cdgen.models.tokenizers import find_tokenizer
from cdgen.models.weights import check_all_used, check_amount, check_finite, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("cdgen")


def usable_device(name: str | torch.device | None) -> torch.device:
    """Return a device that can be used; the default is cuda if available.

    Raises:
        InputError: torch does not know the device, or this machine does not have it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # names that torch does not know, or has no device for
        raise InputError(f"device = {str(name)!r}: cannot be used here: {first_line(error)}") from error
    return device


def load(
    source: str | Path | PreTrainedModel,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    with_tokenizer: bool = True,
) -> "tuple[LanguageModel, PreTrainedTokenizerBase | None]":
    """Load a model and, if there is one, its tokenizer.

    Args:
        source: a folder with config and safetensors, a checkpoint as RUN@best, RUN@latest or RUN@500, a GGUF file or a
            folder with one, a hub name, or a loaded model.
        dtype: torch dtype or its name; default: see :func:`~cdgen.models.dtypes.default_dtype`.
        device: default: cuda if available. A loaded model stays on its device.
        trust_remote_code: run Python code that comes with a checkpoint.
        with_tokenizer: load the tokenizer as well.
    Returns:
        the model, and its tokenizer or None.
    Raises:
        InputError: there is no model, it has no safetensors (pickled weights are not read), its files are damaged or do
            not fit together, a weight is NaN or infinite, or its architecture is not supported.
    """
    if isinstance(source, PreTrainedModel):
        name = source.config.name_or_path or type(source).__name__
        check_finite(name, source)
        return LanguageModel(source.eval(), name), None
    device = usable_device(device)
    if dtype is not None:
        dtype = float_dtype("dtype", dtype)
    with loading(source):
        located = locate(source, trust_remote_code)
        tokenizer = find_tokenizer(located.folder, located.gguf, trust_remote_code) if with_tokenizer else None
        if dtype is None:
            dtype = _default_dtype(source, device, trust_remote_code)
        module, files = _load_module(source, located, dtype, trust_remote_code)
        module = _moved(source, module, device)
        check_finite(source, module)
        model = LanguageModel(module.eval(), str(source), files)
    return model, tokenizer


def _default_dtype(source: str | Path, device: torch.device, trust_remote_code: bool) -> torch.dtype:
    stored = None if device.type == "cpu" else stored_dtype(source, trust_remote_code=trust_remote_code)
    dtype = default_dtype(stored, device.type)
    if device.type != "cpu" and stored != dtype:
        kind = "quantised or unstated" if stored is None else dtype_name(stored)
        text = "%s: weights (%s) are loaded in %s; use dtype='float32' for full precision"
        log.warning(text, source, kind, dtype_name(dtype))
    return dtype


def _load_module(
    source: str | Path, located: Located, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, tuple[Path, ...]]:
    """Return the model as its files state it, on the CPU, and the files that decide what it computes."""
    folder, gguf = located.folder, None
    files: tuple[Path, ...]
    if located.gguf:
        gguf, files = read_gguf(folder / located.gguf), (folder / located.gguf,)
        stored, ids, shapes = {}, StatedIds(*[gguf.token_ids] * 3), gguf.shapes
    else:
        check_code(source, read_config(folder), trust_remote_code)
        weights = weight_files(source, located)
        code = sorted(folder.glob("*.py")) if trust_remote_code else ()
        files, stored = (folder / "config.json", *weights, *code), stored_tensors(weights)
        ids, shapes = stated_ids(folder), {name: tensor.shape for name, tensor in stored.items()}
    options: dict[str, Any] = {"gguf_file": located.gguf} if located.gguf else {}
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **options)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    check_amount(source, skeleton, shapes)
    # Tensors of another shape are reported in `found`, from which check_all_used names them.
    module, found = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    check_all_used(source, module, found, stored)
    if gguf is not None:
        check_gguf(source, gguf, module)
        scale_rope(source, gguf, module)
    keep_stated_ids(module, ids)
    return module, files


def _moved(source: str | Path, module: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return the model on a device."""
    free = free_memory(device)
    try:
        return module.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(parameter.nbytes for parameter in module.parameters()) / 1e9
        raise InputError(f"{source}: its weights take {size:.2f} GB, but {free_memory_text(device, free)}") from error
