"""Verify a corpus: whether its folder holds every row that its manifest states once, and nothing else."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdgen.corpus import card, parts, shards
from cdgen.corpus.manifest import files_of, shard_count
from cdgen.corpus.verify_rows import Faulty, Rows, batches, check_documents
from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests
from cdgen.storage.checked_json import fault as field_fault
from cdgen.storage.folder import RESERVED, file_sha256
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import BYTES, Progress, Silent
from cdgen.wording import counted

_RERUN = "rerun the command that wrote the corpus"
_REWRITE = f"delete it, and {_RERUN}"
_SETTINGS = {"n": int, "shard_size": int, "vocab_size": int, "max_tokens": (int, None)}  # rows depend on them


class Verified(NamedTuple):
    """What a corpus holds, and what is wrong with it.

    Attributes:
        content: a few words such as "430 texts of 215 seeds in 1 shard, 43,000 new tokens".
        faults: for each fault the file, the problem and the remedy, in one line.
    """

    content: str
    faults: list[str]


def verify(folder: Path, progress: Progress | None = None) -> Verified:
    """Verify a generated or prepared corpus. Every file is read; nothing is written.

    Of a generated corpus, this checks that it is complete; the checksum of every file; that each seed has its
    continuations once and in order, with one prompt; the fingerprint of the seeds, computed from the rows; tokens,
    lengths and columns against the settings; the documents of each shard; and the counts in the manifest. Of a prepared
    corpus, checksums, numbers of documents and bytes, and that no text occurs twice. Of both, that the folder holds
    no file that readers of the corpus would take for a part of it, and that the dataset card states the right numbers.

    Args:
        folder: the corpus's folder.
        progress: receives the bytes that are read.
    Raises:
        InputError: the folder holds neither a generated nor a prepared corpus.
    """
    kinds = (manifests.GENERATED, manifests.PREPARED)
    kind = next((kind for kind in kinds if (folder / manifests.FILE_NAMES[kind]).exists()), None)
    if kind is None:
        names = " nor a ".join(manifests.FILE_NAMES[kind] for kind in kinds)
        raise InputError(f"{folder}: is not the folder of a corpus: it has neither a {names}")
    try:
        manifest = manifests.read(folder, kind, "restore it from a copy, or write the corpus again")
    except CorpusError as error:
        return Verified("a corpus", [str(error)])
    assert manifest is not None, "the file exists"
    verification = _Generated if kind == manifests.GENERATED else _Prepared
    checked = verification(folder, manifest, progress or Silent())
    faults = [*checked.faults(), *_left_over(folder, manifest, checked.digests), *_card(folder, manifest)]
    return Verified(checked.content(), faults)


class _Generated:
    """Verifies a generated corpus.

    Attributes:
        digests: sha256 of its files by name.
    """

    def __init__(self, folder: Path, manifest: Manifest, progress: Progress) -> None:
        self._folder, self._manifest, self._progress = folder, manifest, progress
        self.digests = files_of(manifest)

    def content(self) -> str:
        """Return what the manifest states, in a few words."""
        counts, seeds = self._manifest["counts"], self._manifest["seeds"].get("count")
        of = f" of {counted(seeds, 'seed')}" if seeds is not None else ""
        in_shards = f"in {counted(counts['shards'], 'shard')}, {counted(counts['new_tokens'], 'new token')}"
        return f"{counted(counts['documents'], 'text')}{of} {in_shards}"

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the files that the manifest lists."""
        manifest, settings = self._manifest, self._manifest["settings"]
        path = self._folder / manifests.FILE_NAMES[manifests.GENERATED]
        problem = field_fault(settings, _SETTINGS, "settings")
        if problem or "count" not in manifest["seeds"] or not settings["n"] * settings["shard_size"]:
            yield f"{path}: {problem or 'has no number of rows'}, so its rows cannot be checked; {_RERUN}"
            return
        total = manifest["seeds"]["count"] * settings["n"]
        numbers = [shard["number"] for shard in manifest["shards"]]
        expected = shard_count(total, settings["shard_size"])
        present = {number for number in numbers if number < expected}
        is_whole = len(present) == expected
        if not (is_whole and manifest["complete"]):
            missing = f"{expected - len(present):,} of {counted(expected, 'shard')} are missing"
            yield f"{self._folder}: is not finished: {'the last step is missing' if is_whole else missing}; {_RERUN}"
        if numbers != sorted(present):
            yield f"{path}: lists shards that are not part of the corpus, or lists them twice; {_RERUN}"
            return
        self._progress.begin(_size(self._folder, self.digests), unit=BYTES, verb="read")
        rows = Rows(settings, total)
        for shard in manifest["shards"]:
            if problem := self._shard(rows, shard):
                is_whole = False
                yield problem
        if is_whole and rows.fingerprint != manifest["seeds"]["fingerprint"]:
            yield f"{self._folder}: its seeds are not those of the manifest: their fingerprint differs; {_RERUN}"
        sums = {name: sum(shard[name] for shard in manifest["shards"]) for name in ("tokens", "new_tokens", "errors")}
        sums |= {"shards": len(numbers), "documents": sum(shard["rows"] for shard in manifest["shards"])}
        for name, count in sums.items():
            if (stated := manifest["counts"][name]) != count:
                yield f"{path}: field 'counts.{name}' is {stated}, but the shards have {count}; {_RERUN}"

    def _shard(self, rows: Rows, shard: dict[str, Any]) -> str | None:
        """Check the files of a shard; return the first fault."""
        settings = self._manifest["settings"]
        name = shard["name"]
        try:
            _check_file(self._folder / name, shard["sha256"])
            keys = rows.check(self._folder / name, shard, self._progress)
            if settings["split_documents"]:
                name = shard["documents"]["name"]
                _check_file(self._folder / name, shard["documents"]["sha256"])
                check_documents(self._folder / name, settings["format"], shard["documents"]["rows"], keys)
                self._progress.advance((self._folder / name).stat().st_size)
        except Faulty as fault:
            return f"{self._folder / name}: {fault}; {_REWRITE if (self._folder / name).exists() else _RERUN}"
        return None


