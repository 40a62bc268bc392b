"""Stages of `cdgen run`: commands that run one after another. A stage is skipped if nothing that it reads has changed.

A digest of each finished stage is kept in stages.json (see :mod:`cdgen.storage.stages`). It covers the stage's command,
and the manifests of the stages that it reads from, which hold the checksums of their files.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cdgen.errors import CorpusError
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage import stages as stage_files
from cdgen.storage.stages import StageEntry


@dataclass(frozen=True)
class Stage:
    """A command of an experiment.

    Args:
        name: name of the stage and of its folder.
        argv: arguments of `cdgen`, starting with the command's name.
        inputs: names of the stages that it reads from.
        always: run the command each time, because it reads files from outside the output folder and checks them itself,
            or because it is quick and prints what the user wants to see.
    """

    name: str
    argv: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    always: bool = False

    @property
    def command(self) -> str:
        """The command line as one would type it."""
        return f"cdgen {shlex.join(self.argv)}"


def run_stages(
    planned: Sequence[Stage],
    out: str | os.PathLike[str],
    recipe: str,
    execute: Callable[[list[str]], int],
    report: Callable[[str], None],
) -> int:
    """Run the unfinished stages one after another; report perplexities once all models are trained.

    Args:
        planned: the stages, as :func:`cdgen.cli.recipe.stages` returns them.
        out: the folder that they were planned for.
        recipe: name of the recipe.
        execute: runs a command line of `cdgen` and returns its exit code.
        report: prints a line.
    Returns:
        The exit code of the first stage that fails, otherwise 0.
    Raises:
        InputError: a stage cannot run.
        CorpusError: a stage's folder or `stages.json` cannot be used.
    """
    out = Path(out)
    entries = _entries(planned, out)
    experiment = stage_files.new(recipe, list(entries.values()))
    stage_files.write(out, experiment)
    trained = [stage.name for stage in planned if stage.argv[0] == "train"]
    for stage in planned:
        entry, digest = entries[stage.name], stage_files.digest(out, stage.argv, stage.inputs)
        if not stage.always and entry["digest"] == digest and manifests.is_whole(out / stage.name):
            report(f"{stage.name}: already complete, skipped")
        else:
            report(f"{stage.name}: {stage.command}")
            if code := _execute(stage, execute, entry, digest, lambda: stage_files.write(out, experiment)):
                return code
        if stage.name == trained[-1]:
            for line in perplexities(out, trained):
                report(line)
    return 0


def _entries(planned: Sequence[Stage], out: Path) -> dict[str, StageEntry]:
    """Return the entries of the planned stages by name, then those of finished stages that are no longer planned.

    The latter are skipped if the recipe has them again.
    """
    before = stage_files.read(out)
    known = {entry["name"]: entry for entry in before["stages"]} if before else {}
    found: dict[str, StageEntry] = {}
    for stage in planned:
        old = known.pop(stage.name, None)
        found[stage.name] = {
            "name": stage.name,
            "argv": list(stage.argv),
            "inputs": list(stage.inputs),
            "digest": old["digest"] if old else None,
            "seconds": old["seconds"] if old else 0.0,
            "finished": old["finished"] if old else None,
        }
    return found | {name: entry for name, entry in known.items() if entry["digest"] is not None}


def _execute(
    stage: Stage, execute: Callable[[list[str]], int], entry: StageEntry, digest: str, save: Callable[[], None]
) -> int:
    """Run a stage, and record its time and, if it succeeds, its digest; return the exit code."""
    code, start = -1, time.monotonic()
    try:
        code = execute(list(stage.argv))
    finally:
        entry["seconds"] = round(entry["seconds"] + time.monotonic() - start, 3)
        if code == 0 and entry["digest"] != digest:
            entry["digest"], entry["finished"] = digest, datetime.now(timezone.utc).isoformat(timespec="seconds")
        save()
    return code


def perplexities(out: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table with each model's best checkpoint and its perplexity on the test text.

    Args:
        out: the folder of the experiment.
        names: names of the training stages.
    Raises:
        CorpusError: a model has no checkpoint.
    """
    yield ""
    yield f"{'model':<32} {'best step':>9} {'perplexity':>11}"
    for name in names:
        run = runs.read(out / name)
        if run is None or not run["checkpoints"]:
            raise CorpusError(f"{out / name}: has no checkpoint; delete this folder and rerun the command")
        best = runs.best(run["checkpoints"])
        rating = "-" if best["perplexity"] is None else f"{best['perplexity']:.3f}"
        yield f"{name:<32} {best['step']:>9} {rating:>11}"
    yield ""
    yield "Perplexity is that of the test text; lower is better. The training seed alone can change it by several"
    yield "percent. GOOD was trained on real text alone."
