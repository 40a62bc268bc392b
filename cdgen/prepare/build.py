"""Prepare a corpus: every source is read twice, first for what decides where a document goes, then to put it there."""

import contextlib
import hashlib
import json
import logging
import os
import platform
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cdgen import __version__
from cdgen.corpus.records import HUB
from cdgen.errors import CorpusError, InputError
from cdgen.prepare.index import LEFT_OUT, SPLITS, Index, check_shares
from cdgen.prepare.sources import documents, files, label
from cdgen.storage.byte_progress import Progress
from cdgen.storage.folder import OutputFolder, file_sha256

log = logging.getLogger("cdgen")

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
SCHEMA = pa.schema({"id": pa.string(), "source": pa.string(), "text": pa.string()})
_GROUP = 8 << 20  # characters of a row group


def prepare_corpus(sources, out, *, test=0.05, seeds=0.05, seed=42, overwrite=False, progress=None):
    """Write train.parquet, test.parquet, seeds.parquet (columns id, source, text) and manifest.json to a folder.

    A document's split is a function of its text and `seed` alone, so that no text is in two splits, and nothing that is
    added moves what was there. Of equal texts one stays: the first, by source name, file and place.

    Args:
        sources: list of :class:`~cdgen.Source`, in any order.
        out: the folder.
        test, seeds: shares of the documents that are held out; 0: no such split.
        seed: of the splits.
        overwrite: write anew what the folder holds of an earlier preparation with other settings.
        progress: see :mod:`cdgen.storage.byte_progress`.
    Returns:
        (the manifest, False where the folder held all of it already)
    Raises:
        InputError: a source that cannot be read or gives nothing; a split without documents; another corpus in `out`.
        CorpusError: the folder cannot be written, or holds files that are not of this program, or altered ones.
    """
    check_shares(test, seeds)
    sources = sorted(sources, key=lambda source: source.name)
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise InputError(f"source {twice}: is given twice; name them, as NAME=PATH" if twice else "no sources given")
    inputs = [(number, path) for number, source in enumerate(sources) for path in files(source)]
    with OutputFolder(out) as folder:
        manifest = _describe(sources, inputs, {"test": test, "seeds": seeds, "seed": seed})
        if _is_done(folder, manifest, overwrite):
            return _read_manifest(folder), False
        _write(folder, manifest, sources, inputs, progress or Progress())
    return manifest, True


def _describe(sources, inputs, settings):
    """A manifest without counts. The fingerprint leaves out where the files lie."""
    described = []
    for number, source in enumerate(sources):
        about = asdict(source) | {"read": source.read and source.read.__name__, "inputs": []}
        paths = [path for other, path in inputs if other == number]
        for path in paths:
            about["inputs"].append({"path": path, "label": label(path, paths)} | _input(path))
        described.append(about)
    manifest = {"format_version": FORMAT_VERSION, "settings": settings, "sources": described}
    compared = [
        about
        | {"paths": None, "inputs": [{name: one[name] for name in ("label", "sha256")} for one in about["inputs"]]}
        for about in described
    ]
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, settings, compared]).encode()).hexdigest()
    return manifest | {
        "fingerprint": f"sha256:{digest}",
        "versions": {"cdgen": __version__, "pyarrow": pa.__version__, "python": platform.python_version()},
    }


def _input(path):
    """Size and sha256 of a file or of a folder's files; of the hub, neither."""
    if path.startswith(HUB):
        return {"bytes": None, "sha256": None}
    if not os.path.isdir(path):
        return {"bytes": os.path.getsize(path), "sha256": file_sha256(path)}
    inside = sorted(file for file in Path(path).rglob("*") if file.is_file())
    digests = json.dumps([(str(file.relative_to(path)), file_sha256(file)) for file in inside])
    size = sum(file.stat().st_size for file in inside)
    return {"bytes": size, "sha256": hashlib.sha256(digests.encode()).hexdigest()}


def _read_manifest(folder):
    path = folder.path / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if isinstance(manifest, dict) and "fingerprint" in manifest:
            return manifest
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    raise CorpusError(f"{path}: is not of a prepared corpus; choose another folder")


def _is_done(folder, manifest, overwrite):
    """Whether the folder holds the very same corpus; raises where it holds another."""
    old = _read_manifest(folder)
    if old is None:
        if present := [name for name in map(_file, SPLITS) if (folder.path / name).exists()]:
            raise CorpusError(f"{folder.path}: holds {present[0]} but no {MANIFEST}; choose another folder")
        return False
    if old["fingerprint"] != manifest["fingerprint"]:
        if overwrite:
            return False
        raise InputError(
            f"{folder.path}: holds a corpus of other sources or settings; choose another folder, or --overwrite"
        )
    digests = {name: folder.sha256(name) for name in old["files"]}
    for name, about in old["files"].items():
        if not overwrite and digests[name] not in (None, about["sha256"]):
            raise CorpusError(
                f"{folder.path / name}: is truncated or altered (its checksum differs); "
                "delete it and run again to rewrite it"
            )
    return all(digests[name] == about["sha256"] for name, about in old["files"].items())


