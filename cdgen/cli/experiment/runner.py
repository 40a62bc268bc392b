"""Stages of `cdgen run`: commands that run one after another. A stage is skipped if nothing that it reads has changed.

A digest of each finished stage is kept in its folder (see :mod:`cdgen.storage.stages`). It covers the stage's command,
and the manifests of the stages that it reads from, which hold the checksums of their files. Several processes may run
the stages of one experiment: each takes a stage that no other process runs.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

from cdgen.cli.experiment.machine import machine
from cdgen.cli.experiment.schedule import Schedule
from cdgen.cli.experiment.stage import Stage
from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs
from cdgen.storage import stages as stage_files
from cdgen.storage.locks import holder
from cdgen.storage.manifest import REWRITE
from cdgen.storage.stages import PlannedStage, Record
from cdgen.wording import counted, duration, joined

_POLL = 5.0  # seconds between two checks of the stages that other processes run
_LISTED = 10  # number of finished stages that are reported one by one, and of stages that a message names
_OTHER_FOLDER = re.compile(f"(choose|evaluate into) another folder|{re.escape(REWRITE)}")
_LONGEST = 1000  # number of characters of a command that are printed


def run_stages(
    planned: Sequence[Stage],
    out: str | os.PathLike[str],
    recipe: str,
    execute: Callable[[list[str]], int],
    report: Callable[[str], None],
    selected: Collection[str] | None = None,
) -> int:
    """Run the unfinished stages; report perplexities once all models are trained.

    Stages that other processes run at the same time are waited for. If such a process ends before its stage does, this
    one runs the stage.

    Args:
        planned: the stages, as :func:`cdgen.cli.experiment.recipe.stages` returns them.
        out: the folder that they were planned for.
        recipe: name of the recipe.
        execute: runs a command line of `cdgen` and returns its exit code.
        report: prints a line.
        selected: names of the stages to run, with the unfinished stages that they need; default: all.
    Returns:
        The exit code of the first stage that fails, otherwise 0.
    Raises:
        InputError: a stage cannot run.
        CorpusError: a stage's folder or `stages.json` cannot be used.
    """
    out = Path(out)
    schedule = Schedule(planned, out, {stage.name for stage in planned} if selected is None else selected)
    _write_plan(planned, out, recipe)
    if changed := schedule.changed():
        report(
            f"changed since they were finished: {joined(changed[:_LISTED])}"
            + (f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else "")
            + "; if the command of one refuses to replace its folder, delete that folder and rerun"
        )
    runner = _Runner(planned, schedule, execute, report)
    while pending := schedule.pending():
        runner.report_finished()
        if code := runner.run_one(pending):
            return code
    runner.report_finished()
    return 0


def matching(planned: Sequence[Stage], only: Sequence[str]) -> list[str]:
    """Return the names of the stages that match one of several shell patterns, such as `model-*-seed42`.

    Args:
        planned: the stages.
        only: the patterns. Without any, all stages match.
    Raises:
        InputError: a pattern matches no stage.
    """
    names = [stage.name for stage in planned]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            more = len(names) - _LISTED
            listed = ", ".join(names[:_LISTED]) + (f" and {more} more, which --list shows" if more > 0 else "")
            raise InputError(f"--only {pattern}: matches no stage; the stages are {listed}")
    return [name for name in names if not only or any(fnmatchcase(name, pattern) for pattern in only)]


def _write_plan(planned: Sequence[Stage], out: Path, recipe: str) -> None:
    """Write stages.json: the planned stages, then finished ones of an earlier recipe, so that they stay known."""
    plan: list[PlannedStage] = [
        {"name": stage.name, "argv": list(stage.argv), "inputs": list(stage.inputs)} for stage in planned
    ]
    before, names = stage_files.read(out), {stage.name for stage in planned}
    for entry in before["stages"] if before else ():
        if entry["name"] not in names and entry["record"] and entry["record"]["digest"]:
            plan.append({"name": entry["name"], "argv": entry["argv"], "inputs": entry["inputs"]})
    stage_files.write(out, recipe, str(out), plan)


class _Runner:
    """Runs stages, and reports what happens to them.

    Args:
        planned, execute, report: see :func:`run_stages`.
        schedule: knows which stages are finished.
    """

    def __init__(
        self,
        planned: Sequence[Stage],
        schedule: Schedule,
        execute: Callable[[list[str]], int],
        report: Callable[[str], None],
    ) -> None:
        self._schedule, self._execute_command, self._report = schedule, execute, report
        self._models = [stage.name for stage in planned if stage.argv[0] == "train" and stage.name in schedule.selected]
        self._reported: set[str] = set()  # finished stages
        self._seen: set[str] = set()  # stages that were found ready to run
        self._waiting: list[str] = []  # what this process waits for

    def report_finished(self) -> None:
        """Report the selected stages that are finished, unless that was done before."""
        skipped = []
        for name in self._schedule.selected:
            if name not in self._reported and self._schedule.is_finished(name):
                self._reported.add(name)
                if name in self._seen:
                    self._report(f"{name}: finished by another process")
                else:
                    skipped.append(name)
        if len(skipped) > _LISTED:
            self._report(f"{len(skipped)} stages are already complete, skipped")
        else:
            for name in skipped:
                self._report(f"{name}: already complete, skipped")
        if self._models and self._reported.issuperset(self._models):
            for line in perplexities(self._schedule.out, self._models):
                self._report(line)
            self._models = []

    def run_one(self, pending: Sequence[Stage]) -> int:
        """Run the first stage that can run now, or wait for other processes; return its exit code, or 0."""
        ready = [stage for stage in pending if self._schedule.is_ready(stage)]
        self._seen.update(stage.name for stage in ready)
        for stage in ready:
            lock = self._schedule.lock(stage.name)
            if lock.take():
                try:
                    if lock.settling:
                        self._report(
                            f"{stage.name}: waiting {duration(lock.settling)} to see the files of another machine"
                        )
                        time.sleep(lock.settling)
                    if self._schedule.is_finished(stage.name):  # another process has just finished it
                        return 0
                    return self._run(stage)
                finally:
                    lock.release()
        self._wait([stage.name for stage in ready])
        return 0

    def _wait(self, names: Sequence[str]) -> None:
        """Wait for stages that other processes run, and report which ones unless they are the same as before."""
        found = [(name, holder(self._schedule.lock(name).path)) for name in names]
        waiting = [f"{name} ({process})" for name, process in found if process]
        if waiting and waiting != self._waiting:
            self._report(f"waiting for {joined(waiting)}")
        self._waiting = waiting
        time.sleep(_POLL)

    def _run(self, stage: Stage) -> int:
        """Run a stage, and record its time and, if it succeeds, its digest; return the exit code."""
        command = stage.command
        if len(command) > _LONGEST:
            command = f"{command[:_LONGEST]} ... (--dry-run prints it all)"
        self._report(f"{stage.name}: {command}")
        digest = self._schedule.digest(stage)
        code, start = -1, time.monotonic()
        try:
            code = self._execute_command(list(stage.argv))
        except InputError as error:  # a stage cannot have another folder
            remedy = f"delete {self._schedule.out / stage.name} and rerun"
            message = _OTHER_FOLDER.sub(lambda found: remedy if found[1] else f"or {remedy}", str(error))
            raise InputError(message) from error
        finally:
            seconds = time.monotonic() - start
            self._record(stage, seconds, digest if code == 0 else None)
        if code == 0:
            self._schedule.finish(stage)
            self._reported.add(stage.name)
            if not stage.always:
                left = len(self._schedule.pending())
                others = f", {counted(left, 'stage')} left" if left else ""
                self._report(f"{stage.name}: finished in {duration(seconds)}{others}")
        return code

    def _record(self, stage: Stage, seconds: float, digest: str | None) -> None:
        """Record an attempt, unless it only checked a finished stage. `digest` is None if it failed."""
        folder = self._schedule.out / stage.name
        before = stage_files.read_record(folder)
        if not folder.is_dir() or (digest is not None and before and before["digest"] == digest):
            return
        record: Record = {
            "digest": digest or (before["digest"] if before else None),
            "seconds": round(seconds + (before["seconds"] if before else 0.0), 3),
            "finished": before["finished"] if before else None,
            "machine": machine(stage.argv),
            "out": str(self._schedule.out),
        }
        if digest is not None:
            record["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        stage_files.write_record(folder, record)


def perplexities(out: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table with each model's best checkpoint and its perplexity on the test text.

    Args:
        out: the folder of the experiment.
        names: names of the training stages.
    Raises:
        CorpusError: a model has no checkpoint.
    """
    width = max(len(name) for name in names)
    yield ""
    yield f"{'model':<{width}}  {'best step':>9}  {'perplexity':>10}"
    for name in names:
        run = runs.read(out / name)
        if run is None or not run["checkpoints"]:
            raise CorpusError(f"{out / name}: has no checkpoint; delete this folder and rerun the command")
        best = runs.best(run["checkpoints"])
        rating = "-" if best["perplexity"] is None else f"{best['perplexity']:.3f}"
        yield f"{name:<{width}}  {best['step']:>9}  {rating:>10}"
    yield ""
    yield "Perplexity is that of the test text; lower is better. The training seed alone can change it by several"
    yield "percent. GOOD was trained on real text alone."
