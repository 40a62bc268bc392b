"""Comparison of results, from folders to figures."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cdgen.errors import CorpusError, InputError
from cdgen.evaluation.comparison.compare import compare
from cdgen.evaluation.comparison.data import Comparison, Effect
from cdgen.evaluation.metrics import Metric
from tests.helpers.results import ACCURACY, PERPLEXITY, Scored, correct, write_results


def effect(comparison: Comparison, method: str) -> Effect:
    """Return a method's mean relative change."""
    found = next(one for one in comparison.methods if one.method == method).mean_relative_change
    assert found is not None
    return found


def test_a_paired_comparison_equals_the_formulas_of_a_normal_distribution(tmp_path: Path) -> None:
    real, mixed = correct(0.6, 2000), correct(0.63, 2000)
    folder = write_results(tmp_path / "results", [Scored("mixed", "blimp", mixed), Scored("real", "blimp", real)])
    comparison = compare([folder], resamples=4000)
    assert [one.method for one in comparison.methods] == ["real", "mixed"]  # the baseline is first
    shown = f"mean_relative_change={{'mixed': {effect(comparison, 'mixed').value}}}"
    assert repr(comparison) == f"Comparison(baseline='real', tasks=['blimp'], {shown})"
    difference = mixed["correct"].astype(float) - real["correct"]
    error = difference.std() / np.sqrt(2000)
    result = comparison.result("mixed", "blimp")
    assert result.estimate == pytest.approx(mixed["correct"].mean())
    found = result.difference
    assert found is not None and found.value == pytest.approx(difference.mean())
    low, high = found.value + 1.96 * error * np.array([-1, 1])
    assert found.interval == pytest.approx((low, high), abs=0.2 * error)
    assert found.detectable == pytest.approx((1.645 + 0.842) * error, rel=0.07)
    change = effect(comparison, "mixed")
    assert change.value == pytest.approx(mixed["correct"].mean() / real["correct"].mean() - 1)
    assert change.p == change.p_corrected < 0.001
    # Unpaired, the interval would be four times as wide.
    unpaired = np.sqrt(sum(one["correct"].var() for one in (real, mixed)) / 2000)
    assert high - low < 0.3 * 2 * 1.96 * unpaired


