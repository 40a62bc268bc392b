"""Where a model is stored, and which of its files are read: never a pickle, never a file outside its folder."""

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cdgen.errors import InputError
from cdgen.models.load_errors import reason
from cdgen.storage.folder import check_regular
from cdgen.storage.runs import resolve
from cdgen.values import expanded

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")  # other surrogates are bytes that are not UTF-8
_SHARD_NAME = re.compile(r"[^/\\\0]+\.safetensors")
_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt")  # configs and tokenizers


class Located(NamedTuple):
    """Where a model is stored."""

    folder: Path
    gguf: str | None = None  # name of the GGUF file in the folder
    hub_name: str | None = None  # owner/name, if the folder is its copy in the cache


def locate(source: str | Path, trust_remote_code: bool = False) -> Located:
    """Find a model; the small files of a model on the hub are fetched.

    Args:
        source: a folder, a checkpoint as RUN@best, a GGUF file or a folder with one, or a hub name, owner/name.
        trust_remote_code: fetch Python files as well.
    Raises:
        InputError: there is no such model.
    """
    name = str(source)
    if not name or _NOT_IN_NAMES.search(name):
        raise InputError(f"{name!r}: no such folder or file")
    path = expanded(resolve(source))
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{source}: is a file; use a folder with config.json and safetensors, or a .gguf file")
        return Located(path.parent, path.name)
    if path.is_dir():
        return Located(path, _gguf_file(source, path))
    if not _HUB_NAME.fullmatch(name) or path.suffix == ".gguf":
        hint = "" if "/" in name else "; a model on the Hugging Face hub is named owner/name"
        raise InputError(f"{source}: no such folder or file{hint}")
    return Located(_fetched(name, [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES), None, name)


def weight_files(source: str | Path, located: Located) -> list[Path]:
    """Return the safetensors files of a model; those of a model on the hub are fetched.

    Raises:
        InputError: there are none, or the index names files that are missing or are not in the folder.
    """
    folder = located.folder
    single = (folder / _WEIGHTS).is_file() or not (folder / _INDEX).exists()
    names = [_WEIGHTS] if single else _shards(folder / _INDEX)
    if located.hub_name and not all((folder / name).is_file() for name in names):
        folder = _fetched(located.hub_name, [glob.escape(name) for name in names])
        if folder != located.folder:
            raise InputError(f"{source}: changed on the hub while it was fetched; rerun")
    if single and not (folder / _WEIGHTS).is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        place = (
            " on the hub, or it cannot be fetched" if located.hub_name else f", only {pickles[0]}" if pickles else ""
        )
        raise InputError(
            f"{source}: has no {_WEIGHTS}{place}; pickled weights are not read, because they can run code; "
            "to convert a model that you trust: AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(NEW_FOLDER)"
        )
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"{folder / _INDEX}: names {absent[0]}, which is not in the folder")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file cannot be read or holds anything else.
    """
    try:
        check_regular(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object")
    return content


def _gguf_file(source: str | Path, folder: Path) -> str | None:
    """Return the name of a folder's GGUF file, or None if it holds a config.json."""
    if (folder / "adapter_config.json").exists():  # transformers would load the model that it names
        raise InputError(f"{source}: holds an adapter; merge it into its base model and save that (merge_and_unload)")
    if (folder / "config.json").is_file():
        return None
    found = sorted(file.name for file in folder.glob("*.gguf"))
    if not found:
        raise InputError(f"{source}: holds neither config.json nor a .gguf file")
    if len(found) > 1:
        raise InputError(f"{source}: holds {len(found)} GGUF files; name one of them, such as {folder / found[0]}")
    return found[0]


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map, which names the file of each tensor")
    for tensor, name in places.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise InputError(f"{index}: puts {tensor} into {name!r}; a .safetensors file of the same folder is needed")
    if not isinstance(content.get("metadata"), dict):
        raise InputError(f"{index}: has no metadata, which transformers needs; add an empty object")
    return sorted(set(places.values()))


def _fetched(name: str, patterns: Iterable[str]) -> Path:
    """Return the cache's folder of a model on the hub; files that are not in the cache are fetched."""
    from huggingface_hub import constants, snapshot_download

    try:
        # The files of subfolders are other formats of the same model.
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:
        why = "it is not in the cache, and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason(error)
        raise InputError(f"{name}: no such folder, and cannot be fetched from the Hugging Face hub: {why}") from error
