"""The steps of datatrove pipelines that write the corpus of `cdgen generate`: a task's shards, and the merge."""

from pathlib import Path
from typing import TYPE_CHECKING

from cdgen.corpus import parts
from cdgen.corpus.job import CorpusJob
from cdgen.errors import CorpusError
from cdgen.integrations.datatrove import PipelineStep, choose_device
from cdgen.storage.folder import OutputFolder

if TYPE_CHECKING:
    from datatrove.data import DocumentsPipeline


class WriteShards(PipelineStep):
    """Write a task's share of the shards to its part of the corpus, see :mod:`cdgen.corpus.parts`.

    A task that is run again, for whatever reason, writes only what is missing from its part and from the corpus. So
    datatrove's completion records are not needed; give the executor `skip_completed=False`.

    Args:
        job: the corpus.
        shards: the shards that are missing when the tasks are started.
        threads: CPU threads per task; default: torch's.
    """

    name = "Write shards"
    type = "GENERATE"

    def __init__(self, job: CorpusJob, shards: list[int], threads: int | None = None) -> None:
        super().__init__()
        self.job, self.shards, self.threads = job, shards, threads

    def run(self, data: "DocumentsPipeline" = None, rank: int = 0, world_size: int = 1) -> "DocumentsPipeline":
        """Write the shards; yield nothing.

        Args:
            data: not used.
            rank: number of the task.
            world_size: number of tasks.
        """
        choose_device(rank, self.job.models.get("device"), self.threads)
        manifest, written = self.job.write_share(self.shards, rank, world_size)
        self.stat_update("shards", value=written)
        self.stat_update("documents", value=manifest["counts"].get("documents", 0))
        self.stat_update("new_tokens", value=manifest["counts"].get("new_tokens", 0))
        yield from ()


class FinishCorpus(PipelineStep):
    """Merge the parts of all tasks into the corpus; a single task runs this after the others.

    Args:
        job: the corpus.
    """

    name = "Merge the parts"
    type = "GENERATE"

    def __init__(self, job: CorpusJob) -> None:
        super().__init__()
        self.job = job

    def run(self, data: "DocumentsPipeline" = None, rank: int = 0, world_size: int = 1) -> "DocumentsPipeline":
        """Merge the parts; yield nothing.

        Raises:
            CorpusError: shards are missing, because a task has failed.
        """
        with OutputFolder(self.job.out) as folder:
            manifest = parts.finish(folder)
        if manifest is None or not manifest["complete"]:
            raise CorpusError(
                f"{Path(self.job.out)}: shards are missing, since tasks have failed; rerun the command to resume"
            )
        yield from ()
