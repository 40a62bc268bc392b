"""What :func:`~cdgen.training.trainer.train` returns."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cdgen.storage import runs


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a training run.

    Attributes:
        model: its name, such as "run@500", which everything that takes a model accepts.
        folder: its folder, which transformers can load.
        step: the step at which it was saved.
        loss: mean training loss of that step per predicted token, in nats.
        perplexity: perplexity on the test text; None without one, and if it is not finite.
    """

    model: str
    folder: Path
    step: int
    loss: float
    perplexity: float | None


@dataclass(frozen=True)
class TrainingRun:
    """A training run that has finished.

    Attributes:
        folder: its folder.
        best: the checkpoint with the lowest perplexity; the latest one without a test text.
        latest: the last checkpoint.
        checkpoints: all checkpoints, in the order of their steps.
    """

    folder: Path
    best: Checkpoint
    latest: Checkpoint
    checkpoints: tuple[Checkpoint, ...] = field(repr=False)

    @classmethod
    def of(cls, folder: str | os.PathLike[str], run: runs.Run) -> "TrainingRun":
        """Return the training run in a folder, from the content of its run.json."""
        listed = run["checkpoints"]
        found = tuple(
            Checkpoint(
                model=f"{os.fspath(folder)}@{one['step']}",
                folder=Path(folder) / runs.checkpoint_name(one["step"]),
                step=one["step"],
                loss=one["loss"],
                perplexity=one["perplexity"],
            )
            for one in listed
        )
        return cls(Path(folder), found[listed.index(runs.best(listed))], found[-1], found)
