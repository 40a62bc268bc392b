"""What a run writes about itself: log.jsonl, a line a step, and the same for TensorBoard."""

import json

from cdgen.errors import CorpusError, InputError

NAME = "log.jsonl"


class Log:
    """Appends records to log.jsonl in a run's folder.

    Args:
        folder: an entered :class:`~cdgen.storage.folder.OutputFolder`.
        step: the run goes on from it; lines of later steps, and a line cut short, are left out.
        tensorboard: also write event files, into the folder `tensorboard`.
    Raises:
        InputError: TensorBoard is asked for and not installed. CorpusError: the disk is full.
    """

    def __init__(self, folder, step, tensorboard):
        self._board = _board(folder.path / "tensorboard", step) if tensorboard else None
        path = folder.path / NAME
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        folder.write(NAME, "".join(kept).encode())
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, step, **values):
        try:
            self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        except OSError as error:
            raise CorpusError(f"{self._file.name}: cannot be written: {error.strerror}") from error
        if self._board:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def close(self):
        self._file.close()
        if self._board:
            self._board.close()


def _board(folder, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError('tensorboard: is not installed: pip install "cdgen[train]"') from error
    return SummaryWriter(str(folder), purge_step=step + 1)  # what an earlier run logged past the step is not shown