def test_names_and_folders_that_are_wrong(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", [Scored("real", "blimp", correct(0.6, 20))])
    with pytest.raises(InputError, match=r"^method = 'mixed', task = 'blimp': use one of real, and one of blimp$"):
        compare(folder).result("mixed", "blimp")
    for wrong, message in ((None, "results = None: must be"), (5, "results = 5: must be"), ([None], "results = None")):
        with pytest.raises(InputError, match=f"^{message}"):
            compare(wrong)  # type: ignore[arg-type]


def test_p_values_are_corrected_over_methods(tmp_path: Path) -> None:
    scores = [Scored(label, "blimp", correct(share)) for label, share in (("real", 0.5), ("a", 0.53), ("b", 0.54))]
    comparison = compare([write_results(tmp_path, scores)])
    one, other = (effect(comparison, label) for label in "ab")
    assert 0 < other.p < one.p
    assert other.p_corrected == pytest.approx(2 * other.p) and one.p_corrected >= one.p


def test_the_mean_relative_change_leaves_out_perplexities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nll = rng.exponential(50, 200)
    worse = [
        Scored("real", "text", {"nll": nll, "tokens": np.full(200, 10)}, PERPLEXITY),
        Scored("mixed", "text", {"nll": nll * 1.1, "tokens": np.full(200, 10)}, PERPLEXITY),
    ]
    better = [Scored("real", "blimp", correct(0.5)), Scored("mixed", "blimp", correct(0.6))]
    comparison = compare([write_results(tmp_path / "both", worse + better)])
    text = comparison.result("mixed", "text")
    assert text.relative_change is not None and text.relative_change.value > 0.3
    assert text.difference is not None and text.difference.p > 0.99 and text.difference.detectable > 0
    assert [task.in_mean for task in comparison.tasks] == [False, True]
    only = compare([write_results(tmp_path / "one", better)])
    assert effect(comparison, "mixed") == effect(only, "mixed")  # a task's resamples do not depend on the other tasks
    assert comparison.methods[1].better == 1
    alone = compare([write_results(tmp_path / "perplexity", worse)])
    assert alone.methods[1].mean_relative_change is None


def test_the_variation_between_runs_widens_intervals(tmp_path: Path) -> None:
    shares = {"real": (0.5, 0.52, 0.48), "mixed": (0.56, 0.6, 0.58)}
    scores = [
        Scored(label, "blimp", correct(share, 5_000, seed=seed), seed=seed)
        for label, of_label in shares.items()
        for seed, share in enumerate(of_label)
    ]
    several = compare([write_results(tmp_path / "several", scores)])
    result = several.result("mixed", "blimp")
    assert [(run.seed, round(run.value, 1)) for run in result.runs] == [(0, 0.6), (1, 0.6), (2, 0.6)]
    assert result.estimate == pytest.approx(np.mean([run.value for run in result.runs]))
    # Both methods have the same seeds, so this is a paired t-test; the error of items is small.
    values = np.array([[run.value for run in several.result(label, "blimp").runs] for label in shares])
    expected = stats.t.ppf(0.975, 2) * (values[1] - values[0]).std(ddof=1) / np.sqrt(3)
    assert result.difference is not None
    low, high = result.difference.interval
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert several.warnings == ()

    one = compare([write_results(tmp_path / "one", [scores[0], scores[3]])])
    assert "intervals and p-values cover the sampling of items only" in one.warnings[0]
    mixed = compare([write_results(tmp_path / "mixed", scores[:4])])
    assert "mixed: has one training run, which is assumed to vary as much as those of the others" in mixed.warnings[0]


def test_the_best_or_the_last_checkpoint_of_each_run_and_task(tmp_path: Path) -> None:
    shares = {10: 0.5, 20: 0.7, 30: 0.6}
    texts = {10: 0.9, 20: 1.1, 30: 0.8}
    scores = [Scored("real", "blimp", correct(share), step=step) for step, share in shares.items()]
    scores += [
        Scored("real", "text", {"nll": np.full(50, nll), "tokens": np.ones(50)}, PERPLEXITY, step=step)
        for step, nll in texts.items()
    ]
    folder = write_results(
        tmp_path, [*scores, Scored("other", "blimp", correct(0.6)), scores[-1]._replace(label="other", step=None)]
    )
    best, last = compare([folder]), compare([folder], checkpoint="latest")
    chosen = [[one.result("real", task).runs[0].step for task in ("blimp", "text")] for one in (best, last)]
    assert chosen == [[20, 30], [30, 30]]
    assert "the best of 3 checkpoints of real is compared with the best of 1 of other" in best.warnings[0]
    assert not any("checkpoints" in warning for warning in last.warnings)


def test_a_task_that_was_evaluated_for_some_checkpoints_only(tmp_path: Path) -> None:
    """An interrupted evaluation must not pass for one whose last checkpoint is an earlier one."""
    scores = [Scored("real", task, correct(0.5), step=step) for task in ("a", "b") for step in (10, 20, 30)]
    folder = write_results(tmp_path, scores[:-1])
    for checkpoint in ("best", "latest"):
        warnings = compare([folder], checkpoint=checkpoint).warnings
        assert "b was evaluated for 2 of 3 checkpoints of real, not for step 30; rerun cdgen evaluate" in warnings
    assert not any("checkpoints" in one for one in compare([write_results(tmp_path / "whole", scores)]).warnings)


def test_two_training_runs_that_look_like_one(tmp_path: Path) -> None:
    scores = [Scored("real", "a", correct(0.5), seed=1, step=step) for step in (10, 20)]
    path = write_results(tmp_path, scores) / "results.json"
    path.write_text(path.read_text().replace("models/real", "x@10", 1).replace("models/real", "y@20"))
    assert any(
        "real (seed 1) come from x and y, which are taken for one" in one for one in compare([tmp_path]).warnings
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", [ACCURACY, PERPLEXITY], ids=lambda metric: metric.name)
def test_equal_scores_show_no_difference(tmp_path: Path, metric: Metric) -> None:
    rng = np.random.default_rng(0)
    table = {"correct": rng.random(100) < 0.5, "nll": rng.exponential(50, 100), "tokens": rng.integers(1, 9, 100)}
    labels = ["real", *"abcdefgh"]  # with so many columns, matrix products round equal ones differently
    comparison = compare([write_results(tmp_path, [Scored(label, "task", table, metric) for label in labels])])
    for method in comparison.methods[1:]:
        found = comparison.result(method.method, "task").difference
        assert found is not None
        assert (found.value, found.interval, found.detectable) == (0, (0, 0), 0)
        assert found.p == pytest.approx(0.5, abs=0.001)
        assert method.better == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_constant_scores_give_numbers_or_a_warning(tmp_path: Path, share: float) -> None:
    scores = [Scored("real", "blimp", correct(share)), Scored("b", "blimp", correct(0.5))]
    comparison = compare([write_results(tmp_path, scores)])
    if share:
        assert effect(comparison, "b").value == pytest.approx(correct(0.5)["correct"].mean() - 1)
    else:
        assert comparison.result("b", "blimp").relative_change is None
        assert (
            "blimp has no relative changes, because the baseline's accuracy of 0 is not clearly"
            in comparison.warnings[1]
        )
    json.dumps(comparison.as_json(), allow_nan=False)


def test_one_method_has_intervals_only(tmp_path: Path) -> None:
    comparison = compare([write_results(tmp_path, [Scored("smollm2", "xcopa", correct(0.6))])])
    assert comparison.baseline == "smollm2"
    result = comparison.result("smollm2", "xcopa")
    assert result.difference is None and result.interval[0] < result.estimate < result.interval[1]


def test_tasks_that_not_all_runs_have_are_left_out(tmp_path: Path) -> None:
    scores = [Scored(label, "blimp", correct(0.5)) for label in ("real", "mixed")]
    more = [
        Scored("real", "ewok", correct(0.5)),
        *(Scored(label, "tiny", correct(1, 1)) for label in ("real", "mixed")),
    ]
    comparison = compare([write_results(tmp_path / "a", scores + more)])
    assert [task.name for task in comparison.tasks] == ["blimp"]
    assert comparison.warnings[:2] == (
        "ewok is left out, because it was not evaluated for mixed",
        "tiny is left out, because it has a single item, which says nothing about others",
    )
    few = [Scored(label, "blimp", correct(0.5, 19)) for label in ("real", "mixed")]
    assert "blimp has only 19 items" in compare([write_results(tmp_path / "b", few)]).warnings[0]
    with pytest.raises(InputError, match=r"no task can be compared: ewok is left out, .* for mixed"):
        compare([write_results(tmp_path / "c", [more[0], *few[1:]])])


def test_resamples_are_reproducible_and_folders_are_read_once(tmp_path: Path) -> None:
    scores = [Scored("real", "blimp", correct(0.5)), Scored("b", "blimp", correct(0.55))]
    one, other = write_results(tmp_path / "a", scores[:1]), write_results(tmp_path / "b", scores[1:])
    first = compare([one, other])
    assert compare([other, one, str(other)]) == first
    assert compare(other) == compare([other])
    assert compare([one, other], seed=1).results != first.results


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"baseline": "gold"}, "baseline = 'gold': is not among the labels of the results: a, b"),
    ({}, "no label of the results is real or model-real; choose baseline=LABEL from a, b"),
    ({"baseline": "a", "resamples": 0}, "resamples = 0: must be 100 to 100000"),
    ({"baseline": "a", "confidence": 2}, "confidence = 2: must be 0.5 to 0.999"),
    ({"baseline": "a", "checkpoint": "first"}, "checkpoint = 'first': use best or latest"),
    ({"baseline": "a", "seed": -1}, "seed = -1: must be 0 to"),
]


