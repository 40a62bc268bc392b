"""An output folder: one writer at a time, and files that are whole or not there."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from cdgen.errors import CorpusError

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not told apart
    fcntl = None

_TEMPORARY = ".tmp-"


class OutputFolder:
    """A folder to write to, made where it is missing. Use as a context: it is locked against a second run meanwhile.

    Raises:
        CorpusError: the folder cannot be made, or another run is writing to it.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._lock = None

    def __enter__(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY) if fcntl else None
        except OSError as error:
            raise CorpusError(f"{self.path}: cannot make this folder: {error.strerror}") from error
        if fcntl:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._lock)
                raise CorpusError(
                    f"{self.path}: another run is writing to this folder; wait for it, or choose another"
                ) from error
            except OSError:
                pass  # a file system without locks: two runs in one folder are then the user's to avoid
        self.remove(_TEMPORARY + "*")  # of a run that was killed
        return self

    def __exit__(self, kind, *error):
        if self._lock is not None:
            os.close(self._lock)
        if kind is not None:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # where nothing came of it, nothing is left; a folder with files stays

    def write(self, name, data):
        """Write bytes to a file, whole or not at all, even if the machine stops.

        Returns:
            sha256 of the bytes, hexadecimal.
        Raises:
            CorpusError: no space, no permission; the temporary file is gone.
        """
        with self.stream(name) as [file]:
            file.write(data)
        return hashlib.sha256(data).hexdigest()

    @contextlib.contextmanager
    def stream(self, *names):
        """A list of binary files to write to piece by piece.

        They take their names, in this order, once the context has ended well and all of them are on the disk; else
        they are gone.

        Raises:
            CorpusError: no space, no permission.
        """
        temporaries = [self.path / f"{_TEMPORARY}{name}" for name in names]
        try:
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(open(temporary, "wb")) for temporary in temporaries]
                yield files
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            for name, temporary in zip(names, temporaries, strict=True):
                os.replace(temporary, self.path / name)
            if self._lock is not None:
                os.fsync(self._lock)  # the folder's own entry
        except OSError as error:
            if error.filename and Path(error.filename) not in temporaries:  # a file that the context's body reads
                raise
            where = self.path / names[0] if len(names) == 1 else self.path
            raise CorpusError(f"{where}: cannot be written: {error.strerror or error}") from error
        finally:
            for temporary in temporaries:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def remove(self, *patterns):
        """Delete the files and folders that match glob patterns."""
        for path in [path for pattern in patterns for path in self.path.glob(pattern)]:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise CorpusError(f"{path}: cannot be removed: {error.strerror}") from error

    def sha256(self, name):
        """Hexadecimal digest of a file, or None where there is none."""
        try:
            return file_sha256(self.path / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorpusError(f"{self.path / name}: cannot be read: {error.strerror}") from error


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
