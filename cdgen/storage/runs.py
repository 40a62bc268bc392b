"""Training runs: checkpoints `step_000500` in the format of transformers, and run.json, which lists and rates them.

This module alone reads and writes run.json. `RUN@best`, `RUN@latest` and `RUN@500` name a checkpoint of a run.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, cast

from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder
from cdgen.values import expanded

NAME = manifests.FILE_NAMES[manifests.RUN]
LOG = "log.jsonl"

_REMEDY = "restore it, or choose another folder"


class Checkpoint(TypedDict):
    """A checkpoint in run.json."""

    step: int
    loss: float  # mean training loss of the step
    perplexity: float | None  # on the test text, if there is one and it fits a float
    files: dict[str, str]  # sha256 of each file when it was written, by name


class Run(TypedDict):
    """The content of run.json."""

    kind: str
    format_version: int
    config: dict[str, Any]
    inputs: dict[str, Any]  # fingerprints by field of the config
    environments: list[dict[str, Any]]  # versions, device, number of processes
    checkpoints: list[Checkpoint]


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step_{step:06d}"


def read(folder: str | os.PathLike[str]) -> Run | None:
    """Read run.json, and leave out the checkpoints whose folders were deleted.

    Returns:
        its content, or None if the folder is not a run
    Raises:
        CorpusError: run.json cannot be read or is damaged.
    """
    path = expanded(folder)
    found = manifests.read(path, manifests.RUN, _REMEDY)
    if found is None:
        return None
    run = cast(Run, found)
    steps = [one["step"] for one in run["checkpoints"]]
    if steps != sorted({*steps}):
        raise CorpusError(f"{path / NAME}: is damaged: the steps of its checkpoints do not increase; {_REMEDY}")
    present = {entry.name for entry in path.glob("step_*")}
    run["checkpoints"] = [one for one in run["checkpoints"] if checkpoint_name(one["step"]) in present]
    for one in run["checkpoints"]:
        one["perplexity"] = _finite(one["perplexity"])
    return run


def _finite(perplexity: float | None) -> float | None:
    """Return a perplexity, or None if it is NaN or infinite, as for a run that has diverged."""
    return perplexity if perplexity is not None and 0 < perplexity < math.inf else None


def write(folder: OutputFolder, run: Run) -> None:
    """Write run.json, whole or not at all."""
    manifests.write(folder, cast(manifests.Manifest, run))


def begin(folder: Path, config: dict[str, Any], inputs: dict[str, Any]) -> Run:
    """Return the content of run.json to resume from, or a new one without checkpoints, which is not written yet.

    A run that has no checkpoint starts from the beginning, with any configuration.

    Args:
        folder: the run's folder.
        config: the training configuration, as JSON.
        inputs: fingerprints of the inputs that fields of the config name, by field. A file that was moved is unchanged.
    Raises:
        InputError: the run was started with another configuration or other inputs; the message names the field.
        CorpusError: run.json is damaged, or the folder holds checkpoints or a log that it does not list.
    """
    run = read(folder)
    manifests.check_no_other_kind(folder, manifests.RUN)
    found = [*sorted(entry.name for entry in folder.glob("step_*")), *([LOG] if run is None else [])]
    listed = [checkpoint_name(one["step"]) for one in run["checkpoints"]] if run else []
    manifests.check_free(folder, found, listed)
    if run is None or not run["checkpoints"]:
        fields = {"config": config, "inputs": inputs, "environments": [], "checkpoints": []}
        return cast(Run, manifests.new(manifests.RUN) | fields)
    for name, now in config.items():
        if name in inputs and run["inputs"].get(name) == inputs[name]:
            continue
        manifests.check_same(folder, {name: run["config"].get(name)}, {name: now})
        if name in inputs:
            raise InputError(
                f"{folder}: the content of {name} = {now} has changed since the run was started; "
                "restore it, or choose another folder"
            )
    return run


def add_checkpoint(folder: OutputFolder, run: Run, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to run.json, before its folder gets its name: run.json lists every checkpoint on the disk."""
    run["checkpoints"].append(checkpoint)
    write(folder, run)


def drop_checkpoint(folder: OutputFolder, run: Run, checkpoint: Checkpoint) -> None:
    """Remove a checkpoint from the disk, then from run.json, so that run.json lists every checkpoint on the disk."""
    folder.remove(checkpoint_name(checkpoint["step"]))
    run["checkpoints"].remove(checkpoint)
    write(folder, run)


def best(checkpoints: list[Checkpoint]) -> Checkpoint:
    """Return the first checkpoint with the lowest perplexity, or the last one if none has a perplexity."""
    rated = [(one["perplexity"], at) for at, one in enumerate(checkpoints) if one.get("perplexity") is not None]
    return checkpoints[min(rated)[1] if rated else -1]


def resolve(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the checkpoint folder that RUN@best, RUN@latest or RUN@STEP names; return any other name as it is.

    Raises:
        InputError: there is no such run or step, or a run is named without @; the message lists the choices.
    """
    path = expanded(source)
    name, at, which = str(source).rpartition("@")
    if not at or path.exists():
        run = None if (path / "config.json").exists() else read(path)
        if run is not None:
            raise InputError(
                f"{source}: is a training run; name one of its checkpoints, such as {source}@best; "
                f"it has {_choices(run)}"
            )
        return source
    run = read(name)
    if run is None:
        if which in ("best", "latest") or which.isdigit():
            raise _not_a_run(source, name)
        return source
    checkpoints = run["checkpoints"]
    steps = {str(one["step"]): one["step"] for one in checkpoints}
    if checkpoints:
        steps |= {"latest": checkpoints[-1]["step"], "best": best(checkpoints)["step"]}
    if which not in steps:
        raise InputError(f"{source}: no such checkpoint; {name} has {_choices(run)}")
    return str(expanded(name) / checkpoint_name(steps[which]))


def _not_a_run(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> InputError:
    named = "" if str(source) == str(folder) else f"{folder} "
    return InputError(f"{source}: {named}is not a training run (it has no {NAME})")


def _choices(run: Run) -> str:
    steps = [str(one["step"]) for one in run["checkpoints"]]
    return ", ".join([*steps, "best", "latest"]) if steps else "none yet"


def table(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Iterate over the lines of a table of a run's checkpoints."""
    run = read(folder)
    if run is None:
        raise _not_a_run(folder, folder)
    checkpoints = run["checkpoints"]
    yield f"{'step':>8}  {'loss':>8}  {'perplexity':>10}"
    for one in checkpoints:
        marks = "best " if one is best(checkpoints) else ""
        marks += "latest" if one is checkpoints[-1] else ""
        rating = "-" if one["perplexity"] is None else f"{one['perplexity']:.3f}"
        yield f"{one['step']:>8}  {one['loss']:>8.4f}  {rating:>10}  {marks}".rstrip()
