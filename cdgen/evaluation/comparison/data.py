"""The comparison of methods with a baseline: estimates, intervals, p-values and detectable effects."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from cdgen.errors import InputError
from cdgen.values import shown

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class RunValue:
    """The value of one training run on one task.

    Attributes:
        model: the model that was evaluated.
        seed: seed of the training run, or None if the model is not from one.
        step: step of the chosen checkpoint, or None.
        value: value of the task's metric.
    """

    model: str
    seed: int | None
    step: int | None
    value: float


@dataclass(frozen=True)
class Effect:
    """The difference between a method and the baseline.

    Attributes:
        value: the difference, or the relative change.
        interval: its confidence interval.
        p: one-sided p-value of the hypothesis that the method is not better than the baseline.
        p_corrected: the p-value after Holm's correction for the number of methods.
        detectable: size of the smallest improvement that would have been found with probability 0.8, at the strictest
            of Holm's levels.
    """

    value: float
    interval: Interval
    p: float
    p_corrected: float
    detectable: float


@dataclass(frozen=True)
class TaskResult:
    """One method on one task.

    Attributes:
        method: label of the method.
        task: name of the task.
        runs: value and chosen checkpoint of each training run.
        estimate: mean over the runs.
        interval: confidence interval of the estimate.
        difference: method - baseline; None for the baseline itself.
        relative_change: (method - baseline) / baseline; None for the baseline itself, and if the baseline's value is
            not clearly above 0.
    """

    method: str
    task: str
    runs: tuple[RunValue, ...]
    estimate: float
    interval: Interval
    difference: Effect | None
    relative_change: Effect | None


@dataclass(frozen=True)
class MethodSummary:
    """One method over all tasks.

    Attributes:
        method: label of the method.
        runs: number of training runs.
        better: number of tasks on which the estimate is better than the baseline's.
        mean_relative_change: the mean over the tasks that are `in_mean`; None for the baseline, or if there are none.
    """

    method: str
    runs: int
    better: int
    mean_relative_change: Effect | None


@dataclass(frozen=True)
class TaskSummary:
    """A task.

    Attributes:
        name: name of the task.
        form: name of its form.
        convention: the convention of its scores.
        items: number of items.
        metric: name of its first metric, which is compared.
        higher_is_better: whether a better model has a higher value.
        in_mean: whether the mean relative change covers the task.
    """

    name: str
    form: str
    convention: str
    items: int
    metric: str
    higher_is_better: bool
    in_mean: bool


@dataclass(frozen=True)
class Comparison:
    """Methods compared with a baseline.

    Attributes:
        baseline: label of the baseline.
        checkpoint: "best" or "latest".
        resamples: number of bootstrap resamples.
        confidence: confidence level of the intervals. Improvements with a corrected p-value of at most 1 - confidence
            count as found.
        seed: random seed of the resamples.
        methods: the methods, the baseline first.
        tasks: the tasks.
        results: results per task and method; tasks in the order of `tasks`, methods in the order of `methods`.
        warnings: tasks that were left out, and limits of the statistics.
    """

    baseline: str
    checkpoint: str
    resamples: int
    confidence: float
    seed: int
    methods: tuple[MethodSummary, ...]
    tasks: tuple[TaskSummary, ...]
    results: tuple[TaskResult, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        tasks = [task.name for task in self.tasks]
        changes = {one.method: one.mean_relative_change for one in self.methods[1:]}
        values = {method: None if change is None else change.value for method, change in changes.items()}
        return f"Comparison(baseline={self.baseline!r}, tasks={tasks}, mean_relative_change={values})"

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Comparison":
        """Return a comparison from the JSON object of :meth:`as_json`, whose types are checked.

        Raises:
            ValueError: an interval has not two limits, the baseline is not the first method, or a method has no result
                on a task.
        """
        plain = {name: found[name] for name in ("baseline", "checkpoint", "resamples", "confidence", "seed")}
        comparison = cls(
            **plain,
            methods=tuple(MethodSummary(**_with_effects(each, MethodSummary)) for each in found["methods"]),
            tasks=tuple(TaskSummary(**_fields(each, TaskSummary)) for each in found["tasks"]),
            results=tuple(_task_result(each) for each in found["results"]),
            warnings=tuple(found["warnings"]),
        )
        if [one.method for one in comparison.methods[:1]] != [comparison.baseline]:
            raise ValueError("the baseline is not the first method")
        places = {(one.method, one.task) for one in comparison.results}
        if any((method.method, task.name) not in places for method in comparison.methods for task in comparison.tasks):
            raise ValueError("a method has no result on a task")
        return comparison

    def verdict(self, effect: Effect, higher_is_better: bool = True) -> Literal["better", "worse", ""]:
        """Return whether an effect is a clear improvement, or clearly the opposite; "" if it is neither."""
        if effect.p_corrected <= 1 - self.confidence:
            return "better"
        low, high = effect.interval
        return "worse" if (high < 0 if higher_is_better else low > 0) else ""

    def result(self, method: str, task: str) -> TaskResult:
        """Return the result of a method on a task.

        Raises:
            InputError: the comparison has no such method or task.
        """
        found = {(one.method, one.task): one for one in self.results}
        if (method, task) not in found:
            methods, tasks = (", ".join(dict.fromkeys(names)) for names in zip(*found, strict=True))
            raise InputError(
                f"method = {shown(method)}, task = {shown(task)}: use one of {methods}, and one of {tasks}"
            )
        return found[method, task]


def _fields(found: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass in a JSON object."""
    return {field.name: found[field.name] for field in fields(kind)}


def _with_effects(found: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass in a JSON object; JSON objects among them become effects."""
    return {name: _effect(value) if isinstance(value, dict) else value for name, value in _fields(found, kind).items()}


def _effect(found: Mapping[str, Any]) -> Effect:
    return Effect(**_fields(found, Effect) | {"interval": _interval(found["interval"])})


def _task_result(found: Mapping[str, Any]) -> TaskResult:
    runs = tuple(RunValue(**_fields(each, RunValue)) for each in found["runs"])
    return TaskResult(**_with_effects(found, TaskResult) | {"runs": runs, "interval": _interval(found["interval"])})


def _interval(found: list[float]) -> Interval:
    low, high = found
    return low, high
