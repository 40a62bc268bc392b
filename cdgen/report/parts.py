"""The parts of a report: corpora, training runs, tokenizers, results and comparisons that were found on disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cdgen.corpus.records import format_of
from cdgen.errors import CorpusError
from cdgen.storage import manifest as manifests
from cdgen.storage.manifest import Manifest

TEXT = "text"  # kind of a file of texts, which has no manifest


@dataclass(frozen=True)
class Part:
    """A folder that a command of cdgen has written, or a file of texts.

    Attributes:
        kind: a kind of manifest, or :data:`TEXT`.
        name: how the report calls it.
        path: where it is.
        manifest: its manifest, in which a training run lists deleted checkpoints too; empty for a file of texts.
    """

    kind: str
    name: str
    path: Path
    manifest: Manifest


def find_part(path: Path, name: str) -> Part | None:
    """Return the part in a folder, or None if the folder has no manifest of cdgen.

    Raises:
        CorpusError: its manifest is damaged, or of another version of cdgen.
    """
    damaged = None
    for kind, file in manifests.FILE_NAMES.items():
        if not (path / file).exists():
            continue
        try:
            manifest = manifests.read(path, kind, "restore it, or rerun the command that wrote it")
        except CorpusError as error:  # or a manifest of another kind, whose file has the same name
            damaged = damaged or error
            continue
        if manifest is not None:
            return Part(kind, name, path, manifest)
    if damaged:
        raise damaged
    return None


def find_text_part(path: Path, name: str) -> Part | None:
    """Return a file of texts, or a folder with `train.parquet` or of `datasets`; None for anything else."""
    if path.is_dir():
        is_text = (path / "train.parquet").exists() or (path / "state.json").exists()
    else:
        is_text = format_of(path) is not None
    return Part(TEXT, name, path, {}) if is_text else None


def reason(error: Exception) -> str:
    """Return why something cannot be read, for a note: an error of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def of_kind(parts: Iterable[Part], *kinds: str) -> list[Part]:
    """Return the parts of some kinds, in their order."""
    return [part for part in parts if part.kind in kinds]
