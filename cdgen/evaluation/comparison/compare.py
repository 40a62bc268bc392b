"""Compare methods with a baseline, from the results of evaluations."""

import math
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from cdgen.errors import InputError
from cdgen.evaluation.comparison import bootstrap
from cdgen.evaluation.comparison.bootstrap import Array
from cdgen.evaluation.comparison.data import Comparison, Effect, MethodSummary, RunValue, TaskResult, TaskSummary
from cdgen.evaluation.comparison.selection import CHECKPOINTS, Run, Selection, read_all, scores, select
from cdgen.evaluation.metrics import Metric, estimate, resampled
from cdgen.evaluation.results import Entry
from cdgen.values import FLOAT32_MAX, FLOAT32_MIN, INT64_MAX, integer, path, real
from cdgen.wording import counted

BASELINES = ("real", "model-real")  # labels that are the default baseline
_FEWEST_RESAMPLES, _MOST_RESAMPLES = 100, 100_000
_ROUNDING = 1e-12  # relative error up to which values are equal
_Effects: TypeAlias = list[Effect | None]  # one per method; None for the baseline


class _Methods(NamedTuple):
    """The methods that are compared. M: methods, R: runs."""

    labels: list[str]  # [M], the baseline first
    of_runs: Array  # index of each run's method, [R]
    confidence: float


class _Draws(NamedTuple):
    """Estimates and resampled values of one task. M: methods, R: runs, B: resamples."""

    by_run: Array  # [R], estimates
    means: Array  # [M], estimates
    items: Array  # [M, B], estimates on resampled items
    noise: Array  # [M, B], deviations due to the variation between runs


