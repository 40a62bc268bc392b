"""The models of a report: training runs, and models from elsewhere."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdgen.errors import CorpusError, InputError
from cdgen.report.content import Models, OtherModel, Point, Role, TrainingRun
from cdgen.report.local_models import model_files
from cdgen.report.names import Model, Names
from cdgen.report.parts import Part, of_kind
from cdgen.report.roles import Use
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.values import INT64_MAX

MOST_POINTS = 400  # points of a loss curve
_LARGEST = 1e100  # greater numbers are damage, or a run that has diverged
_INPUTS = ("corpus", "tokenizer", "test", "synthetic")  # fields of a run's config that name folders


class _Log(NamedTuple):
    """The records of a training run's log by step: of its steps, and of its evaluations."""

    steps: dict[int, dict[str, Any]]
    tests: dict[int, float]

    def total(self, name: str) -> float:
        """Return the sum of a value over all steps."""
        return sum(filter(None, (_number(record.get(name)) for record in self.steps.values())))


def read_models(parts: Sequence[Part], names: Names, uses: Sequence[Use]) -> Models | None:
    """Return the models; None if there are none.

    Args:
        parts: the parts of the report.
        names: what names in manifests stand for.
        uses: what models are used for.
    """
    found = of_kind(parts, manifests.RUN)
    trained = tuple(_training_run(part, names, [use for use in uses if use.model.run is part]) for part in found)
    others: dict[str, list[Use]] = {}
    for use in uses:
        if use.model.run is None:
            others.setdefault(f"{use.model.name} {use.model.fingerprint}", []).append(use)
    if not trained and not others:
        return None
    return Models(trained, tuple(_other(of_model[0].model, of_model) for of_model in others.values()))


def _training_run(part: Part, names: Names, uses: Sequence[Use]) -> TrainingRun:
    config, log = part.manifest["config"], _read_log(part.path)
    checkpoints = [one | {"perplexity": _number(one["perplexity"])} for one in part.manifest["checkpoints"]]
    reached = [one["step"] for one in checkpoints]
    step, steps = max([*log.steps, *reached], default=0), _count(config.get("steps"))
    best = runs.best(checkpoints) if checkpoints else None
    tokens = step * _count(config.get("batch_size")) * _count(config.get("block_size"))
    seconds = log.total("seconds")
    return TrainingRun(
        name=part.name,
        roles=_roles(uses),
        config=tuple(_settings(config, names)),
        parameters=_parameters([part.path / runs.checkpoint_name(at) for at in reached]),
        train=_thinned([Point(at, loss) for at, record in log.steps.items() if (loss := _number(record["loss"]))]),
        test=_thinned([Point(at, loss) for at, loss in log.tests.items()]),
        best_step=best["step"] if best else None,
        perplexity=best["perplexity"] if best else None,
        step=step,
        steps=steps,
        finished=steps in reached,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
        device=", ".join(dict.fromkeys(map(_device, part.manifest["environments"]))),
    )


def _read_log(folder: Path) -> _Log:
    """Read log.jsonl; damaged lines, and one that is being written, are left out."""
    log = _Log({}, {})
    try:
        lines = (folder / runs.LOG).read_bytes().splitlines()
    except OSError:
        return log
    for line in lines:
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if type(step) is not int or not 0 <= step < INT64_MAX:
            continue
        if "loss" in record:
            log.steps[step] = record
        if loss := _number(record.get("test_loss")):
            log.tests[step] = loss
    return log


def _number(value: object) -> float | None:
    """Return a number that is not absurdly large, or None."""
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else None


def _count(value: object) -> int:
    """Return a number of a run's config, which is not checked when it is read; 0 if it is none."""
    return value if type(value) is int and value > 0 else 0


def _thinned(points: list[Point]) -> tuple[Point, ...]:
    """Return at most 400 points, evenly spaced, with the first and the last one."""
    points.sort(key=lambda point: point.step)
    if len(points) <= MOST_POINTS:
        return tuple(points)
    return tuple(points[at * (len(points) - 1) // (MOST_POINTS - 1)] for at in range(MOST_POINTS))


def _settings(config: Mapping[str, Any], names: Names) -> Iterator[tuple[str, str]]:
    """Yield the settings of a run, without those that are not set, and with short names of its inputs."""
    for name, value in config.items():
        values = [value] if not isinstance(value, list) else value
        shown = [names.short(str(each)) if name in _INPUTS else str(each) for each in values if each is not None]
        if shown:
            yield name, ", ".join(shown)


def _device(environment: Mapping[str, Any]) -> str:
    processes = environment.get("processes", 1)
    device = str(environment.get("device", "unknown"))
    return device if processes == 1 else f"{device} x {processes}"


def _parameters(folders: Sequence[Path]) -> int | None:
    """Return the number of weights in the first of some checkpoints that can be read."""
    for folder in folders:
        try:
            return model_files(str(folder)).parameters
        except (InputError, CorpusError, OSError):  # it was deleted, or a running experiment is writing it
            continue
    return None


def _roles(uses: Sequence[Use]) -> tuple[Role, ...]:
    return tuple(Role(use.kind, use.text, use.model.step, use.label) for use in uses)


def _other(model: Model, uses: Sequence[Use]) -> OtherModel:
    parameters = size = None
    if not model.rule:
        with contextlib.suppress(InputError, CorpusError, OSError):  # it is not on this machine
            parameters, size = model_files(model.source)
    return OtherModel(model.name, _roles(uses), model.fingerprint, parameters, size)
