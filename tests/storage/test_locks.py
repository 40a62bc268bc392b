"""Locks: one process at a time holds one, and who holds it is known."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdgen.errors import CorpusError
from cdgen.storage.locks import FileLock, holder

OTHER = """
import sys
from pathlib import Path
from cdgen.storage.locks import FileLock
print(FileLock(Path(sys.argv[1])).take(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start another process that has taken the lock."""
    command = [sys.executable, "-c", OTHER, str(tmp_path / "locks" / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_process_that_is_killed_releases_its_lock(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    lock = FileLock(tmp_path / "locks" / "a")
    assert not lock.take()
    assert holder(lock.path) == f"{socket.gethostname()}, process {other.pid}"
    assert FileLock(tmp_path / "locks" / "b").take(), "another lock"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(lock.path) is None
    assert lock.take() and not FileLock(lock.path).take()
    assert holder(lock.path) == f"{socket.gethostname()}, process {os.getpid()}"
    lock.release()
    assert FileLock(lock.path).take()


def test_a_child_process_does_not_keep_a_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a")
    assert lock.take()
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        lock.release()
        assert FileLock(lock.path).take()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_files_of_another_machine_take_time_to_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take() -> float:
        lock = FileLock(tmp_path / "a")
        assert lock.take()
        lock.release()
        return lock.settling

    assert take() == 0 and take() == 0, "the process before ran on this machine"
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert 55 < take() <= 60 and take() == 0
    monkeypatch.undo()
    os.utime(tmp_path / "a", (0, 0))
    assert take() == 0, "it ended long ago"


def test_a_lock_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "locks").touch()
    with pytest.raises(CorpusError, match="locks/a: cannot be created"):
        FileLock(tmp_path / "locks" / "a").take()
    assert holder(tmp_path / "locks" / "a") is None
