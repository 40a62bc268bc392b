"""Models on this machine. Nothing is downloaded: a report may name models for which that would take hours."""

import math
from pathlib import Path
from typing import NamedTuple

from cdgen.errors import InputError
from cdgen.models.files import locate, weight_files
from cdgen.models.gguf import read_gguf
from cdgen.models.weights import stored_tensors
from cdgen.storage.runs import resolve
from cdgen.values import expanded


class ModelFiles(NamedTuple):
    """The size of a model: its number of weights, and the bytes of their files."""

    parameters: int
    bytes: int


def local_source(source: str) -> str:
    """Return a name by which a model is loaded without a download.

    Args:
        source: a folder, a checkpoint as RUN@best, a GGUF file or a folder with one, or a hub name.
    Returns:
        `source`, or for a hub name the folder in the cache: by its name, a newer version might be fetched.
    Raises:
        InputError: it is not on this machine.
    """
    if expanded(resolve(source)).exists():
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise InputError(f"{source}: is not on this machine") from None
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{source}: its weights are not on this machine")
    return str(folder)


def model_files(source: str) -> ModelFiles:
    """Return the size of a model; of its weights, only the headers are read.

    Raises:
        InputError: it is not on this machine, or damaged.
    """
    source = local_source(source)
    located = locate(source)
    if located.gguf:
        path = located.folder / located.gguf
        return ModelFiles(sum(map(math.prod, read_gguf(path).shapes.values())), path.stat().st_size)
    files = weight_files(source, located)
    tensors = stored_tensors(files)
    return ModelFiles(sum(math.prod(one.shape) for one in tensors.values()), sum(path.stat().st_size for path in files))
