"""Metrics: statistics of a task's score table, computed from one weight per item.

A weight says how often an item counts. With all weights 1 a metric is an estimate; with the counts of a bootstrap
resample it is a resampled value. Many resamples are computed at once, as matrix products where possible.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cdgen.errors import InputError

Array: TypeAlias = npt.NDArray[Any]
Table: TypeAlias = Mapping[str, Array]
_Statistic: TypeAlias = Callable[[Array], Array]  # weights [B, n] -> values [models, B]

ROLES = {  # the roles of columns by kind of metric
    "mean": ("value",),
    "macro_mean": ("value",),
    "perplexity": ("nll", "count"),
    "spearman": ("x", "y"),
    "r2_gain": ("response", "baseline", "added"),
    "partial_r2": ("response", "baseline", "added"),
}
GROUP = "group"  # the column by which macro_mean groups
_LARGEST_NLL = 700.0  # its exponential is finite


@dataclass(frozen=True)
class Metric:
    """A statistic of a score table.

    Attributes:
        name: the metric's name in results and tables, such as "accuracy".
        kind: "mean"; "macro_mean", the mean over groups of the groups' means; "perplexity",
            exp(sum of `nll` / sum of `count`); "spearman", the rank correlation of `x` and `y`; "r2_gain", the
            R² of the linear regression of `response` on `baseline` and `added`, minus the R² without `added`;
            "partial_r2", this gain divided by 1 minus the R² without `added`.
        columns: columns of the score table by role, see :data:`ROLES`. `baseline`, `added` and `response` may be
            several columns; with several responses, each is regressed, and the value is their mean.
        higher_is_better: whether a better model has a higher value.
    """

    name: str
    kind: str
    columns: Mapping[str, str | tuple[str, ...]]
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ROLES:
            raise InputError(f"metric {self.name!r}: kind = {self.kind!r}: must be one of {', '.join(ROLES)}")
        if set(self.columns) != set(ROLES[self.kind]):
            raise InputError(f"metric {self.name!r}: columns must name {', '.join(ROLES[self.kind])}")

    def of(self, role: str) -> tuple[str, ...]:
        """Return the columns of a role."""
        columns = self.columns[role]
        return (columns,) if isinstance(columns, str) else tuple(columns)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of all numeric columns that the metric reads, without duplicates."""
        return tuple(dict.fromkeys(name for role in ROLES[self.kind] for name in self.of(role)))

    def as_json(self) -> dict[str, Any]:
        """Return the metric as a JSON object."""
        columns = {role: one if isinstance(one, str) else list(one) for role, one in self.columns.items()}
        return {"name": self.name, "kind": self.kind, "columns": columns, "higher_is_better": self.higher_is_better}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Metric":
        """Return the metric that :meth:`as_json` described.

        Raises:
            InputError: the kind or the roles of the columns are unknown.
        """
        columns = {role: one if isinstance(one, str) else tuple(one) for role, one in dict(value["columns"]).items()}
        return cls(value["name"], value["kind"], columns, value["higher_is_better"])


def estimate(metric: Metric, table: Table) -> float:
    """Return the value of a metric.

    Args:
        metric: the metric.
        table: columns of the score table by name, each [n] with n > 0: finite numbers, and the text column "group".
    Returns:
        The value. The correlation of a constant column is 0, and so is its gain in R².
    """
    items = len(table[metric.numbers[0]])
    return float(resampled(metric, [table], [np.ones((1, items))])[0, 0])


def resampled(metric: Metric, tables: Sequence[Table], weights: Iterable[Array]) -> Array:
    """Return the values of a metric in resamples of the items that all models share.

    Args:
        metric: the metric.
        tables: the score table of each model; the same items in the same order.
        weights: chunks [b, n] of the resamples: how often each item counts. One chunk at a time is in memory.
    Returns:
        Values float64 [models, B], where B is the number of resamples in all chunks. In each resample, `macro_mean`
        leaves out groups without items.
    """
    statistic = _STATISTICS[metric.kind](metric, tables)
    return np.concatenate([statistic(np.asarray(chunk, dtype=np.float64)) for chunk in weights], axis=1)


def _stacked(tables: Sequence[Table], column: str) -> Array:  # [n, models]
    return np.stack([np.asarray(table[column], dtype=np.float64) for table in tables], axis=1)


