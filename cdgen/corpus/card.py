"""The dataset card of a corpus: README.md, which describes the files of the corpus to `datasets` and the hub.

Its metadata follow https://huggingface.co/docs/hub/datasets-cards: configurations with the files of each split,
features, numbers of rows and bytes. The last line of a card is a checksum of the lines above it. If it does not match,
a user has edited the card, which is then never overwritten.
"""

import hashlib
import logging
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from cdgen.corpus import card_text, shards
from cdgen.errors import CorpusError, first_line
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest

log = logging.getLogger("cdgen")

NAME = "README.md"
_SEALED = re.compile(rb"(.*\n)<!-- Written by cdgen, sha256 ([0-9a-f]{64})\. [^\n]*-->\n", re.DOTALL)
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # bounds of the hub's size categories
_TO_CHOOSE = (
    "# license: name one, such as cc-by-4.0; the terms of the texts and of the models may apply",
    "# language: name them, such as [en]",
)


class Split(NamedTuple):
    """A split of a data set.

    Attributes:
        name: its name.
        path: a pattern that its files match, within the folder.
        rows: number of rows.
        files: for each of its files, the name and the memory of its rows as an Arrow table, or None if that is unknown.
    """

    name: str
    path: str
    rows: int
    files: list[tuple[str, int | None]]


class Config(NamedTuple):
    """A configuration of a data set: splits with the same columns."""

    name: str
    schema: pa.Schema
    splits: list[Split]


def write(folder: OutputFolder, manifest: Manifest) -> None:
    """Write the card of a complete corpus, or delete the card of an incomplete one, whose sizes no longer hold.

    Call this after the manifest and the files that it lists have been written. A rerun that finds a complete corpus
    calls it as well, so nothing is lost if a process is killed in between. A card that a user has edited or written
    stays as it is, with a warning if it contradicts the corpus.

    Args:
        folder: the corpus's folder, entered.
        manifest: the manifest of a generated or prepared corpus.
    Raises:
        CorpusError: the folder cannot be read or written.
    """
    path = folder.path / NAME
    try:
        old = path.read_bytes() if path.exists() else None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    is_own = old is not None and _is_sealed(old)
    if not manifest.get("complete", True):
        if is_own:
            folder.remove(NAME)
    elif old is None or is_own:
        new = content(folder, manifest)
        if new != old:
            folder.write(NAME, new)
    elif problem := fault(old, manifest):
        log.warning("%s: %s; it was edited and stays as it is: correct it, or delete it and rerun", path, problem)


def content(folder: OutputFolder, manifest: Manifest) -> bytes:
    """Return the card of a complete corpus.

    Args:
        folder: the corpus's folder, which holds the files that the manifest lists.
        manifest: the manifest of a generated or prepared corpus.
    """
    from huggingface_hub import DatasetCardData

    found = configs(manifest)
    info = [_info(folder, config, named=len(found) > 1) for config in found]
    data = DatasetCardData(
        task_categories=["text-generation"],
        tags=["cdgen", *(["synthetic"] if manifest["kind"] == manifests.GENERATED else [])],
        size_categories=[_size_category(sum(split.rows for split in found[0].splits))],
        configs=[
            {
                "config_name": config.name,
                "data_files": [{"split": split.name, "path": split.path} for split in config.splits],
            }
            for config in found
        ],
        dataset_info=info if len(info) > 1 else info[0],
    )
    body = card_text.generated if manifest["kind"] == manifests.GENERATED else card_text.prepared
    lines = ["---", *_TO_CHOOSE, data.to_yaml(line_break="\n"), "---", "", *body(manifest)]
    text = ("\n".join(lines) + "\n\n").encode(errors="backslashreplace")
    note = "An edited card is never overwritten."
    return text + f"<!-- Written by cdgen, sha256 {hashlib.sha256(text).hexdigest()}. {note} -->\n".encode()


