"""Which stages of an experiment are finished, and which of the others are to run.

The answers come from the disk, because other processes may run stages of the same experiment.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from cdgen.cli.experiment.stage import Stage
from cdgen.storage import manifest as manifests
from cdgen.storage import stages as stage_files
from cdgen.storage.locks import FileLock

_LOCKS = ".cdgen-locks"  # the commands of the stages lock the folders of the stages


class Schedule:
    """The stages that a process is to run.

    Args:
        planned: all stages, each after those that it reads from.
        out: the folder that they were planned for.
        selected: names of the stages to run. Others are run if they are unfinished and a selected one needs them.
    """

    def __init__(self, planned: Sequence[Stage], out: Path, selected: Collection[str]) -> None:
        self.out = out
        self.selected = [stage.name for stage in planned if stage.name in selected]
        self._stages = {stage.name: stage for stage in planned}
        self._finished: set[str] = set()  # a finished stage is not checked again

    def pending(self) -> list[Stage]:
        """Return the unfinished stages that are selected or that a selected one needs, in their order.

        Raises:
            CorpusError: the manifest of a stage is damaged.
        """
        needed: set[str] = set()
        names = [*self.selected]
        while names:
            name = names.pop()
            if name not in needed and not self.is_finished(name):
                needed.add(name)
                names += self._stages[name].inputs
        return [stage for stage in self._stages.values() if stage.name in needed]

    def is_finished(self, name: str) -> bool:
        """Return whether a stage and all that it reads from are finished, and have not changed since.

        A selected stage that always runs is finished once this process has run it.

        Raises:
            CorpusError: the manifest of a stage is damaged.
        """
        if name in self._finished:
            return True
        stage = self._stages[name]
        if stage.always and name in self.selected:
            return False
        record = stage_files.read_record(self.out / name)
        if record is None or record["digest"] is None or not self.is_ready(stage):
            return False
        if record["digest"] == self.digest(stage) and manifests.is_whole(self.out / name):
            self._finished.add(name)
            return True
        return False

    def changed(self) -> list[str]:
        """Return the names of the pending stages whose command or inputs on disk have changed since they were finished.

        Raises:
            CorpusError: the manifest of a stage is damaged.
        """
        records = {
            stage: stage_files.read_record(self.out / stage.name) for stage in self.pending() if not stage.always
        }
        return [
            stage.name
            for stage, record in records.items()
            if record and record["digest"] and record["digest"] != self.digest(stage)
        ]

    def is_ready(self, stage: Stage) -> bool:
        """Return whether all stages that a stage reads from are finished."""
        return all(self.is_finished(name) for name in stage.inputs)

    def digest(self, stage: Stage) -> str:
        """Return the digest of a stage and its inputs on disk; see :func:`cdgen.storage.stages.digest`."""
        return stage_files.digest(self.out, stage.argv, stage.inputs, str(self.out))

    def finish(self, stage: Stage) -> None:
        """Note that this process has run a stage."""
        self._finished.add(stage.name)

    def lock(self, name: str) -> FileLock:
        """Return the lock of a stage, which a process holds while it runs the stage."""
        return FileLock(self.out / _LOCKS / name)