def _ratio(above: Array, below: Array) -> Array:
    """Return above / below, and 0 where the denominator is 0."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below != 0)


def _mean(metric: Metric, tables: Sequence[Table]) -> _Statistic:
    values = _stacked(tables, *metric.of("value"))
    return lambda weights: (weights @ values / weights.sum(1, keepdims=True)).T


def _macro_mean(metric: Metric, tables: Sequence[Table]) -> _Statistic:
    _, groups = np.unique(np.asarray(tables[0][GROUP]).astype(str), return_inverse=True)
    order = np.argsort(groups, kind="stable")
    is_sorted = bool((order[1:] > order[:-1]).all())
    values = _stacked(tables, *metric.of("value"))[order]
    ends = np.cumsum(np.bincount(groups))
    slices = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def statistic(weights: Array) -> Array:
        if not is_sorted:
            weights = weights[:, order]
        total = np.zeros((len(weights), len(tables)))
        present = np.zeros((len(weights), 1))
        for one in slices:
            count = weights[:, one].sum(1, keepdims=True)  # [b, 1]
            total += _ratio(weights[:, one] @ values[one], count)
            present += count > 0
        return (total / present).T

    return statistic


def _perplexity(metric: Metric, tables: Sequence[Table]) -> _Statistic:
    nll, count = (_stacked(tables, *metric.of(role)) for role in ("nll", "count"))
    return lambda weights: np.exp(np.minimum(_ratio(weights @ nll, weights @ count), _LARGEST_NLL)).T


def _spearman(metric: Metric, tables: Sequence[Table]) -> _Statistic:
    columns = [[np.asarray(table[name]) for name in metric.numbers] for table in tables]
    rankings = [[_ranking(column) for column in pair] for pair in columns]

    def statistic(weights: Array) -> Array:
        return np.stack([_correlation(weights, *(rank(weights) for rank in pair)) for pair in rankings])

    return statistic


def _ranking(column: Array) -> Callable[[Array], Array]:
    """Return the function from weights [b, n] to the ranks [b, n] of the items in each resample; ties share a rank."""
    distinct, inverse = np.unique(column, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(distinct)))

    def ranks(weights: Array) -> Array:
        counts = np.add.reduceat(weights[:, order], starts, axis=1)  # [b, distinct]
        average = np.cumsum(counts, axis=1) - counts / 2
        return np.take(average, inverse, axis=1)

    return ranks


def _correlation(weights: Array, x: Array, y: Array) -> Array:
    """Return Pearson's correlation of x and y [b, n] with weights [b, n]; 0 if one of them is constant."""
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    products = [np.einsum("bn,bn,bn->b", weights, *pair) for pair in ((x, y), (x, x), (y, y))]
    return _ratio(products[0], np.sqrt(products[1] * products[2]))


def _r2_gain(metric: Metric, tables: Sequence[Table]) -> _Statistic:
    few = len(metric.of("baseline"))
    more = few + len(metric.of("added"))
    products = [[_products(metric, table, response) for response in metric.of("response")] for table in tables]

    def gain(weights: Array, one: Array) -> Array:
        sums = weights @ one
        before, after = _r2(sums, few), _r2(sums, more)
        return _ratio(after - before, 1 - before) if metric.kind == "partial_r2" else after - before

    def statistic(weights: Array) -> Array:
        return np.stack([np.mean([gain(weights, one) for one in each], axis=0) for each in products])

    return statistic


def _products(metric: Metric, table: Table, response: str) -> Array:
    """Return for each item the products of all pairs of (1, standardised columns, response), [n, d * d]."""
    names = (*metric.of("baseline"), *metric.of("added"), response)
    columns = np.stack([np.asarray(table[name], dtype=np.float64) for name in names], axis=1)
    columns = columns - columns.mean(0)  # the regression does not change, and its normal equations are well scaled
    columns = _ratio(columns, columns.std(0))
    columns = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    return np.einsum("ni,nj->nij", columns, columns).reshape(len(columns), -1)


def _r2(sums: Array, predictors: int) -> Array:
    """Return R² of the regression on the first predictors, from weighted sums of products [b, d * d]."""
    size = round(sums.shape[1] ** 0.5)
    sums = sums.reshape(-1, size, size)
    centred = sums - sums[:, :, :1] * sums[:, :1, :] / sums[:, :1, :1]
    x, xy = centred[:, 1 : 1 + predictors, 1 : 1 + predictors], centred[:, 1 : 1 + predictors, -1]
    explained = np.einsum("bi,bij,bj->b", xy, np.linalg.pinv(x, rcond=1e-10, hermitian=True), xy)
    return _ratio(explained, centred[:, -1, -1])


_STATISTICS: dict[str, Callable[[Metric, Sequence[Table]], _Statistic]] = {
    "mean": _mean,
    "macro_mean": _macro_mean,
    "perplexity": _perplexity,
    "spearman": _spearman,
    "r2_gain": _r2_gain,
    "partial_r2": _r2_gain,
}
