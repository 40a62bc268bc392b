"""The report of a finished experiment: each figure is that of the command that computed it."""

from dataclasses import replace
from pathlib import Path

import pytest

from cdgen.evaluation.comparison import folder
from cdgen.evaluation.comparison.compare import compare
from cdgen.report import find
from cdgen.report.content import Report
from cdgen.report.models import MOST_POINTS
from cdgen.storage import runs
from tests.helpers.small_runs import log_of


def test_the_comparison_is_the_one_that_was_written(report: Report, experiment: Path) -> None:
    assert report.outcome is not None and report.outcome.comparison is not None
    assert report.outcome.comparison == folder.read(experiment / "comparison")
    assert report.outcome.comparison == compare([experiment / "evaluation"], baseline="real"), "to the last bit"
    assert report.outcome.command == f"cdgen compare {experiment}/evaluation --baseline real"
    assert report.summary.startswith("2 methods were compared with real on 2 tasks; ")


def test_all_stages_are_finished(report: Report, experiment: Path) -> None:
    assert report.state is not None and report.state.sentence == "All 9 stages are finished."
    assert report.state.left == () and report.title == "Experiment recipe" and report.notes == ()
    assert [one.name for one in report.made.commands][:3] == ["corpus", "tokenizer", "good"]
    assert all(one.finished and one.seconds and one.line.startswith("cdgen ") for one in report.made.commands)


def test_models(report: Report, experiment: Path) -> None:
    assert report.models is not None and report.models.others == ()
    good, *others = report.models.runs
    assert [run.name for run in others] == ["model-ancestral", "model-contrastive"]
    assert [(role.text, role.step) for role in good.roles] == [
        ("GOOD of corpus-ancestral and corpus-contrastive at step 6", 6),
        ("BAD of corpus-contrastive at step 3", 3),
        ("evaluated at step 6 as real, seed 42", 6),
    ]
    run, log = runs.read(experiment / "good"), log_of(experiment / "good")
    assert run is not None
    best = runs.best(run["checkpoints"])
    assert (good.best_step, good.perplexity) == (best["step"], best["perplexity"])
    assert [(one.step, one.loss) for one in good.train] == [(r["step"], r["loss"]) for r in log if "loss" in r]
    assert [(one.step, one.loss) for one in good.test] == [(r["step"], r["test_loss"]) for r in log if "test_loss" in r]
    assert (good.finished, good.step, good.steps, good.tokens) == (True, 6, 6, 6 * 8 * 32)
    assert good.seconds == pytest.approx(sum(r.get("seconds", 0) for r in log))
    assert good.parameters is not None and good.parameters > 2 * 300 * 32, "at least the embeddings and the LM head"
    assert good.device == "cpu" and ("corpus", "corpus") in good.config
    assert {("synthetic", "corpus-ancestral"), ("ratio", "0.3")} <= {*others[0].config}


def test_corpora(report: Report, experiment: Path) -> None:
    assert report.corpora is not None and report.corpora.table is not None
    real, ancestral, contrastive = report.corpora.corpora
    assert (real.kind, real.method, real.seeds) == ("real", "", "")
    assert (ancestral.method, ancestral.good, ancestral.bad) == ("ancestral", "good@6", "")
    assert (contrastive.method, contrastive.good, contrastive.bad) == ("contrastive", "good@6", "good@3")
    assert dict(contrastive.parameters) == {"max_tokens": "8", "ignore_eos": "yes"}
    assert contrastive.seeds.endswith(" seeds, the first 5 tokens of each, 2 continuations")
    assert all(one.stats is not None and one.stats.contrast is not None for one in report.corpora.corpora)
    names = [str(experiment / name) for name in ("corpus", "corpus-ancestral", "corpus-contrastive")]
    models = f"--good {experiment}/good@6 --bad {experiment}/good@3 --device cpu"
    assert report.corpora.command == f"cdgen corpus-stats {' '.join(names)} --against {names[0]} {models}"


def test_how_it_was_made(report: Report) -> None:
    seeds, fingerprints = dict(report.made.seeds), dict(report.made.fingerprints)
    assert seeds["weights and data of good"] == "42" and seeds["draws of corpus-ancestral"] == "0"
    assert {"corpus", "tokenizer", "good@6", "good@3", "seeds of corpus-ancestral"} <= {*fingerprints}
    assert all(value.startswith("sha256:") for value in fingerprints.values())
    users = [name for environment in report.made.environments for name in environment.names]
    assert {"good", "corpus-ancestral", "evaluation", "tokenizer", "this report"} <= {*users}
    assert len({environment.values for environment in report.made.environments}) == len(report.made.environments)


def test_documents(report: Report) -> None:
    assert report.documents is not None and report.documents.notes == ()
    assert {column.name for column in report.documents.columns} >= {"corpus-ancestral", "corpus-contrastive"}


def test_a_long_loss_curve_is_thinned(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes((experiment / "good" / "run.json").read_bytes())
    lines = [f'{{"step": {step}, "loss": {step / 7}, "seconds": 0.5}}\n' for step in range(1, 2001)]
    (tmp_path / "run" / "log.jsonl").write_text("".join([*lines, "null\n", '{"step": "x", "loss": 1}\n', '{"loss']))
    [run] = find.read([tmp_path / "run"]).models.runs  # type: ignore[union-attr]
    steps = [point.step for point in run.train]
    assert len(steps) == MOST_POINTS and steps[0] == 1 and steps[-1] == 2000 and steps == sorted({*steps})
    assert run.seconds == 1000 and run.parameters is None, "its checkpoints are gone"


def test_a_report_does_not_change_its_folder(experiment: Path, report: Report) -> None:
    before = {path: path.stat().st_mtime_ns for path in experiment.rglob("*")}
    again = find.read([experiment / "good", experiment / "corpus"])
    assert {path: path.stat().st_mtime_ns for path in experiment.rglob("*")} == before
    assert report.models is not None and again.models is not None
    good = replace(report.models.runs[0], roles=(), config=())
    assert replace(again.models.runs[0], roles=(), config=()) == good
