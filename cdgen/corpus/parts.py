"""Write one corpus with several tasks: each writes some of its shards to a folder of its own, and they are merged.

A task is a process anywhere that reaches the corpus's folder. Its part has the layout of a corpus that is not complete,
with a manifest and a journal, so a task that is killed resumes like a corpus:

    _manifest.json
    data/                    finished shards of the corpus
    _tasks/00003/            the part of task 3
        _manifest.json
        data/train-00007.parquet

Which task writes a shard does not matter: every task reads all seeds, since the number of equal ones before a seed may
key its noise, and journals are moved from folder to folder with the shards they belong to. The number of tasks may
therefore differ from one start to the next.
"""

import contextlib
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cdgen.corpus import card, journal
from cdgen.corpus import manifest as manifests
from cdgen.corpus.manifest import ShardEntry
from cdgen.storage import manifest as storage
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest

FOLDER, LOGS = "_tasks", "_logs"


class Part(NamedTuple):
    """The share of a corpus that a task writes.

    Attributes:
        corpus: the folder of the whole corpus.
        shards: numbers of the shards that the task writes, unless the corpus has them already.
    """

    corpus: Path
    shards: Collection[int]

    def missing(self, manifest: Manifest) -> set[int]:
        """Return the shards that the corpus does not have; see :func:`cdgen.corpus.manifest.check_part`."""
        return {*self.shards} - manifests.check_part(self.corpus, manifest)


def path_of(corpus: Path, task: int) -> Path:
    """Return the folder of a task's part."""
    return corpus / FOLDER / f"{task:05d}"


def part_folders(corpus: Path) -> list[Path]:
    """Return the folders of all parts."""
    return sorted(path for path in (corpus / FOLDER).glob("[0-9]*") if path.is_dir())


def log_folder(corpus: Path) -> Path:
    """Return a new folder for the logs of tasks that are started now."""
    return corpus / LOGS / datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")


def share(shards: Sequence[int], task: int, tasks: int) -> Sequence[int]:
    """Return the shards that a task writes, so that shares differ by at most one shard."""
    return shards[task::tasks]


def distribute(folder: OutputFolder, shards: Sequence[int], tasks: int) -> None:
    """Move the journals of unfinished shards to the parts of the tasks that will write them.

    Args:
        folder: the corpus's folder, from which :func:`gather` has removed all parts.
        shards: numbers of the shards to write.
        tasks: number of tasks.
    """
    for task in range(tasks):
        names = journal.names_in(folder, share(shards, task, tasks))
        if names:
            with OutputFolder(path_of(folder.path, task)) as part:
                part.adopt(names, folder)


def gather(folder: OutputFolder) -> None:
    """Move the finished shards and the journals of all parts into the corpus, and remove the parts.

    The manifest lists a shard before it is moved. If the process is killed in between, the shard is still in its part,
    and a rerun moves it.

    Args:
        folder: the corpus's folder, as an entered context.
    Raises:
        InputError: parts are of different settings, models or seeds.
        CorpusError: another process is writing to a part, or a shard was altered.
    """
    for path in part_folders(folder.path):
        with OutputFolder(path) as part:
            _merge(folder, part)
            folder.adopt(journal.names_in(part), part)
        folder.remove(f"{FOLDER}/{path.name}")
    _remove_if_empty(folder)


def discard(folder: OutputFolder) -> None:
    """Delete all parts.

    Raises:
        CorpusError: another process is writing to a part.
    """
    for path in part_folders(folder.path):
        with OutputFolder(path):
            pass  # no other process writes to it
        folder.remove(f"{FOLDER}/{path.name}")
    _remove_if_empty(folder)


def finish(folder: OutputFolder) -> Manifest | None:
    """Gather all parts, and mark the corpus as complete if it is.

    Returns:
        The corpus's manifest, which lists the shards that are present, or None if no shard was ever finished.
    """
    gather(folder)
    manifest = manifests.check_folder(folder)
    if manifest is None:
        return None
    done = manifests.finished(folder, manifest)
    manifests.list_shards(manifest, done)
    settings = manifest["settings"]
    if len(done) == manifests.shard_count(manifest["seeds"]["count"] * settings["n"], settings["shard_size"]):
        manifests.complete(folder, manifest)
        card.write(folder, manifest)
    return manifest


def _remove_if_empty(folder: OutputFolder) -> None:
    with contextlib.suppress(OSError):  # there is none, or it is not empty
        (folder.path / FOLDER).rmdir()


def _whole(folder: OutputFolder, part: OutputFolder, manifest: Manifest) -> dict[int, ShardEntry]:
    """Return the entries of a part's finished shards by number, with those whose files were moved by a killed merge.

    Raises:
        CorpusError: a file is truncated or altered.
    """
    found = manifests.finished(part, manifest)
    for shard in manifest["shards"]:
        files = manifests.files_of({"shards": [shard]})
        if shard["number"] not in found and all(
            digest in (part.sha256(name), folder.sha256(name)) for name, digest in files.items()
        ):
            found[shard["number"]] = shard
    return found


def _merge(folder: OutputFolder, part: OutputFolder) -> None:
    """Move the finished shards of a part into the corpus."""
    found = manifests.check_folder(part, f"delete {part.path}, whose shards are then written again")
    shards = _whole(folder, part, found) if found else {}
    if found is None or not shards:
        return
    empty = manifests.new(found["settings"], found["models"], found["seeds"])
    manifest = manifests.begin(folder, empty, True)
    numbers = [storage.add_environment(manifest, environment)[0] for environment in found["environments"]]
    done: dict[int, ShardEntry] = {shard["number"]: shard for shard in manifest["shards"]}
    for number, shard in shards.items():
        done[number] = shard | {"environment": numbers[shard["environment"]]}
    manifests.list_shards(manifest, done)
    manifest["complete"] = False
    storage.write(folder, manifest)
    names = [name for shard in shards.values() for name in manifests.names_of(shard)]
    folder.adopt([name for name in names if (part.path / name).exists()], part)
    storage.finish_replacing(folder, manifest, manifests.files_of(manifest))
