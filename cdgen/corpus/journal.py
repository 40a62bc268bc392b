"""The journal of a shard: its finished documents, on the disk before the shard is.

It is a file in the corpus's folder with a line per document, and it is deleted once the shard is written. A process
that is killed leaves at most one incomplete line. Each line begins with a checksum over its content and the corpus's
fingerprint. Reading stops at the first line that is incomplete, damaged or from another corpus.
"""

import hashlib
import json
from dataclasses import asdict
from typing import BinaryIO

from cdgen.engine.outputs import CompletionOutput, TokenLogprobs
from cdgen.errors import CorpusError
from cdgen.storage.folder import RESERVED, OutputFolder

_PREFIX, _ENDING = f"{RESERVED}journal-", ".jsonl"


def discard(folder: OutputFolder, fingerprint: str) -> None:
    """Delete the journal of a corpus that is complete: a process was killed after it had written the last shard."""
    if (folder.path / _name(fingerprint)).exists():  # a file system that is read-only refuses to delete even nothing
        folder.remove(_name(fingerprint))


def _name(fingerprint: str) -> str:
    return f"{_PREFIX}{fingerprint[:16]}{_ENDING}"


class Journal:
    """Read the journal that an earlier process left, and append to it.

    Args:
        folder: the corpus's folder, entered.
        fingerprint: sha256, hexadecimal, over all that decides the texts of the corpus.
        resume: use the documents that an earlier process left.
    Attributes:
        shard: number of the shard that the documents belong to; None if there are none.
        outputs: the finished continuations by row of the shard.
    Raises:
        CorpusError: the file cannot be read.
    """

    def __init__(self, folder: OutputFolder, fingerprint: str, resume: bool) -> None:
        self.shard: int | None = None
        self.outputs: dict[int, CompletionOutput] = {}
        self._folder, self._fingerprint = folder, fingerprint
        self._path = folder.path / _name(fingerprint)
        self._file: BinaryIO | None = None
        self._kept = 0  # bytes of the valid lines
        if resume:
            self._read()

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CorpusError(f"{self._path}: cannot be read: {error.strerror}") from error
        for line in lines:
            digest, _, content = line.partition(b" ")
            if not line.endswith(b"\n") or digest != self._digest(content):
                break
            shard, place, fields = json.loads(content)
            if self.shard not in (None, shard):
                break
            if fields["logprobs"] is not None:
                fields["logprobs"] = [TokenLogprobs(*each) for each in fields["logprobs"]]
            self.shard, self.outputs[place] = shard, CompletionOutput(**fields)
            self._kept += len(line)

    def _digest(self, content: bytes) -> bytes:
        return hashlib.sha256(self._fingerprint.encode() + content).hexdigest()[:16].encode()

    def begin(self, shard: int) -> dict[int, CompletionOutput]:
        """Start or resume a shard; return its finished continuations by row of the shard."""
        if shard != self.shard:
            self.shard, self.outputs, self._kept = shard, {}, 0
        return self.outputs

    def add(self, place: int, output: CompletionOutput) -> None:
        """Append a finished continuation of the current shard. It is kept if this process is killed.

        Raises:
            CorpusError: the file cannot be written.
        """
        content = json.dumps([self.shard, place, asdict(output)]).encode() + b"\n"
        try:
            if self._file is None:
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
                self._file.truncate(self._kept)
            self._file.write(self._digest(content) + b" " + content)
        except OSError as error:
            raise CorpusError(f"{self._path}: cannot be written: {error.strerror or error}") from error
        self.outputs[place] = output

    def end(self) -> None:
        """Delete the journal, whose shard is written now, and the journals of corpora that this one replaced."""
        self.close()
        self.shard, self.outputs, self._kept = None, {}, 0
        names = [path.name for path in self._folder.path.glob(f"{_PREFIX}*{_ENDING}")]
        self._folder.remove(*names)

    def close(self) -> None:
        """Close the file without deleting it."""
        if self._file is not None:
            self._file.close()
            self._file = None
