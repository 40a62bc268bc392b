"""The log of a run: log.jsonl, with a line per step and per evaluation, and the same values for TensorBoard."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAME = runs.LOG

log = logging.getLogger("cdgen")


class Log:
    """Appends records to log.jsonl in a run's folder.

    Args:
        folder: the run's folder, entered.
        step: the step that training resumes from. Lines of later steps are removed, and so are damaged lines, which a
            killed process or a power failure leaves.
        tensorboard: also write event files, into the folder `tensorboard`.
    Raises:
        CorpusError: the log cannot be written.
    """

    def __init__(self, folder: OutputFolder, step: int, tensorboard: bool) -> None:
        self._board = _board(folder.path / "tensorboard", step) if tensorboard else None
        path = folder.path / NAME
        folder.write(NAME, _lines_up_to(path, step) if path.exists() else b"")
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, step: int, **values: float | None) -> None:
        """Append a record.

        Raises:
            CorpusError: the file cannot be written, for example because the disk is full.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        except OSError as error:
            raise CorpusError(f"{self._file.name}: cannot be written: {error.strerror}") from error
        if self._board:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        if self._board:
            self._board.close()


def _lines_up_to(path: Path, step: int) -> bytes:
    """Return the lines of a log whose steps are not later than `step`, without the damaged ones."""
    kept, damaged = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        found = _step_of(line)
        if found is None:
            damaged += 1
        elif found <= step:
            kept.append(line)
    if damaged:
        log.warning("%s: damaged lines are removed: %d", path, damaged)
    return b"".join(kept)


def _step_of(line: bytes) -> int | None:
    """Return the step of a line, or None if the line is damaged or cut short."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if type(step) is int else None


def check_tensorboard() -> None:
    """Raise InputError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError('tensorboard: is not installed; in a clone of cdgen: pip install ".[train]"')


def _board(folder: Path, step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)  # hides events of later steps from an earlier process
