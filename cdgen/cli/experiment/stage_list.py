"""The table of `cdgen run --list`: which stages are finished, and how long the others will take."""

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from cdgen.cli.experiment.schedule import Schedule
from cdgen.cli.experiment.stage import Stage
from cdgen.cli.sampling import sampling_params
from cdgen.cli.train import train_config
from cdgen.storage import runs
from cdgen.storage import stages as stage_files
from cdgen.storage.locks import holder
from cdgen.wording import counted, duration

_HEADER = ("stage", "state", "time", "left", "machine")


class _Work(NamedTuple):
    """How much a stage computes. Stages of the same kind take time in proportion to the amount."""

    kind: tuple[Any, ...]
    amount: float


class _Row(NamedTuple):
    """A stage with its time and the estimate of what is left of it, in seconds; None if it is not known."""

    name: str
    state: str
    seconds: float | None
    left: float | None
    machine: str
    is_finished: bool
    is_estimated: bool  # its time can be estimated, at least once a stage of its kind is finished


def stage_list(
    planned: Sequence[Stage],
    selected: Collection[str],
    out: Path,
    parse: Callable[[Sequence[str]], argparse.Namespace],
) -> Iterator[str]:
    """Yield the lines of a table of stages, and one with totals. Nothing is run or written.

    Args:
        planned: all stages.
        selected: names of those to list.
        out: the folder that they were planned for; it need not exist.
        parse: parses a command line of `cdgen`.
    Raises:
        InputError: the command of a stage cannot be parsed.
        CorpusError: the manifest of a stage is damaged.
    """
    schedule = Schedule(planned, out, ())
    works = {stage.name: _work(parse(stage.argv)) for stage in planned}
    rates: dict[tuple[Any, ...], list[float]] = {}  # seconds per unit of the finished stages, by kind
    for name, work in works.items():
        record = stage_files.read_record(out / name)
        if work and record and schedule.is_finished(name):
            rates.setdefault(work.kind, []).append(record["seconds"] / work.amount)
    typical = {kind: median(found) for kind, found in rates.items()}
    rows = [_row(schedule, stage, works[stage.name], typical) for stage in planned if stage.name in selected]
    cells = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(each[column]) for each in cells) for column in range(len(_HEADER))]
    for each in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip()
    yield ""
    yield _totals(rows)


def _work(args: argparse.Namespace) -> _Work | None:
    """Return the work of a command, or None for one whose time is not estimated."""
    if args.command == "train":
        config = train_config(args)
        return _Work(("train", config.model), config.steps * config.batch_size * config.block_size)
    if args.command == "generate":
        params = sampling_params(args)
        return _Work(("generate", bool(args.bad)), params.n * (params.max_tokens or 1))
    if args.command == "evaluate":
        return _Work(("evaluate", tuple(args.tasks), args.limit), len(args.models))
    return None


def _row(schedule: Schedule, stage: Stage, work: _Work | None, typical: dict[tuple[Any, ...], float]) -> _Row:
    folder, is_finished = schedule.out / stage.name, schedule.is_finished(stage.name)
    record = stage_files.read_record(folder)
    state, share = _state(schedule, stage, record, is_finished)
    left = None
    if work and work.kind in typical and not is_finished:
        left = typical[work.kind] * work.amount * (1 - share)
    return _Row(
        stage.name,
        state,
        record["seconds"] if record else None,
        left,
        record["machine"] if record else "",
        is_finished,
        work is not None,
    )


def _state(schedule: Schedule, stage: Stage, record: stage_files.Record | None, is_finished: bool) -> tuple[str, float]:
    """Return the state of a stage, and the share of it that is finished if that is known."""
    if is_finished:
        return "finished", 1.0
    running = holder(schedule.lock(stage.name).path)
    if running is None and record is not None and record["digest"] is not None:
        return "changed", 0.0
    folder = schedule.out / stage.name
    if running is None and not folder.exists():
        return "waiting", 0.0
    state = "partly done" if running is None else "running"
    run = runs.read(folder) if stage.argv[0] == "train" else None
    steps = run["config"].get("steps") if run and run["checkpoints"] else None
    if run is None or not isinstance(steps, int) or steps < 1:
        return state, 0.0
    step = run["checkpoints"][-1]["step"]
    return f"{state}, step {step} of {steps}", min(step / steps, 1.0)


def _cells(row: _Row) -> tuple[str, ...]:
    seconds = "" if row.seconds is None else duration(row.seconds)
    unknown = "unknown" if row.is_estimated else ""
    left = "" if row.is_finished else unknown if row.left is None else f"about {duration(row.left)}"
    return row.name, row.state, seconds, left, row.machine


def _totals(rows: Sequence[_Row]) -> str:
    """Return a sentence about the stages that are finished, and the time of the others."""
    finished = [row for row in rows if row.is_finished]
    took = f", which took {duration(sum(row.seconds or 0.0 for row in finished))}" if finished else ""
    text = f"{len(finished)} of {counted(len(rows), 'stage')} finished{took}"
    others = [row for row in rows if not row.is_finished and row.is_estimated]
    known = sum(row.left for row in others if row.left is not None)
    unknown = sum(row.left is None for row in others)
    if not others:
        return f"{text}."
    if unknown == len(others):
        return f"{text}. The time left is unknown, because no stage of the same kind is finished."
    more = f", without {counted(unknown, 'stage')} of unknown length" if unknown else ""
    return f"{text}. About {duration(known)} of work is left{more}."
