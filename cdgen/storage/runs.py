"""Run folders: checkpoints `step_000500` that transformers loads as they are, and run.json, which tells them apart.

`RUN@best`, `RUN@latest` and `RUN@500` name a checkpoint wherever a model is named.
"""

import json
from pathlib import Path

from cdgen.errors import CorpusError, InputError

NAME = "run.json"


def checkpoint_name(step):
    return f"step_{step:06d}"


def read_run(folder):
    """The content of run.json, of its checkpoints those whose folders are there; None where there is no run.json.

    {"config": ..., "inputs": ..., "runs": ..., "checkpoints": [{"step", "loss", "perplexity", "files"}]}

    Raises:
        CorpusError: it is there and cannot be read.
    """
    path = Path(folder).expanduser() / NAME
    try:
        run = json.loads(path.read_text())
        there = {folder.name for folder in path.parent.glob("step_*")}
        run["checkpoints"] = [one for one in run["checkpoints"] if checkpoint_name(one["step"]) in there]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from error
    return run


def best(checkpoints):
    """The checkpoint with the lowest perplexity, the earliest of equals; without any perplexity, the last."""
    rated = [one for one in checkpoints if one.get("perplexity") is not None]
    return min(rated, key=lambda one: one["perplexity"]) if rated else checkpoints[-1]


def resolve(source):
    """The folder of a checkpoint that is named as RUN@best, RUN@latest or RUN@STEP; any other name as it is.

    Raises:
        InputError: no such run or step; or a run's folder without @, by what there is to choose from.
    """
    path = Path(source).expanduser()
    name, at, which = str(source).rpartition("@")
    if not at or path.exists():
        run = None if (path / "config.json").exists() else read_run(path)
        if run is not None:
            raise InputError(f"{source}: is a run; name a checkpoint, as {source}@best; it has {_choices(run)}")
        return source
    run = read_run(name)
    if run is None:
        if which in ("best", "latest") or which.isdigit():
            raise InputError(f"{source}: {name} is no folder of a run, which has a {NAME}")
        return source
    checkpoints = run["checkpoints"]
    steps = {str(one["step"]): one["step"] for one in checkpoints}
    if checkpoints:
        steps |= {"latest": checkpoints[-1]["step"], "best": best(checkpoints)["step"]}
    if which not in steps:
        raise InputError(f"{source}: no such checkpoint; {name} has {_choices(run)}")
    return str(Path(name).expanduser() / checkpoint_name(steps[which]))


def _choices(run):
    steps = [str(one["step"]) for one in run["checkpoints"]]
    return ", ".join([*steps, "best", "latest"]) if steps else "none yet"


def table(folder):
    """Lines of `cdgen models ls`: a checkpoint each."""
    run = read_run(folder)
    if run is None:
        raise InputError(f"{folder}: is no folder of a run, which has a {NAME}")
    yield f"{'step':>8}  {'loss':>8}  {'perplexity':>10}"
    for one in run["checkpoints"]:
        marks = [
            name
            for name, which in (("best", best(run["checkpoints"])), ("latest", run["checkpoints"][-1]))
            if one is which
        ]
        rating = "-" if one["perplexity"] is None else f"{one['perplexity']:.3f}"
        yield f"{one['step']:>8}  {one['loss']:>8.4f}  {rating:>10}  {' '.join(marks)}".rstrip()
