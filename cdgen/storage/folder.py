"""An output folder: it has one writer at a time, and its files are either complete or absent."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cdgen.errors import CorpusError

try:
    import fcntl
except ImportError:  # Windows: two processes that write to one folder are not detected
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".tmp-"


class OutputFolder:
    """A folder to write to. Entering it as a context creates the folder if necessary and locks out other processes.

    Raises:
        CorpusError: the folder cannot be created, or another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    def __enter__(self) -> "OutputFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path, os.O_RDONLY) if fcntl else None
        except OSError as error:
            raise CorpusError(f"{self.path}: cannot create this folder: {error.strerror}") from error
        if lock is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise CorpusError(
                    f"{self.path}: another process is writing to this folder; wait for it, or choose another folder"
                ) from error
            except OSError:
                pass  # a file system without locks: the user must ensure that only one process writes
        self._lock = lock
        self.remove(_TEMPORARY + "*")  # left by a process that was killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
        if kind is not None:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # an empty folder is removed; a folder with files stays

    def write(self, name: str, data: bytes) -> str:
        """Write a file, completely or not at all, even if the machine stops.

        Returns:
            sha256 of the data, hexadecimal.
        Raises:
            CorpusError: the file cannot be written, for lack of space or permission.
        """
        with self.stream(name) as [file]:
            file.write(data)
        return hashlib.sha256(data).hexdigest()

    @contextlib.contextmanager
    def stream(self, *names: str) -> Iterator[list[BinaryIO]]:
        """Open several binary files for writing.

        When the context ends without an error, all files are synced to the disk and then take their names, in this
        order. After an error, none of them remains.

        Raises:
            CorpusError: a file cannot be written, for lack of space or permission.
        """
        temporaries = [self.path / f"{_TEMPORARY}{name}" for name in names]
        try:
            with contextlib.ExitStack() as stack:
                files: list[BinaryIO] = [stack.enter_context(open(temporary, "wb")) for temporary in temporaries]
                yield files
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            for name, temporary in zip(names, temporaries, strict=True):
                os.replace(temporary, self.path / name)
            if self._lock is not None:
                os.fsync(self._lock)  # the folder's own entries
        except OSError as error:
            if error.filename and Path(error.filename) not in temporaries:  # an input file of the body
                raise
            where = self.path / names[0] if len(names) == 1 else self.path
            raise CorpusError(f"{where}: cannot be written: {error.strerror or error}") from error
        finally:
            for temporary in temporaries:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def remove(self, *patterns: str) -> None:
        """Delete the files and folders that match glob patterns."""
        for path in [path for pattern in patterns for path in self.path.glob(pattern)]:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise CorpusError(f"{path}: cannot be removed: {error.strerror}") from error

    def sha256(self, name: str) -> str | None:
        """Return a file's sha256, hexadecimal, or None if there is no such file."""
        try:
            return file_sha256(self.path / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorpusError(f"{self.path / name}: cannot be read: {error.strerror}") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return a file's sha256, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
