"""An output folder: it has one writer at a time, its files are complete or absent, and foreign files stay."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cdgen import values
from cdgen.errors import CorpusError

try:
    import fcntl
except ImportError:  # Windows: two processes that write to one folder are not detected
    fcntl = None  # type: ignore[assignment]

RESERVED = ".cdgen-"  # names that begin with it are cdgen's own, in any output folder
_TEMPORARY = re.compile(re.escape(RESERVED) + r"[0-9a-f]{16}-.+")


class OutputFolder:
    """A folder to write to. Entering it as a context creates the folder if necessary and locks out other processes.

    If the context ends with an error, the folders that it created are removed again, unless there are files in them.

    Raises:
        InputError: the path is empty.
        CorpusError: the folder cannot be created, or another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = values.path("out", path, "folder")
        self._lock: int | None = None
        self._made: list[Path] = []  # folders that this context created, outer ones first

    def __enter__(self) -> "OutputFolder":
        try:
            self._make(self.path)
            self._lock = os.open(self.path, os.O_RDONLY) if fcntl else None
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            self._unmake()
            reason = getattr(error, "strerror", None) or error
            raise CorpusError(f"{self.path}: cannot create this folder: {reason}") from error
        if self._lock is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._unlock()
                raise CorpusError(
                    f"{self.path}: another process is writing to this folder; wait for it, or choose another folder"
                ) from error
            except OSError:
                pass  # a file system without locks: the user must ensure that only one process writes
        try:
            for entry in [each for each in self.path.iterdir() if _TEMPORARY.fullmatch(each.name)]:
                _delete(entry)  # left by a process that was killed
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._unmake()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _make(self, path: Path) -> None:
        """Create a folder and those above it that are missing."""
        missing = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)

    def _unmake(self) -> None:
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()

    def check_writable(self) -> None:
        """Check that files can be created in the folder.

        Raises:
            CorpusError: this user may not write to it, or it is on a file system that nobody may write to.
        """
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise CorpusError(f"{self.path}: no permission to write to this folder; choose another one")

    def temporary(self, name: str) -> Path:
        """Return a new path in the folder, for a file or folder that is renamed once it is complete.

        If this process is killed, the next one that enters the folder deletes that path.
        """
        return self.path / f"{RESERVED}{secrets.token_hex(8)}-{name.replace('/', '-')}"

    def write(self, name: str, data: bytes) -> str:
        """Write a file, completely or not at all, even if the machine stops.

        Returns:
            sha256 of the data, hexadecimal.
        Raises:
            CorpusError: the file cannot be written, for lack of space or permission.
        """
        self.write_all({name: data})
        return hashlib.sha256(data).hexdigest()

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write several files. All are written completely before the first one gets its name, in the order given.

        Args:
            files: content by name; a name may contain folders, which are created.
        Raises:
            CorpusError: a file cannot be written, for lack of space or permission. No file has been replaced then.
        """
        with self.stream(*files) as opened:
            for (name, data), file in zip(files.items(), opened, strict=True):
                try:
                    file.write(data)
                    file.flush()
                except OSError as error:
                    raise CorpusError(f"{self.path / name}: cannot be written: {error.strerror or error}") from error

    @contextlib.contextmanager
    def stream(self, *names: str) -> Iterator[list[BinaryIO]]:
        """Open several binary files for writing.

        When the context ends without an error, all files are synced to the disk and then take their names, in this
        order. After an error, none of them remains.

        Raises:
            CorpusError: a file cannot be written, for lack of space or permission.
        """
        temporaries = [self.temporary(name) for name in names]
        try:
            for name in names:
                self._make((self.path / name).parent)
            with contextlib.ExitStack() as stack:
                files: list[BinaryIO] = [stack.enter_context(open(temporary, "xb")) for temporary in temporaries]
                yield files
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            for name, temporary in zip(names, temporaries, strict=True):
                os.replace(temporary, self.path / name)
                _sync((self.path / name).parent)  # this file may list the next one, so it must be on the disk first
        except OSError as error:
            own = [*temporaries, *((self.path / name).parent for name in names)]
            if error.filename and Path(error.filename) not in own:  # an input file that the caller reads
                raise
            place = error.filename2 or error.filename
            if place is None or Path(place) in temporaries:
                place = self.path / names[0] if len(names) == 1 else self.path
            raise CorpusError(f"{place}: cannot be written: {error.strerror or error}") from error
        finally:
            for temporary in temporaries:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def adopt(self, names: Iterable[str], source: "OutputFolder") -> None:
        """Move complete files here from another folder on the same file system, where they have the same names.

        Raises:
            CorpusError: a file cannot be moved.
        """
        parents = set()
        for name in names:
            path = self.path / name
            try:
                self._make(path.parent)
                os.replace(source.path / name, path)
            except OSError as error:
                raise CorpusError(f"{source.path / name}: cannot be moved to {path}: {error.strerror}") from error
            parents.add(path.parent)
        for parent in parents:
            _sync(parent)

    def remove(self, *names: str) -> None:
        """Delete the files and folders of these names, if they exist. A folder disappears as a whole, never in part.

        Raises:
            CorpusError: a file or folder cannot be deleted.
        """
        for name in names:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                aside = self.temporary(name)
                try:
                    path.rename(aside)
                except OSError as error:
                    raise CorpusError(f"{path}: cannot be removed: {error.strerror}") from error
                path = aside
            _delete(path)

    def sha256(self, name: str) -> str | None:
        """Return a file's sha256, hexadecimal, or None if there is no such file."""
        try:
            return file_sha256(self.path / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorpusError(f"{self.path / name}: cannot be read: {error.strerror}") from error


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be removed: {error.strerror}") from error


def _sync(folder: Path) -> None:
    """Write a folder's entries to the disk, if the system can do that."""
    if fcntl:
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a path names a regular file. Reading a pipe or a device might never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return a file's sha256, hexadecimal. The path must name a regular file."""
    check_regular(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
