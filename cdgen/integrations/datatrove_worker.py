"""A worker of `cdgen generate --workers`: a process that runs one task, with datatrove's local executor.

The parent sends the task through standard input and keeps it open, so the worker notices if the parent is killed.
"""

import os
import pickle
import signal
import sys
import threading

from datatrove.executor.local import LocalPipelineExecutor

from cdgen.errors import CorpusError, InputError, first_line
from cdgen.integrations.datatrove_corpus import WriteShards
from cdgen.integrations.datatrove_workers import Task


def main() -> int:
    """Run the task; return 2 or 1 after an error, whose message alone is written to standard output."""
    output = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print belongs to the log
    task: Task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    executor = LocalPipelineExecutor(
        [WriteShards(task.job, task.shards, task.threads)],
        tasks=task.workers,
        workers=1,
        local_tasks=1,
        local_rank_offset=task.number,
        logging_dir=task.logs,
        skip_completed=False,
    )
    try:
        executor.run()
    except Exception as error:
        known = isinstance(error, (InputError, CorpusError))
        message = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
        os.write(output, message.encode(errors="backslashreplace"))
        return 2 if isinstance(error, InputError) else 1
    return 0


def _end_with_parent() -> None:
    """Kill this process and its children once standard input ends."""
    while os.read(0, 1):  # sys.stdin would be locked meanwhile, and processes that are forked close it
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
