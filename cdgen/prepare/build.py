"""Prepare a corpus from any mix of texts.

Every source is read twice: first to index the documents, which decides their splits, and then to write them.
"""

import contextlib
import logging
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdgen.corpus import card
from cdgen.corpus.records import HUB
from cdgen.corpus.shards import PREPARED
from cdgen.errors import CorpusError, InputError
from cdgen.prepare.by_file import UNITS
from cdgen.prepare.description import Input, describe, difference
from cdgen.prepare.index import LEFT_OUT, SPLITS, Index, check_shares
from cdgen.prepare.prepared import PreparedCorpus
from cdgen.prepare.sources import Source, documents, files, listed_sources
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder, file_sha256
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import BYTES, Progress, displayed
from cdgen.values import INT64_MAX, integer, shown, switch

log = logging.getLogger("cdgen")

_GROUP = 8 << 20  # characters per row group


def prepare_corpus(
    sources: Source | str | os.PathLike[str] | Iterable[Source | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    test: float = 0.05,
    seeds: float = 0.05,
    seed: int = 42,
    split_by: str = "document",
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> PreparedCorpus:
    """Write train.parquet, test.parquet, seeds.parquet (columns id, source, text) and manifest.json to a folder.

    A document's split is a function of its text and `seed` alone. No text is therefore in two splits, and adding
    sources moves no document. Of equal texts only the first is kept, by source name, file and position.

    With `split_by="file"`, all documents of a file are in the same split, so that no book is in two splits if its
    chapters are documents. The split is then a function of `seed` and of the texts in all files of the source.

    Args:
        sources: the texts, in any order. A string or path is a source as on the command line, see
            :func:`~cdgen.prepare.sources.parse_source`; for example "books/*.txt,by=heading".
        out: the output folder.
        test: share of the documents in the test split; 0 for no such split. By file, the minimum share of the words of
            each source: whole files are added until the split has it.
        seeds: share of the documents that are held out as seeds for generation, likewise.
        seed: seed of the splits.
        split_by: "document" or "file".
        overwrite: replace a prepared corpus in the folder that has other sources or settings.
        progress: True shows a progress bar, as in :meth:`cdgen.ContrastiveLM.generate`; or a display of your own.
    Returns:
        The corpus: the path of each split, and the number of its documents and words.
    Raises:
        InputError: a source cannot be read or is empty; a split has no documents; a source has too few files to be
            split by file; or `out` holds another corpus.
        CorpusError: the folder cannot be written, or it holds altered files or files that cdgen did not write.
    """
    settings = _settings(test, seeds, seed, split_by)
    overwrite = switch("overwrite", overwrite)
    sources = listed_sources(sources)
    inputs = [Input(number, path) for number, source in enumerate(sources) for path in files(source)]
    with OutputFolder(out) as folder:
        manifest = describe(sources, inputs, settings)
        old = _existing(folder, manifest, overwrite)
        if old is not None and old["fingerprint"] == manifest["fingerprint"]:
            manifests.finish_replacing(folder, old, _digests(old))
            if manifests.is_intact(folder, _digests(old), overwrite):
                card.write(folder, old)
                return PreparedCorpus.of(folder.path, old, written=False)
        if old is not None:
            manifest["replaces"] = manifests.listed(old, old["files"])
            manifests.check_not_replaced(folder.path, [path for _, path in inputs], manifest["replaces"])
        with displayed(progress) as display:
            _write(folder, manifest, sources, inputs, display)
        manifests.finish_replacing(folder, manifest, _digests(manifest))
        card.write(folder, manifest)
        return PreparedCorpus.of(folder.path, manifest, written=True)


def _settings(test: float, seeds: float, seed: int, split_by: str) -> dict[str, Any]:
    """Check the settings of the splits, and return them as the manifest stores them."""
    test, seeds = check_shares(test, seeds)
    found: dict[str, Any] = {"test": test, "seeds": seeds, "seed": integer("seed", seed, -INT64_MAX, INT64_MAX)}
    if split_by not in UNITS:
        raise InputError(f"split_by = {shown(split_by)}: use {' or '.join(UNITS)}")
    if split_by != UNITS[0]:  # without the default, the fingerprints of existing corpora stay valid
        found["split_by"] = split_by
    return found


def _existing(folder: OutputFolder, manifest: Manifest, overwrite: bool) -> Manifest | None:
    """Return the folder's own manifest, or None; raise if it holds another corpus or files that cdgen did not write."""
    old = manifests.read(folder.path, manifests.PREPARED)
    manifests.check_no_other_kind(folder.path, manifests.PREPARED)
    manifests.check_free(folder.path, map(_file, SPLITS), manifests.listed(old, old["files"] if old else ()))
    if old is not None and old["fingerprint"] != manifest["fingerprint"] and not overwrite:
        raise InputError(
            f"{folder.path}: holds a corpus of other sources or settings ({difference(old, manifest)}); "
            "choose another folder, or use overwrite=True"
        )
    return old


def _digests(manifest: Manifest) -> dict[str, str]:
    """Return the sha256 of a corpus's files by name."""
    return {name: about["sha256"] for name, about in manifest["files"].items()}


def _file(split: str) -> str:
    return f"{split}.parquet"


def _write(
    folder: OutputFolder, manifest: Manifest, sources: list[Source], inputs: list[Input], progress: Progress
) -> None:
    """Read the sources twice, write the splits, and complete and write the manifest."""
    settings = manifest["settings"]
    states = [_state(path) for _, path in inputs]
    index, empty = _read(sources, inputs, settings["seed"], progress)
    decision, counts = index.decide(sources, settings["test"], settings["seeds"], settings.get("split_by", UNITS[0]))
    for about, found, none in zip(manifest["sources"], counts, empty, strict=True):
        about |= {"empty": none} | found
    _check(sources, manifest)

    progress.begin(sum(index.bytes), unit=BYTES, verb="written")
    wanted = [name for name in SPLITS if name == "train" or settings[name]]
    # The manifest is renamed first: if the process is killed before the other files are renamed, a rerun resumes.
    with folder.stream(manifests.NAME, *map(_file, wanted)) as [file, *opened]:
        with contextlib.ExitStack() as stack:
            rows = {name: stack.enter_context(_Rows(out)) for name, out in zip(wanted, opened, strict=True)}
            splits = [rows.get(name) for name in SPLITS]
            count = _distribute(sources, inputs, manifest, index, decision, splits, progress)
        for (_, path), state in zip(inputs, states, strict=True):
            if _state(path) != state:
                raise CorpusError(f"{path}: changed while it was read; rerun")
        if count != len(index):  # the hub returned other documents the second time
            raise CorpusError("the sources changed while they were read; rerun")
        manifest["files"] = {
            _file(name): _size_and_sha256_of_output(out) | {"arrow_bytes": rows[name].arrow_bytes}
            for name, out in zip(wanted, opened, strict=True)
        }
        file.write(manifests.encode(manifest))


def _read(sources: list[Source], inputs: list[Input], seed: int, progress: Progress) -> tuple[Index, list[int]]:
    """Read all documents; return their index, and the number of empty ones per source."""
    index, empty = Index(seed), [0] * len(sources)
    progress.begin(None, unit=BYTES, verb="read")
    for number, path in inputs:
        index.begin_file(number)
        for _, text in documents(sources[number], path):
            text = text.strip()
            if text:
                index.add(text)
                progress.advance(index.bytes[-1])
            else:
                empty[number] += 1
    return index, empty


def _distribute(
    sources: list[Source],
    inputs: list[Input],
    manifest: Manifest,
    index: Index,
    decision: np.ndarray,
    splits: "list[_Rows | None]",
    progress: Progress,
) -> int:
    """Read all documents again and add each to its split; return how many there were.

    By file, the manifest receives the split of each file: None if no document of it is used.
    """
    at, by_file = 0, manifest["settings"].get("split_by") == "file"
    described = [one for about in manifest["sources"] for one in about["inputs"]]
    for (number, path), about in zip(inputs, described, strict=True):
        source, start = sources[number], at
        for record, text in documents(source, path):
            text = text.strip()
            if not text:
                continue
            if at < len(index):
                split = splits[decision[at]] if decision[at] != LEFT_OUT else None
                if split is not None:
                    split.add(f"{source.name}/{about['label']}:{record}", source.name, text)
                progress.advance(index.bytes[at])
            at += 1
        if by_file:
            used = decision[start:at][decision[start:at] != LEFT_OUT]
            about["split"] = SPLITS[used[0]] if len(used) else None
    return at


def _size_and_sha256_of_output(file: BinaryIO) -> dict[str, Any]:
    file.flush()
    return {"bytes": file.tell(), "sha256": file_sha256(file.name)}


def _state(path: str) -> tuple[int, int] | None:
    """Return a file's size and modification time, which show whether it was changed; None for data from the hub."""
    if path.startswith(HUB):
        return None
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _check(sources: list[Source], manifest: Manifest) -> None:
    """Add the total counts; raise if a source or a split is empty; warn of budgets that could not be filled."""
    for source, about in zip(sources, manifest["sources"], strict=True):
        chosen = sum(about[name]["documents"] for name in SPLITS)
        if not chosen:
            left = f"{about['empty']} empty, {about['duplicates']} duplicates, {about['over_budget']} over the budget"
            raise InputError(f"source {source.name}: no usable document in {', '.join(source.patterns)}: {left}")
        words = sum(about[name]["words"] for name in SPLITS)
        if source.words is not None and not about["over_budget"] and words < source.words:
            log.warning(
                "source %s: has %d words, fewer than the %.0f that were requested", source.name, words, source.words
            )
    totals = {
        name: {
            unit: sum(about[name][unit] for about in manifest["sources"]) for unit in ("documents", "words", "bytes")
        }
        for name in SPLITS
    }
    held_out = {name: manifest["settings"][name] for name in ("test", "seeds")}
    for name, share in {"train": 1 - sum(held_out.values()), **held_out}.items():
        if share and not totals[name]["documents"]:
            count = sum(total["documents"] for total in totals.values())
            raise InputError(
                f"split {name}: is empty: none of {count} documents falls into a share of {share:g}; "
                "give more or smaller documents, or another share"
            )
    manifest["counts"] = totals | {
        unit: sum(about[unit] for about in manifest["sources"]) for unit in ("duplicates", "over_budget", "empty")
    }


class _Rows:
    """Rows of a Parquet file, written one row group at a time.

    Attributes:
        arrow_bytes: memory that the rows written so far take as Arrow tables.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._writer = pq.ParquetWriter(file, PREPARED, compression="zstd", use_dictionary=["source"])
        self.arrow_bytes = 0
        self._rows: list[tuple[str, str, str]] = []
        self._size = 0

    def add(self, id: str, source: str, text: str) -> None:
        """Add a row; write the row group if it is full."""
        self._rows.append((id, source, text))
        self._size += len(text)
        if self._size >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True)
        table = pa.table(dict(zip(PREPARED.names, map(list, columns), strict=True)), schema=PREPARED)
        self._writer.write_table(table)
        self.arrow_bytes += table.nbytes
        self._rows, self._size = [], 0

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._rows:
                self._flush()
            self._writer.close()
        finally:
            self._writer.is_open = False  # a failed writer would write again when it is garbage-collected