class _Prepared:
    """Verifies a prepared corpus.

    Attributes:
        digests: sha256 of its files by name.
    """

    def __init__(self, folder: Path, manifest: Manifest, progress: Progress) -> None:
        self._folder, self._manifest, self._progress = folder, manifest, progress
        self.digests = {name: about["sha256"] for name, about in manifest["files"].items()}

    def content(self) -> str:
        """Return what the manifest states, in a few words."""
        splits = [name.removesuffix(".parquet") for name in self.digests]
        return ", ".join(
            f"{counted(self._manifest['counts'][name]['documents'], 'document')} in {name}" for name in splits
        )

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the files that the manifest lists."""
        self._progress.begin(_size(self._folder, self.digests), unit=BYTES, verb="read")
        hashes = array("Q")
        for name, sha256 in self.digests.items():
            try:
                _check_file(self._folder / name, sha256)
                self._split(name, hashes)
            except Faulty as fault:
                yield f"{self._folder / name}: {fault}; {_REWRITE if (self._folder / name).exists() else _RERUN}"
        if repeated := len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64))):
            yield f"{self._folder}: has {counted(repeated, 'document')} with the text of another one; write it again"

    def _split(self, name: str, hashes: "array[int]") -> None:
        """Check the rows of a split; add a hash of each text to `hashes`."""
        stated = self._manifest["counts"][name.removesuffix(".parquet")]
        before, size = len(hashes), 0
        for batch in batches(self._folder / name, "parquet", shards.PREPARED):
            for text in batch["text"].to_pylist():
                data = text.encode()
                size += len(data)
                hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))
        count = len(hashes) - before
        if count != stated["documents"] or size != stated["bytes"]:
            found = f"{counted(count, 'document')} and {counted(size, 'byte')}"
            raise Faulty(f"has {found}, but the manifest states {stated['documents']:,} and {stated['bytes']:,}")
        self._progress.advance((self._folder / name).stat().st_size)


def _check_file(path: Path, sha256: str) -> None:
    """Raise Faulty if a file is missing, cannot be read, or has another checksum."""
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        raise Faulty("is missing") from None
    except OSError as error:
        raise Faulty(f"cannot be read: {error.strerror}") from error
    if found != sha256:
        raise Faulty("is truncated or altered: its checksum differs")


def _size(folder: Path, names: Iterable[str]) -> int:
    """Return the size of the files that exist."""
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def _left_over(folder: Path, manifest: Manifest, names: Iterable[str]) -> Iterator[str]:
    """Yield faults for files that the manifest does not list, but that readers might take for parts of the corpus."""
    if manifest["kind"] == manifests.GENERATED:
        readable = [path for part in ("data", "_documents") for path in sorted((folder / part).glob("[!._]*"))]
    else:
        readable = [folder / name for name in ("train.parquet", "test.parquet", "seeds.parquet")]
    for path in readable:
        if path.relative_to(folder).as_posix() not in names and path.exists():
            yield f"{path}: the manifest does not list this file, but readers of the corpus may read it; move it away"
    if not manifest.get("complete", True):
        return  # a journal and the folders of tasks belong to a corpus that is not finished
    own = [*sorted(folder.glob(f"{RESERVED}*")), *parts.part_folders(folder)]
    for path in own:
        yield f"{path}: was left by a process that was killed, or that still runs; {_RERUN}, or delete it"


def _card(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the fault of the dataset card, if there is a card."""
    path = folder / card.NAME
    if manifest.get("complete", True) and path.is_file():
        try:
            problem = card.fault(path.read_bytes(), manifest)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem:
            yield f"{path}: {problem}; correct it, or delete it and rerun the command that wrote the corpus"
