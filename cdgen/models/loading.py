"""Loading a language model from a folder, a hub name or a GGUF file."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from cdgen.errors import InputError, first_line
from cdgen.hardware import free_memory, free_memory_text
from cdgen.models.dtypes import default_dtype, dtype_name, float_dtype
from cdgen.models.language_model import LanguageModel
from cdgen.models.quiet import quiet_transformers
from cdgen.storage.runs import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("cdgen")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class _Located(NamedTuple):
    """Where a model is stored."""

    folder: str  # a folder or a hub name
    gguf: str | None  # name of the GGUF file in the folder


def _device(name: str | torch.device | None) -> torch.device:
    """Return a device that can be used; the default is cuda if available."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # names that torch does not know, or has no device for
        raise InputError(f"device = {str(name)!r}: cannot be used here: {first_line(error)}") from error
    return device


def load(
    source: str | Path | PreTrainedModel,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> "tuple[LanguageModel, PreTrainedTokenizerBase | None]":
    """Load a model and, if there is one, its tokenizer.

    Args:
        source: a folder with config and safetensors, a checkpoint as RUN@best, RUN@latest or RUN@500, a GGUF file or a
            folder with one, a hub name, or a loaded model.
        dtype: torch dtype or its name; default: see :func:`~cdgen.models.dtypes.default_dtype`.
        device: default: cuda if available. A loaded model stays on its device.
        trust_remote_code: run Python code that comes with a checkpoint.
    Returns:
        the model, and its tokenizer or None.
    Raises:
        InputError: there is no model, it has no safetensors (pickled weights are not read), or its architecture is not
            supported.
    """
    if isinstance(source, PreTrainedModel):
        return LanguageModel(source.eval(), source.config.name_or_path or type(source).__name__), None
    device = _device(device)
    folder, gguf = _locate(source)
    if dtype is None:
        stored = None if device.type == "cpu" else stored_dtype(source, trust_remote_code=trust_remote_code)
        dtype = default_dtype(stored, device.type)
        if device.type != "cpu" and stored != dtype:
            kind = "quantised or unstated" if stored is None else dtype_name(stored)
            text = "%s: weights (%s) are loaded in %s; use dtype='float32' for full precision"
            log.warning(text, source, kind, dtype_name(dtype))
    dtype = float_dtype("dtype", dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code} | ({"gguf_file": gguf} if gguf else {})
    with quiet_transformers():
        try:
            weights = {} if gguf else {"use_safetensors": True}
            module, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, **weights, **options
            )
        except SafetensorError as error:
            raise InputError(f"{source}: a weight file is truncated or damaged: {first_line(error)}") from error
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{source}: cannot load the model: {first_line(error)}") from error
        if missing := sorted(found["missing_keys"]):  # transformers initialises them at random
            raise InputError(f"{source}: {len(missing)} tensors are missing from its weights, such as {missing[0]}")
        files = (Path(folder, gguf),) if gguf else _weight_files(folder)
        free = free_memory(device)
        try:
            module = module.to(device)
        except torch.OutOfMemoryError as error:
            size = sum(parameter.nbytes for parameter in module.parameters()) / 1e9
            room = free_memory_text(device, free)
            raise InputError(f"{source}: its weights take {size:.2f} GB, but {room}") from error
        return LanguageModel(module.eval(), str(source), files), _load_tokenizer(folder, options)


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the transformers config of the model that :func:`load` would load."""
    folder, gguf = _locate(source)
    options = {"gguf_file": gguf} if gguf else {}
    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{source}: cannot read the config: {first_line(error)}") from error


def _load_tokenizer(folder: str, options: dict[str, Any]) -> "PreTrainedTokenizerBase | None":
    local = Path(folder)
    if local.is_dir() and "gguf_file" not in options and not any((local / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError) as error:
        log.info("%s: no tokenizer: %s", folder, first_line(error))
        return None


def stored_dtype(source: str | Path, *, trust_remote_code: bool = False) -> torch.dtype | None:
    """Return the dtype that a checkpoint's config states; None if it states none, and for GGUF files."""
    if _locate(source)[1]:
        return None
    stored = getattr(load_config(source, trust_remote_code=trust_remote_code), "dtype", None)
    return getattr(torch, stored, None) if isinstance(stored, str) else stored


def _locate(source: str | Path) -> _Located:
    path = Path(resolve(source)).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{source}: is a file; use a folder with config.json and safetensors, or a .gguf file")
        return _Located(str(path.parent), path.name)
    if path.is_dir():
        found = sorted(file.name for file in path.glob("*.gguf"))
        if (path / "config.json").exists() or not found:
            if not (path / "config.json").exists():
                raise InputError(f"{source}: holds neither config.json nor a .gguf file")
            return _Located(str(path), None)
        if len(found) > 1:
            raise InputError(f"{source}: holds {len(found)} GGUF files; name one of them, such as {path / found[0]}")
        return _Located(str(path), found[0])
    name = str(source)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise InputError(f"{source}: no such folder or file")
    return _Located(name, None)


def _weight_files(folder: str) -> tuple[Path, ...]:
    """Return config and weight files of a folder, or of a hub name that was just loaded."""

    def find(name: str) -> Path | None:
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False, local_files_only=True)
        return Path(path) if path else None

    index = find("model.safetensors.index.json")
    single = find("model.safetensors")
    names = set(json.loads(index.read_text())["weight_map"].values()) if index and not single else ()
    return tuple(path for path in (find("config.json"), single, *map(find, sorted(names))) if path)
