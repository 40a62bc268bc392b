"""The journal of a corpus: files with the finished documents of the shards that are not written yet.

Each unfinished shard has a file in the corpus's folder with a line per document, and it is deleted once the shard is
written. A process that is killed leaves at most one incomplete line per file. Each line begins with a checksum over its
content and the corpus's fingerprint. Reading a file stops at the first line that is incomplete, damaged, or from
another corpus or shard.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from cdgen.engine.outputs import CompletionOutput, TokenLogprobs
from cdgen.errors import CorpusError
from cdgen.storage.folder import RESERVED, OutputFolder

_PREFIX, _ENDING = f"{RESERVED}journal-", ".jsonl"
_NAME = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{16}-(\d+)" + re.escape(_ENDING))  # the group is the shard


def discard(folder: OutputFolder, fingerprint: str) -> None:
    """Delete the journal of a corpus that is complete: a process was killed after it had written the last shard."""
    _remove_all(folder, f"{_PREFIX}{fingerprint[:16]}")


def names_in(folder: OutputFolder, shards: Container[int] | None = None) -> list[str]:
    """Return the names of a folder's journal files: all of them, or those of these shards."""
    found = (_NAME.fullmatch(path.name) for path in folder.path.glob(f"{_PREFIX}*{_ENDING}"))
    return sorted(name[0] for name in found if name and (shards is None or int(name[1]) in shards))


def count_documents(folder: Path, done: Container[int]) -> int:
    """Return the number of documents in a folder's journal, to show how far its writer has come.

    Args:
        folder: the folder.
        done: shards to leave out, because they are written.
    """
    count = 0
    for path in folder.glob(f"{_PREFIX}*{_ENDING}"):
        name = _NAME.fullmatch(path.name)
        if name and int(name[1]) not in done:
            with contextlib.suppress(OSError):  # its shard has just been written
                count += path.read_bytes().count(b"\n")
    return count


def _remove_all(folder: OutputFolder, prefix: str, keep: Container[str] = ()) -> None:
    """Delete the journal files whose names begin with `prefix`, except for those in `keep`."""
    names = [path.name for path in folder.path.glob(f"{prefix}*{_ENDING}")]
    folder.remove(*(name for name in names if name not in keep))


class Journal:
    """Append to a corpus's journal, and read the one that an earlier process left.

    A thread may call :meth:`end` while another one calls :meth:`add`.

    Args:
        folder: the corpus's folder, entered.
        fingerprint: sha256, hexadecimal, over all that decides the texts of the corpus.
    """

    def __init__(self, folder: OutputFolder, fingerprint: str) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        self._prefix = f"{_PREFIX}{fingerprint[:16]}-"
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}  # bytes of the valid lines in the files of unfinished shards
        self._file: BinaryIO | None = None  # open file, that of the shard to which a document was added last
        self._open = ""  # name of that file; documents of a shard mostly arrive together, so one open file is enough

    def _name(self, shard: int) -> str:
        return f"{self._prefix}{shard:05d}{_ENDING}"

    def read(self, done: Container[int]) -> dict[int, dict[int, CompletionOutput]]:
        """Return the finished continuations by shard and by row of the shard, without the shards that are done.

        Raises:
            CorpusError: a file cannot be read.
        """
        pattern = re.compile(re.escape(self._prefix) + r"(\d+)" + re.escape(_ENDING))
        names = (pattern.fullmatch(path.name) for path in self._folder.path.glob(f"{_PREFIX}*{_ENDING}"))
        shards = sorted(int(name[1]) for name in names if name)
        return {shard: outputs for shard in shards if shard not in done and (outputs := self._read(shard))}

    def _read(self, shard: int) -> dict[int, CompletionOutput]:
        path, outputs = self._folder.path / self._name(shard), {}
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
        size = 0
        for line in lines:
            digest, _, content = line.partition(b" ")
            if not line.endswith(b"\n") or digest != self._digest(content):
                break
            number, place, fields = json.loads(content)
            if number != shard:
                break
            if fields["logprobs"] is not None:
                fields["logprobs"] = [TokenLogprobs(*each) for each in fields["logprobs"]]
            outputs[place] = CompletionOutput(**fields)
            size += len(line)
        self._sizes[path.name] = size
        return outputs

    def _digest(self, content: bytes) -> bytes:
        return hashlib.sha256(self._fingerprint.encode() + content).hexdigest()[:16].encode()

    def add(self, shard: int, place: int, output: CompletionOutput) -> None:
        """Append a finished continuation, row `place` of a shard. It is kept if this process is killed.

        Raises:
            CorpusError: the file cannot be written.
        """
        content = json.dumps([shard, place, asdict(output)]).encode() + b"\n"
        with self._lock:
            name = self._name(shard)
            try:
                file = self._opened(name)
                self._sizes[name] += file.write(self._digest(content) + b" " + content)
            except OSError as error:
                path = self._folder.path / name
                raise CorpusError(f"{path}: cannot be written: {error.strerror or error}") from error

    def _opened(self, name: str) -> BinaryIO:
        """Return the file of this name, which ends after its last valid line."""
        if self._file is None or name != self._open:
            self._close()
            size = self._sizes.setdefault(name, 0)
            self._file, self._open = open(self._folder.path / name, "ab", buffering=0), name  # noqa: SIM115
            self._file.truncate(size)
        return self._file

    def end(self, shard: int) -> None:
        """Delete the file of a shard that has been written, and the journals of corpora that this one replaced.

        Raises:
            CorpusError: a file cannot be deleted.
        """
        with self._lock:
            if self._open == self._name(shard):
                self._close()
            self._sizes.pop(self._name(shard), None)
            _remove_all(self._folder, _PREFIX, keep=self._sizes)

    def close(self) -> None:
        """Close the journal without deleting its files."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