@pytest.mark.parametrize(("options", "message"), ARGUMENTS)
def test_arguments_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = write_results(tmp_path, [Scored(label, "blimp", correct(0.5)) for label in "ab"])
    with pytest.raises(InputError, match=message):
        compare([folder], **options)


def test_results_that_cannot_be_compared(tmp_path: Path) -> None:
    real = write_results(tmp_path / "real", [Scored("real", "blimp", correct(0.5), seed=42, step=5)])
    with pytest.raises(InputError, match=r"both hold the task blimp for real \(seed 42\), step 5; .* LABEL=MODEL"):
        compare([real, write_results(tmp_path / "twice", [Scored("real", "blimp", correct(0.5), seed=42, step=5)])])
    fewer = write_results(tmp_path / "fewer", [Scored("b", "blimp", correct(0.5, 100))])
    with pytest.raises(InputError, match=r"real \(real \(seed 42\)\) and .*fewer \(b\): .* \(200 and 100 of them\)"):
        compare([real, fewer])
    babylm = write_results(tmp_path / "babylm", [Scored("b", "blimp", correct(0.5), convention="babylm")])
    with pytest.raises(InputError, match=r"task blimp in different conventions \(lm-eval and babylm\); evaluate both"):
        compare([real, babylm])
    with pytest.raises(InputError, match="holds no results"):
        compare([tmp_path])
    with pytest.raises(InputError, match="no results to compare"):
        compare([])