def compare(
    results: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    baseline: str | None = None,
    checkpoint: str = "best",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare the methods in folders of results with a baseline, by the first metric of each task.

    A method is all models of one label; those of different training seeds are its training runs. The mean relative
    change covers the metrics for which higher is better, so not perplexities (Ulm et al. 2025, arXiv 2510.08245).
    See :mod:`~cdgen.evaluation.comparison.bootstrap` and :mod:`~cdgen.evaluation.comparison.selection`.

    Args:
        results: one or several folders that :func:`cdgen.evaluation.evaluate.evaluate` has written.
        baseline: label of the baseline; default: "real" or "model-real", or the only label.
        checkpoint: "best" or "latest" of each training run.
        resamples: number of bootstrap resamples, 100 to 100,000.
        confidence: confidence level of the intervals, 0.5 to 0.999.
        seed: random seed of the resamples.
    Returns:
        The values, differences and relative changes of all methods, the baseline first.
    Raises:
        InputError: an argument is out of range, there is no such baseline, or the results cannot be compared.
        CorpusError: a file of the results is damaged.
    """
    check_arguments(checkpoint, resamples, confidence, seed)
    folders = [results] if isinstance(results, str | os.PathLike) or not isinstance(results, Iterable) else results
    selection = select(read_all([path("results", folder, "folder") for folder in folders]), checkpoint)
    methods = _methods(selection, baseline, confidence)
    check_resolution(len(methods.labels) - 1, resamples, confidence)
    metrics = [entries[0].metrics[0] for entries in selection.entries.values()]
    draws = _draw(selection, metrics, methods, resamples, seed)
    warnings = [*selection.warnings, *_run_warnings(methods)]
    tasks, found, changes = [], [], []
    for (name, entries), metric, one in zip(selection.entries.items(), metrics, draws, strict=True):
        change = _relative(one) if _is_positive(one, confidence) else None
        if change is None:
            warnings.append(
                f"{name} has no relative changes, because the baseline's {metric.name} of {one.means[0]:.3g} is not "
                "clearly above 0"
            )
        in_mean = change is not None and metric.higher_is_better
        changes += [change] if change and in_mean else []
        tasks.append(_task_summary(entries[0], metric, in_mean))
        found += _task_results(entries, methods, metric, one, change)
    summaries = _summaries(methods, metrics, draws, changes)
    return Comparison(
        baseline=methods.labels[0],
        checkpoint=checkpoint,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        methods=tuple(summaries),
        tasks=tuple(tasks),
        results=tuple(found),
        warnings=tuple(warnings),
    )


def check_arguments(checkpoint: str, resamples: int, confidence: float, seed: int) -> None:
    """Check the arguments of :func:`compare` that can be checked without results.

    Raises:
        InputError: one is out of range.
    """
    if checkpoint not in CHECKPOINTS:
        raise InputError(f"checkpoint = {checkpoint!r}: use {' or '.join(CHECKPOINTS)}")
    integer("resamples", resamples, _FEWEST_RESAMPLES, _MOST_RESAMPLES)
    real("confidence", confidence, 0.5, 0.999)
    integer("seed", seed, 0, INT64_MAX)


def check_resolution(compared: int, resamples: int, confidence: float) -> None:
    """Check that the smallest p-value that resamples can give is small enough for an improvement to be found.

    Args:
        compared: number of methods that are compared with the baseline.
        resamples, confidence: see :func:`compare`.
    Raises:
        InputError: it is too large; the message says how many resamples are needed.
    """
    level = 1 - confidence
    if bootstrap.smallest_p_value(resamples) * compared > level:
        raise InputError(
            f"resamples = {resamples}: with {counted(compared, 'method')} to compare, no p-value could be at most "
            f"{level:.3g} after Holm's correction; use at least {math.ceil(compared / level) - 1}"
        )


def _methods(selection: Selection, baseline: str | None, confidence: float) -> _Methods:
    """Return the methods with the baseline first."""
    labels = list(dict.fromkeys(label for label, _ in selection.runs))
    names = ", ".join(labels)
    if baseline is None:
        baseline = next((label for label in BASELINES if label in labels), labels[0] if len(labels) == 1 else None)
        if baseline is None:
            raise InputError(f"no label of the results is {' or '.join(BASELINES)}; choose baseline=LABEL from {names}")
    elif baseline not in labels:
        raise InputError(f"baseline = {baseline!r}: is not among the labels of the results: {names}")
    labels.sort(key=lambda label: label != baseline)  # keeps the order of the others
    return _Methods(labels, np.array([labels.index(label) for label, _ in selection.runs]), confidence)


def _run_warnings(methods: _Methods) -> list[str]:
    """Return a warning if there are too few runs."""
    sizes = np.bincount(methods.of_runs)
    if sizes.max() == 1:
        return [
            "there is one training run per method, so intervals and p-values cover the sampling of items only, not the "
            "variation between training runs; other seeds may give other results"
        ]
    single = [label for label, size in zip(methods.labels, sizes, strict=True) if size == 1]
    if single:
        return [f"{', '.join(single)}: has one training run, which is assumed to vary as much as those of the others"]
    return []


def _draw(
    selection: Selection, metrics: Sequence[Metric], methods: _Methods, resamples: int, seed: int
) -> list[_Draws]:
    """Return the estimates and resampled values of each task."""
    estimates, draws = [], []
    for metric, (task, entries) in zip(metrics, selection.entries.items(), strict=True):
        tables = [scores(entry) for entry in entries]
        estimates.append([estimate(metric, table) for table in tables])
        # The resamples of a task do not depend on the other tasks.
        rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
        draws.append(resampled(metric, tables, bootstrap.item_counts(entries[0].task["items"], resamples, rng)))
        for entry, largest in zip(entries, np.abs(draws[-1]).max(1), strict=True):
            if not largest <= FLOAT32_MAX:  # the squares of larger ones are not finite
                where = entry.folder / entry.name
                raise InputError(f"{where}: {metric.name} is {largest:.3g} in a resample, too large to be compared")
    by_run, by_run_draws = np.array(estimates), np.stack(draws)  # [T, R], [T, R, B]
    means = bootstrap.method_means(by_run[:, :, None], methods.of_runs)[:, :, 0]
    items = bootstrap.method_means(by_run_draws, methods.of_runs)
    blocks = _seed_numbers(selection.runs)
    noise = bootstrap.run_noise(by_run, by_run_draws, methods.of_runs, np.random.default_rng(seed), blocks)
    return [_Draws(*each) for each in zip(by_run, means, items, noise, strict=True)]


def _seed_numbers(runs: Sequence[Run]) -> Array | None:
    """Return the number of each run's seed, [R], if several methods have the same seeds; otherwise None."""
    seeds = list(dict.fromkeys(seed for _, seed in runs))
    labels = {label for label, _ in runs}
    if None in seeds or len(labels) < 2 or len(runs) < len(labels) * len(seeds):
        return None
    return np.array([seeds.index(seed) for _, seed in runs])


def _is_positive(draws: _Draws, confidence: float) -> bool:
    """Return whether the baseline's value and its interval are above 0, so that relative changes make sense."""
    return bool(draws.means[0] >= FLOAT32_MIN and bootstrap.interval(draws.items[0], confidence)[0] > 0)


def _relative(draws: _Draws) -> tuple[Array, Array]:
    """Return the relative changes of all methods, [M], and their resampled values, [M, B].

    The variation between runs is included to first order, because with few runs a drawn baseline may be near 0.
    """
    baseline = draws.means[0]
    change = draws.means / baseline - 1
    divisor = np.maximum(draws.items[0], 1e-3 * baseline)  # a few resamples may be 0 or below
    from_noise = (draws.noise - (1 + change)[:, None] * draws.noise[0]) / baseline
    return change, draws.items / divisor - 1 + from_noise


def _effects(methods: _Methods, values: Array, draws: Array, scale: float = 1, sign: int = 1) -> _Effects:
    """Return the effects of all methods.

    Args:
        methods: the methods.
        values: differences from the baseline, [M].
        draws: their resampled values, [M, B].
        scale: magnitude of the compared values; differences within its rounding error count as 0.
        sign: 1 if higher is better, -1 if lower is better.
    """
    draws = np.where(_differs(draws, scale), draws, 0)
    p_values = [bootstrap.p_value(sign * draws[at]) for at in range(1, len(values))]
    level = (1 - methods.confidence) / max(len(p_values), 1)
    found: _Effects = [None]
    for at, (p, corrected) in enumerate(zip(p_values, bootstrap.holm(p_values), strict=True), start=1):
        smallest = bootstrap.detectable(sign * draws[at], sign * values[at], level)
        limits = bootstrap.interval(draws[at], methods.confidence)
        found.append(Effect(float(values[at]), limits, p, corrected, smallest))
    return found


def _differs(differences: Array, scale: Any) -> Array:
    """Return whether differences exceed the rounding error of values of magnitude `scale`."""
    found: Array = np.abs(differences) > _ROUNDING * scale
    return found


def _task_summary(entry: Entry, metric: Metric, in_mean: bool) -> TaskSummary:
    return TaskSummary(
        name=entry.task["name"],
        form=entry.task["form"],
        convention=entry.task["convention"],
        items=entry.task["items"],
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        in_mean=in_mean,
    )


def _task_results(
    entries: Sequence[Entry],
    methods: _Methods,
    metric: Metric,
    draws: _Draws,
    change: tuple[Array, Array] | None,
) -> list[TaskResult]:
    """Return the results of all methods on one task."""
    both = draws.items + draws.noise
    sign = 1 if metric.higher_is_better else -1
    differences = _effects(methods, draws.means - draws.means[0], both - both[0], abs(draws.means[0]), sign)
    changes = _effects(methods, *change, sign=sign) if change else [None] * len(methods.labels)
    found = []
    for at, label in enumerate(methods.labels):
        runs = [
            RunValue(entry.model["name"], entry.seed, entry.step, float(value))
            for entry, value, method in zip(entries, draws.by_run, methods.of_runs, strict=True)
            if method == at
        ]
        limits = bootstrap.interval(both[at], methods.confidence)
        task = entries[0].task["name"]
        found.append(TaskResult(label, task, tuple(runs), float(draws.means[at]), limits, differences[at], changes[at]))
    return found


def _summaries(
    methods: _Methods, metrics: Sequence[Metric], draws: Sequence[_Draws], changes: Sequence[tuple[Array, Array]]
) -> list[MethodSummary]:
    """Return the summaries of all methods."""
    signs = np.array([1 if metric.higher_is_better else -1 for metric in metrics])[:, None]
    means = np.stack([one.means for one in draws])  # [T, M]
    differences = means - means[:, :1]
    better = ((signs * differences > 0) & _differs(differences, np.abs(means[:, :1]))).sum(0)
    sizes = np.bincount(methods.of_runs)
    effects: _Effects = [None] * len(sizes)
    if changes:
        effects = _effects(methods, *(np.mean(each, axis=0) for each in zip(*changes, strict=True)))
    return [
        MethodSummary(label, int(sizes[at]), int(better[at]), effects[at]) for at, label in enumerate(methods.labels)
    ]
