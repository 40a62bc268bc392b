"""The folder of an experiment: what is in it, and which of its stages are finished."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdgen.errors import CorpusError
from cdgen.report.content import Command, State
from cdgen.report.parts import Part, find_part, reason
from cdgen.storage import stages

_TASKS = {  # what is left to do, by the command of a stage
    "prepare": "prepare the {0}",
    "tokenizer": "train the {0}",
    "train": "train {0}",
    "generate": "generate {0}",
    "evaluate": "evaluate the models",
    "compare": "compare the methods",
}


@dataclass(frozen=True)
class Experiment:
    """An experiment of `cdgen run`.

    Attributes:
        folder: where it is.
        recipe: name of its recipe; "" if it is not known.
        parts: what is in its folders, in the order of the stages.
        written: the folders that it was written to, as its commands name them: it may have been moved since.
        state: which stages are finished; None if that is not known.
        commands: its stages.
    """

    folder: Path
    recipe: str
    parts: tuple[Part, ...]
    written: tuple[Path, ...]
    state: State | None
    commands: tuple[Command, ...]


def find_experiment(folder: Path, note: Callable[[str], None]) -> Experiment | None:
    """Read the folder of an experiment.

    Args:
        folder: the folder. It has a stages.json, or at least subfolders that commands of cdgen have written.
        note: receives what cannot be shown, and why.
    Returns:
        the experiment, or None if the folder holds nothing of that kind.
    """
    has_stages = (folder / stages.NAME).exists()
    found = None
    try:
        found = stages.read(folder)
        if has_stages and found is None:
            note("It is not known which stages are finished: an earlier version of cdgen wrote stages.json.")
    except CorpusError as error:
        note(f"It is not known which stages are finished: {error}")
    entries = found["stages"] if found else []
    parts = _parts(folder, [entry["name"] for entry in entries], note)
    if not parts and not has_stages:
        return None
    out = found["out"] if found else ""
    finished = {entry["name"]: stages.is_finished(folder, entry, out) for entry in entries}
    written = {Path(entry["record"]["out"]) for entry in entries if entry["record"]}
    return Experiment(
        folder=folder,
        recipe=found["recipe"] if found else "",
        parts=tuple(parts),
        written=tuple(sorted(written)),
        state=_state(entries, finished) if found else None,
        commands=tuple(_command(entry, finished[entry["name"]]) for entry in entries),
    )


def _parts(folder: Path, order: Sequence[str], note: Callable[[str], None]) -> list[Part]:
    """Return what is in the subfolders: the stages in their order, then any others by name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    found = []
    for name in names:
        try:
            found.append(find_part(folder / name, name))
        except (CorpusError, OSError) as error:  # a running experiment may just be replacing a folder
            note(f"{name} is left out: {reason(error)}")
    return [part for part in found if part is not None]


def _state(entries: Sequence[stages.StageEntry], finished: dict[str, bool]) -> State:
    left = [entry for entry in entries if not finished[entry["name"]]]
    done = tuple(name for name, is_finished in finished.items() if is_finished)
    count = len(entries)
    if not left:
        return State(f"All {count} stages are finished.", done, ())
    tasks = tuple(_TASKS.get("".join(entry["argv"][:1]), "{0}").format(entry["name"]) for entry in left)
    verb = "is" if len(done) == 1 else "are"
    return State(f"This experiment is unfinished: {len(done)} of {count} stages {verb} finished.", done, tasks)


def _command(entry: stages.StageEntry, is_finished: bool) -> Command:
    line = f"cdgen {shlex.join(entry['argv'])}"
    seconds = entry["record"]["seconds"] if entry["record"] else None
    return Command(entry["name"], line, seconds or None, is_finished)