def fault(card: bytes, manifest: Manifest) -> str | None:
    """Return how the metadata of a card contradict the corpus, or None.

    `datasets` refuses to load a data set if its card states another number of rows.

    Args:
        card: the content of the card's file.
        manifest: the manifest of a complete corpus.
    """
    from huggingface_hub import DatasetCard

    if not card.startswith(b"---"):
        return None  # a text without metadata
    try:
        info = DatasetCard(card.decode()).data.get("dataset_info") or []
        stated = {
            (each.get("config_name", "default"), split["name"]): split.get("num_examples")
            for each in (info if isinstance(info, list) else [info])
            for split in each.get("splits") or []
        }
    except Exception as error:  # errors of the YAML parser, and metadata of any other form
        return f"its metadata cannot be read: {first_line(error)}"
    for config in configs(manifest):
        for split in config.splits:
            rows = stated.get((config.name, split.name))
            if rows not in (None, split.rows):
                return f"it states {rows} rows in the split {split.name} of {config.name}, but there are {split.rows}"
    return None


def configs(manifest: Manifest) -> list[Config]:
    """Return the configurations of a generated or prepared corpus; the first is the default."""
    if manifest["kind"] == manifests.PREPARED:
        splits = []
        for name, about in manifest["files"].items():
            split = name.removesuffix(".parquet")
            rows = manifest["counts"][split]["documents"]
            splits.append(Split(split, name, rows, [(name, about.get("arrow_bytes"))]))
        return [Config("default", shards.PREPARED, splits)]
    settings, entries = manifest["settings"], manifest["shards"]
    ending = shards.FORMATS[settings["format"]]
    rows = shards.ROW_WITH_LOGPROBS if settings.get("logprobs") else shards.ROW
    found = [Config("default", rows, [_train(f"data/train-*{ending}", entries)])]
    if settings["split_documents"]:
        documents = _train(f"_documents/*{ending}", [entry["documents"] for entry in entries])
        if documents.rows:  # datasets refuses a split without rows
            found.append(Config("documents", shards.DOCUMENT, [documents]))
    return found


def _train(path: str, entries: Iterable[Any]) -> Split:
    """Return the only split of a generated corpus's texts or documents."""
    entries = list(entries)
    files = [(entry["name"], entry.get("arrow_bytes")) for entry in entries]
    return Split("train", path, sum(entry["rows"] for entry in entries), files)


def _info(folder: OutputFolder, config: Config, named: bool) -> dict[str, Any]:
    """Return a configuration's `dataset_info`, without its splits if the manifest does not state their bytes."""
    info: dict[str, Any] = {"config_name": config.name} if named else {}
    info["features"] = [_feature(field) for field in config.schema]
    names, sizes = zip(*(file for split in config.splits for file in split.files), strict=True)
    if None not in sizes:
        info["splits"] = [
            {"name": split.name, "num_bytes": sum(size or 0 for _, size in split.files), "num_examples": split.rows}
            for split in config.splits
        ]
        info["dataset_size"] = sum(sizes)
    return info | {"download_size": sum((folder.path / name).stat().st_size for name in names)}


def _feature(field: pa.Field) -> dict[str, Any]:
    """Return a column as `datasets` describes it in YAML; all its versions read "sequence" as a list."""
    if pa.types.is_list(field.type):
        return {"name": field.name, "sequence": _dtype(field.type.value_type)}
    return {"name": field.name, "dtype": _dtype(field.type)}


def _dtype(type: pa.DataType) -> str:
    return {"float": "float32"}.get(str(type), str(type))


def _size_category(rows: int) -> str:
    """Return the hub's name for a number of rows, such as 10K<n<100K."""
    above = sum(rows >= 10 ** (3 + at) for at in range(len(_SIZES)))
    if above == 0:
        return f"n<{_SIZES[0]}"
    return f"n>{_SIZES[-1]}" if above == len(_SIZES) else f"{_SIZES[above - 1]}<n<{_SIZES[above]}"


def _is_sealed(card: bytes) -> bool:
    """Return whether cdgen wrote a card that has not been edited since."""
    found = _SEALED.fullmatch(card)
    return found is not None and hashlib.sha256(found[1]).hexdigest().encode() == found[2]
