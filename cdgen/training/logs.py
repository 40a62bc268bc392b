"""The log of a run: log.jsonl, with a line per step and per evaluation, and the same values for TensorBoard."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cdgen.errors import CorpusError, InputError
from cdgen.storage.folder import OutputFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAME = "log.jsonl"


class Log:
    """Appends records to log.jsonl in a run's folder.

    Args:
        folder: the run's folder, entered.
        step: the step that training resumes from. Lines of later steps, and a last line that is cut short, are removed.
        tensorboard: also write event files, into the folder `tensorboard`.
    Raises:
        InputError: TensorBoard is requested but not installed.
        CorpusError: the log is damaged, or cannot be written.
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
    """Return the complete lines of a log whose steps are not later than `step`."""
    kept = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # the process was killed while it wrote this line
            continue
        try:
            late = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}: line {number} is damaged; delete this line, or the file, and rerun") from error
        if not late:
            kept.append(line)
    return b"".join(kept)


def _board(folder: Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError('tensorboard: is not installed: pip install "cdgen[train]"') from error
    return SummaryWriter(str(folder), purge_step=step + 1)  # hides events of later steps from an earlier process