def _file(split):
    return f"{split}.parquet"


def _write(folder, manifest, sources, inputs, progress):
    settings = manifest["settings"]
    states = [_state(path) for _, path in inputs]
    index, empty = Index(settings["seed"]), [0] * len(sources)
    progress.begin("read")
    for number, path in inputs:
        for _, text in documents(sources[number], path):
            text = text.strip()
            if text:
                index.add(number, text)
                progress.advance(index.bytes[-1])
            else:
                empty[number] += 1
    decision, counts = index.decide(sources, settings["test"], settings["seeds"])
    for about, found, none in zip(manifest["sources"], counts, empty, strict=True):
        about |= {"empty": none} | found
    _check(sources, manifest)

    progress.begin("written", sum(index.bytes))
    wanted = [name for name in SPLITS if name == "train" or settings[name]]
    # the manifest is first to take its name: a run that is killed while the others take theirs goes on
    with folder.stream(MANIFEST, *map(_file, wanted)) as [file, *opened]:
        with contextlib.ExitStack() as stack:
            rows = {name: stack.enter_context(_Rows(out)) for name, out in zip(wanted, opened, strict=True)}
            to = [rows.get(name) for name in SPLITS]
            count = _distribute(sources, inputs, manifest, index, decision, to, progress)
        for (_, path), state in zip(inputs, states, strict=True):
            if _state(path) != state:
                raise CorpusError(f"{path}: changed while it was read; run again")
        if count != len(index):  # the hub gave other documents the second time
            raise CorpusError("the sources changed while they were read; run again")
        manifest["files"] = {_file(name): _output(out) for name, out in zip(wanted, opened, strict=True)}
        file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
        folder.remove(*map(_file, SPLITS))  # of the corpus that is overwritten


def _distribute(sources, inputs, manifest, index, decision, rows, progress):
    """Read all again and put every document where it goes; returns how many there were."""
    at = 0
    for (number, path), about in zip(inputs, _inputs(manifest), strict=True):
        source = sources[number]
        for record, text in documents(source, path):
            text = text.strip()
            if not text:
                continue
            if at < len(index):
                if decision[at] != LEFT_OUT:
                    rows[decision[at]].add(f"{source.name}/{about['label']}:{record}", source.name, text)
                progress.advance(index.bytes[at])
            at += 1
    return at


def _output(file):
    file.flush()
    return {"bytes": file.tell(), "sha256": file_sha256(file.name)}


def _inputs(manifest):
    return [one for about in manifest["sources"] for one in about["inputs"]]


def _state(path):
    """What changes with a file's content."""
    if path.startswith(HUB):
        return None
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _check(sources, manifest):
    """Raise where a source or a split came out empty; warn of budgets that could not be filled."""
    for source, about in zip(sources, manifest["sources"], strict=True):
        chosen = sum(about[name]["documents"] for name in SPLITS)
        if not chosen:
            left = f"{about['empty']} empty, {about['duplicates']} duplicates, {about['over_budget']} over the budget"
            raise InputError(f"source {source.name}: gives no document: {left}; of {', '.join(source.paths)}")
        words = sum(about[name]["words"] for name in SPLITS)
        if source.words is not None and not about["over_budget"] and words < source.words:
            log.warning("source %s: has %d words, fewer than the %.0f asked for", source.name, words, source.words)
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
                f"split {name}: holds no document; of {count} documents none falls into a share of {share:g}; "
                "give more or smaller documents, or another share"
            )
    manifest["counts"] = totals | {
        unit: sum(about[unit] for about in manifest["sources"]) for unit in ("duplicates", "over_budget", "empty")
    }


class _Rows:
    """Rows of a Parquet file, written a row group at a time."""

    def __init__(self, file):
        self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd", use_dictionary=["source"])
        self._rows, self._size = [], 0

    def add(self, *row):
        self._rows.append(row)
        self._size += len(row[-1])
        if self._size >= _GROUP:
            self._flush()

    def _flush(self):
        columns = zip(*self._rows, strict=True)
        self._writer.write_table(pa.table(dict(zip(SCHEMA.names, map(list, columns), strict=True)), schema=SCHEMA))
        self._rows, self._size = [], 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        try:
            if kind is None and self._rows:
                self._flush()
            self._writer.close()
        finally:
            self._writer.is_open = False  # a writer that failed is not to try again when it is collected
