"""Metrics equal what numpy and scipy compute from the resampled items themselves."""

import json

import numpy as np
import pytest
from scipy import stats

from cdgen.errors import InputError
from cdgen.evaluation.metrics import Array, Metric, Table, estimate, resampled

METRICS = {
    "mean": Metric("accuracy", "mean", {"value": "correct"}),
    "macro_mean": Metric("accuracy", "macro_mean", {"value": "correct"}),
    "perplexity": Metric("perplexity", "perplexity", {"nll": "nll", "count": "tokens"}, higher_is_better=False),
    "spearman": Metric("correlation", "spearman", {"x": "model", "y": "human"}),
    "r2_gain": Metric("gain", "r2_gain", {"response": "time", "baseline": ("length", "human"), "added": ("model",)}),
}
KINDS = pytest.mark.parametrize("kind", METRICS)
ITEMS, MODELS, RESAMPLES = 47, 3, 20


@pytest.fixture
def tables() -> list[Table]:
    rng = np.random.default_rng(1)
    # Groups in no order, one of a single item. Ratios of a few values, so that ranks are tied.
    common = {
        "group": np.array([f"group {number % 7}" for number in rng.permutation(ITEMS - 1)] + ["alone"], dtype=object),
        "human": rng.integers(0, 9, ITEMS),
        "length": rng.integers(1, 12, ITEMS) + 1e6,  # far from 0
        "time": rng.normal(size=ITEMS),
        "tokens": rng.integers(1, 40, ITEMS),
    }
    return [
        common
        | {
            "correct": rng.integers(0, 2, ITEMS),
            "nll": rng.exponential(50, ITEMS),
            "model": rng.integers(0, 20, ITEMS),
        }
        for _ in range(MODELS)
    ]


def direct(metric: Metric, table: Table) -> float:
    """Compute a metric in the plainest way."""
    if metric.kind == "mean":
        return float(np.mean(table["correct"]))
    if metric.kind == "macro_mean":
        groups = sorted(set(table["group"]))
        return float(np.mean([np.mean(table["correct"][table["group"] == group]) for group in groups]))
    if metric.kind == "perplexity":
        return float(np.exp(table["nll"].sum() / table["tokens"].sum()))
    if metric.kind == "spearman":
        return float(stats.spearmanr(table["model"], table["human"]).statistic)
    return r2(table, "length", "human", "model") - r2(table, "length", "human")


def r2(table: Table, *names: str) -> float:
    x = np.stack([np.ones(len(table["time"])), *((table[name] - table[name].mean()) for name in names)], axis=1)
    residuals = table["time"] - x @ np.linalg.lstsq(x, table["time"], rcond=None)[0]
    return float(1 - residuals.var() / table["time"].var())


def resamples() -> tuple[Array, Array]:
    """Return indices of items and how often each item occurs, both [RESAMPLES, ITEMS]."""
    indices = np.random.default_rng(2).integers(0, ITEMS, (RESAMPLES, ITEMS))
    return indices, np.stack([np.bincount(one, minlength=ITEMS) for one in indices])


@KINDS
def test_estimates_and_resampled_values_equal_those_of_the_items_themselves(kind: str, tables: list[Table]) -> None:
    metric = METRICS[kind]
    indices, counts = resamples()
    found = resampled(metric, tables, [counts[:7], counts[7:]])
    expected = [
        [direct(metric, {name: column[one] for name, column in table.items()}) for one in indices] for table in tables
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert estimate(metric, tables[1]) == pytest.approx(direct(metric, tables[1]), rel=1e-9)


@KINDS
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("items", [1, 5])
def test_equal_items_give_a_number_without_warnings(kind: str, items: int) -> None:
    names = ("correct", "nll", "tokens", "model", "human", "time", "length")
    table = {"group": np.full(items, ""), **{name: np.full(items, 1.0) for name in names}}
    expected = {"mean": 1, "macro_mean": 1, "perplexity": np.e, "spearman": 0, "r2_gain": 0}[kind]
    assert estimate(METRICS[kind], table) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_perplexity_stays_finite() -> None:
    table = {"nll": np.array([1e9, 0.0]), "tokens": np.array([1, 0])}
    assert np.isfinite(resampled(METRICS["perplexity"], [table], [np.array([[2, 0], [0, 2]])])).all()


@KINDS
def test_json_and_back(kind: str) -> None:
    metric = METRICS[kind]
    assert Metric.from_json(json.loads(json.dumps(metric.as_json()))) == metric


def test_columns_of_a_metric_are_listed_once() -> None:
    metric = Metric("gain", "r2_gain", {"response": "t", "baseline": ("a", "b"), "added": "a"})
    assert metric.numbers == ("t", "a", "b")


def test_unknown_kinds_and_roles_are_errors() -> None:
    with pytest.raises(InputError, match="kind = 'median': must be one of mean, macro_mean"):
        Metric("accuracy", "median", {"value": "correct"})
    with pytest.raises(InputError, match="metric 'accuracy': columns must name value"):
        Metric("accuracy", "mean", {"x": "correct"})
