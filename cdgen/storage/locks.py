"""Locks between processes, on one machine or on several machines that share a disk."""

import contextlib
import os
import socket
from pathlib import Path

from cdgen.errors import CorpusError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

_SETTLING = 60.0  # seconds after which the clients of a network file system look for new files by default


class FileLock:
    """A lock on a file, which the system releases if its process dies. The file stays, and names its last holder.

    On a file system without locks, any number of processes can take it.

    Attributes:
        path: the file.
        settling: seconds until all files that the previous holder wrote are visible on this machine. :meth:`take` sets
            it, to 0 unless that process ran on another machine and ended less than a minute ago.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.settling = path, 0.0
        self._file: int | None = None

    def take(self) -> bool:
        """Take the lock, unless another process holds it; return whether it was taken.

        Raises:
            CorpusError: the file cannot be created.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CorpusError(f"{self.path}: cannot be created: {error.strerror}") from error
        if not _lock(file):
            os.close(file)
            return False
        self._file = file
        before, host = os.pread(file, 200, 0).decode(errors="replace"), socket.gethostname()
        last_used = os.fstat(file).st_mtime
        with contextlib.suppress(OSError):  # the disk is full: the name of the holder is missing in messages
            os.ftruncate(file, 0)
            os.pwrite(file, f"{host}, process {os.getpid()}\n".encode(), 0)
        elapsed = os.fstat(file).st_mtime - last_used  # both times are those of the file system's clock
        self.settling = max(_SETTLING - elapsed, 0.0) if before and not before.startswith(f"{host}, ") else 0.0
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.utime(self._file)
            if fcntl:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._file, fcntl.LOCK_UN)  # also if a child process has inherited the open file
            os.close(self._file)
            self._file = None


def holder(path: Path) -> str | None:
    """Return the machine and the process that hold a lock, or None if it is free or this cannot be known."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if fcntl is None or _lock(file, shared=True):
            return None
        return os.pread(file, 200, 0).decode(errors="replace").strip()
    finally:
        os.close(file)


def _lock(file: int, shared: bool = False) -> bool:
    """Lock an open file without waiting; return False if another process has locked it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    return True