def test_damaged_scores(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "nan", [Scored("real", "blimp", {"correct": np.array([1, 0, np.nan, 1])})])
    with pytest.raises(InputError, match=r"blimp.parquet: column 'correct' of the item item 2 is nan; evaluate"):
        compare([folder])
    other = write_results(tmp_path / "missing", [Scored("real", "blimp", correct(0.5))])
    path = other / "results.json"
    path.write_text(path.read_text().replace('"value": "correct"', '"value": "right"'))
    with pytest.raises(InputError, match=r"blimp\.parquet: lacks the numeric column 'right' of accuracy; evaluate"):
        compare([other])
    path.write_text(path.read_text().replace('"right"', '"correct"').replace('"items": 200', '"items": 100'))
    with pytest.raises(CorpusError, match=r"blimp\.parquet: has 200 rows, but results\.json states 100 items; restore"):
        compare([other])
    path.write_text(path.read_text().replace('"accuracy": 0.', '"other": 0.'))
    with pytest.raises(
        CorpusError, match=r"results\.json: is damaged: a metric of scores/real/blimp\.parquet; restore"
    ):
        compare([other])
    path.write_text(path.read_text().replace('"other": 0.', '"accuracy": 0.'))
    (other / "scores/real/blimp.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match="truncated or altered"):
        compare([other])


@pytest.mark.filterwarnings("error")
def test_scores_too_large_to_be_compared(tmp_path: Path) -> None:
    huge = Scored("a", "blimp", {"correct": np.array([1e308] + [0.0] * 29)})
    folder = write_results(tmp_path / "huge", [Scored("real", "blimp", correct(0.5, 30)), huge])
    with pytest.raises(InputError, match=r"a/blimp.parquet: column 'correct' of the item item 0 is 1e\+308; evaluate"):
        compare([folder])
    tables = [{"nll": np.array([9.0] * 29 + [nll]), "tokens": np.ones(30)} for nll in (9.0, 3000.0)]
    scored = [Scored(label, "ppl", table, PERPLEXITY) for label, table in zip(("real", "a"), tables, strict=True)]
    with pytest.raises(InputError, match=r"a/ppl.parquet: perplexity is .*e\+\d+ in a resample, too large"):
        compare([write_results(tmp_path / "resampled", scored)])
    tiny = Scored("real", "blimp", {"correct": np.array([1e-300] * 30)})
    large = Scored("a", "blimp", {"correct": np.array([1e38] * 30)})
    comparison = compare([write_results(tmp_path / "tiny", [tiny, large])])
    assert comparison.result("a", "blimp").relative_change is None


def test_many_items_need_bounded_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import tracemalloc

    scores = [Scored(label, "blimp", correct(0.6, 70_000)) for label in ("real", "b")]
    folder = write_results(tmp_path, scores)
    with caplog.at_level(logging.WARNING):
        tracemalloc.start()
        compare([folder], resamples=300)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 250e6  # all counts of 300 resamples alone are 168 MB
    assert not caplog.records


def test_too_few_resamples_for_so_many_methods(tmp_path: Path) -> None:
    """With B resamples, the smallest p-value is 1 / (B + 1), and Holm's correction multiplies it."""
    scored = [Scored(label, "t", correct(0.9)) for label in ("a", "b", "c", "d", "e", "f")]
    folder = write_results(tmp_path, [Scored("real", "t", correct(0.1)), *scored])
    with pytest.raises(InputError, match=r"resamples = 118: with 6 methods .* at most 0\.05 .*; use at least 119"):
        compare(folder, resamples=118)
    found = compare(folder, resamples=119)
    assert [found.verdict(one.mean_relative_change) for one in found.methods[1:]] == ["better"] * 6
