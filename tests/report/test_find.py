"""Which paths a report takes, and what it does without: damaged, unfinished, moved and missing parts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cdgen.errors import CorpusError, InputError
from cdgen.report import find
from cdgen.report.content import Report
from cdgen.report.names import Names
from cdgen.storage import stages
from tests.helpers.prepared import fish, jsonl


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that returns a copy of some folders of the experiment, all of them by default."""

    def copy(*names: str) -> Path:
        folder = tmp_path / "moved"
        for name in names or [path.name for path in experiment.iterdir() if path.is_dir()]:
            shutil.copytree(experiment / name, folder / name)
        shutil.copy(experiment / stages.NAME, folder / stages.NAME)
        return folder

    return copy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long: models are taken to be missing."""

    def refuse(source: str) -> None:
        raise InputError(f"{source}: is not on this machine")

    monkeypatch.setattr("cdgen.report.loading.local_source", refuse)


def kinds(paths: list[Path]) -> list[tuple[str, str]]:
    return [(part.kind, part.name) for part in find.find(paths, lambda _: None).parts]


def test_each_kind_of_path(experiment: Path, tmp_path: Path) -> None:
    text = Path(jsonl(tmp_path / "text.jsonl", fish(3)))
    names = ("corpus", "corpus-contrastive", "good", "evaluation", "comparison")
    found = kinds([*(experiment / name for name in names), text])
    assert [kind for kind, _ in found] == ["prepared", "generated", "run", "results", "comparison", "text"]
    assert [name for _, name in found] == [*names, "text.jsonl"]
    whole = kinds([experiment])
    assert [name for _, name in whole[:4]] == ["corpus", "tokenizer", "good", "corpus-ancestral"], "order of the stages"
    assert kinds([experiment, experiment / "good", experiment / "corpus"]) == whole, "each part once"


def test_parts_of_one_name_are_told_apart(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(experiment / "corpus", tmp_path / "corpus")
    names = [name for _, name in kinds([experiment / "corpus", tmp_path / "corpus"])]
    assert names == ["corpus", str(tmp_path / "corpus")]
    monkeypatch.chdir(tmp_path)
    assert [name for _, name in kinds([experiment / "corpus", Path("corpus")])] == names


@pytest.mark.parametrize("name", ["", "absent", "file.bin", "empty", "run/tokenizer", "run/good/step_000003"])
def test_paths_of_no_kind(experiment: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file.bin").touch()
    (tmp_path / "empty").mkdir()
    path = experiment.parent / name if name.startswith("run") else tmp_path / (name or "empty")
    with pytest.raises(InputError, match=r"no such file or folder|is neither the folder of an experiment nor"):
        find.read([path])


def test_bad_requests(experiment: Path, copied: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="are two experiments; make a report of each"):
        find.read([experiment, copied("corpus")])
    with pytest.raises(InputError, match="dtype = 'int8'"):
        find.read([experiment / "corpus"], dtype="int8")
    with pytest.raises(InputError, match="device = 'tpu'"):
        find.read([experiment / "corpus"], device="tpu")


def test_a_damaged_manifest_is_an_error_if_it_was_named_and_else_a_note(
    copied: Callable[..., Path], quick: None
) -> None:
    folder = copied("corpus", "good")
    (folder / "good" / "run.json").write_text("{")
    with pytest.raises(CorpusError, match=r"good/run\.json: cannot be read"):
        find.read([folder / "good"])
    report = find.read([folder])
    assert report.models is None and report.corpora is not None
    assert any(note.startswith("good is left out: ") for note in report.notes)


def test_an_experiment_that_was_moved(report: Report, copied: Callable[..., Path], experiment: Path) -> None:
    """All names in its manifests are those of the old place, where other folders may be by now."""
    folder = copied()
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace(str(experiment), "/nowhere/run"))
    moved = find.read([folder], device="cpu")
    assert moved.models == report.models and moved.ablations == report.ablations and moved.state == report.state
    assert moved.corpora is not None and report.corpora is not None
    assert moved.corpora.table == report.corpora.table and moved.notes == report.notes


def test_a_copy_of_an_experiment_does_not_read_the_original(copied: Callable[..., Path], experiment: Path) -> None:
    folder = copied("corpus", "good")
    found = find.find([folder], lambda _: None)
    names = Names(found.parts, found.experiment)
    assert names.path(f"{experiment}/corpus/seeds.parquet") == folder / "corpus" / "seeds.parquet"
    assert names.short(str(experiment / "good")) == "good"
    assert names.path(str(experiment / "evaluation")) == experiment / "evaluation", "it was not copied"


def test_an_unfinished_experiment(copied: Callable[..., Path], quick: None) -> None:
    folder = copied("corpus", "tokenizer", "good", "corpus-ancestral")
    manifest = json.loads((folder / "corpus-ancestral" / "_manifest.json").read_text())
    manifest["complete"] = False
    (folder / "corpus-ancestral" / "_manifest.json").write_text(json.dumps(manifest))
    log = folder / "good" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True)[:5]) + '{"step": 5, "lo')
    run = json.loads((folder / "good" / "run.json").read_text())
    run["checkpoints"].pop()
    (folder / "good" / "run.json").write_text(json.dumps(run))
    report = find.read([folder])
    assert report.state is not None and report.state.finished[:3] == ("corpus", "tokenizer", "good")
    assert report.state.left[-1] == "compare the methods" and "generate corpus-contrastive" in report.state.left
    assert "This experiment is unfinished: 3 of 9 stages are finished." in report.state.sentence
    assert report.models is not None and report.corpora is not None and report.outcome is None
    [good] = report.models.runs
    assert (good.finished, good.best_step, good.step, good.steps) == (False, 3, 4, 6)
    assert [(one.name, one.finished, one.stats is None) for one in report.corpora.corpora] == [
        ("corpus", True, False),
        ("corpus-ancestral", False, True),
    ]
    assert report.corpora.table is not None and report.corpora.table.header == ("", "corpus")
    assert "corpus-ancestral is not measured: it is not finished." in report.notes


def test_one_damaged_corpus_does_not_hide_the_others(copied: Callable[..., Path], quick: None) -> None:
    folder = copied("corpus", "corpus-ancestral", "corpus-contrastive")
    [shard] = (folder / "corpus-ancestral" / "data").iterdir()
    shard.unlink()
    report = find.read([folder])
    assert report.corpora is not None and report.corpora.table is not None
    assert report.corpora.table.header == ("", "corpus", "corpus-contrastive")
    reason = f"{shard}: is missing, truncated or altered; rerun the command that wrote it"
    assert f"corpus-ancestral is not measured: {reason}" in report.notes


def test_corpora_are_measured_even_if_their_models_cannot_score_them(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*texts: object, **options: object) -> None:
        raise InputError("good: gives logits that are NaN")

    monkeypatch.setattr("cdgen.evaluation.corpus_stats.corpus_stats.contrast", fail)
    report = find.read([copied("good", "corpus-contrastive") / "corpus-contrastive"], device="cpu")
    assert report.corpora is not None and report.corpora.corpora[0].stats is not None
    assert "--good" not in report.corpora.command
    reason = "good: gives logits that are NaN"
    assert f"The corpora are not scored by the models that wrote them: {reason}" in report.notes


@pytest.mark.parametrize("name", ["text.txt", "corpus"])
def test_a_corpus_that_cannot_be_read_leaves_no_empty_section(
    name: str, copied: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "text.txt" if name == "text.txt" else copied("corpus") / "corpus"
    (path if name == "text.txt" else path / "train.parquet").write_text("")
    report = find.read([path])
    assert report.corpora is None and report.documents is None
    assert [note.split(":")[0] for note in report.notes] == [
        f"{name} is not measured",
        f"The documents of {name} are left out",
    ]


def test_an_absurd_log_is_read(copied: Callable[..., Path], quick: None) -> None:
    folder = copied("good")
    line = '{{"step": {}, "loss": {}, "seconds": {}}}\n'
    absurd = line.format(2, "1" + 400 * "0", 1e308) + line.format(3, 2, 1e308) + line.format("1" + 400 * "0", 3, 1)
    (folder / "good" / "log.jsonl").write_text(line.format(1, 5.5, 2) + absurd)
    report = find.read([folder / "good"])
    assert report.models is not None
    [good] = report.models.runs
    assert [(one.step, one.loss) for one in good.train] == [(1, 5.5), (3, 2.0)] and good.seconds == 2


def test_before_the_first_stage_is_finished(tmp_path: Path) -> None:
    stages.write(tmp_path, "tiny", "run-tiny", [{"name": "corpus", "argv": ["prepare", "x"], "inputs": []}])
    report = find.read([tmp_path])
    assert report.summary == "There is nothing to show yet." and report.title == "Experiment tiny"
    assert report.outcome is report.models is report.corpora is report.documents is None
    assert [(one.line, one.seconds, one.finished) for one in report.made.commands] == [("cdgen prepare x", None, False)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [('{"corpus": "0a"}', "an earlier version of cdgen wrote stages.json"), ("{", "stages.json: cannot be read")],
)
def test_it_is_not_known_what_is_finished(content: str, reason: str, copied: Callable[..., Path], quick: None) -> None:
    folder = copied("good")
    (folder / stages.NAME).write_text(content)
    report = find.read([folder])
    assert report.state is None and report.models is not None and report.made.commands == ()
    assert any("It is not known which stages are finished: " in note and reason in note for note in report.notes)


def test_models_that_are_gone_or_have_changed(copied: Callable[..., Path]) -> None:
    folder = copied("corpus-contrastive", "good")
    shutil.rmtree(folder / "good" / "step_000003")
    report = find.read([folder], device="cpu")
    assert any(note.startswith("The corpora are not scored by the models that wrote them: ") for note in report.notes)
    assert report.corpora is not None and report.corpora.table is not None and report.models is not None
    assert "perplexity under GOOD" not in {row[0] for row in report.corpora.table.rows}
    assert "--good" not in report.corpora.command
    uses = [(role.text, role.step) for role in report.models.runs[0].roles]
    assert ("BAD of corpus-contrastive at step 3", 3) in uses, "although that checkpoint was deleted"


def test_results_alone(experiment: Path) -> None:
    report = find.read([experiment / "evaluation"])
    assert report.outcome is not None and report.outcome.comparison is not None, "it is computed"
    assert report.corpora is None and report.documents is None and report.state is None
    assert report.models is not None and not report.models.runs
    assert {other.name for other in report.models.others} >= {str(experiment / "good@6")}


def test_results_without_a_baseline(experiment: Path, tmp_path: Path) -> None:
    shutil.copytree(experiment / "evaluation", tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "results.json"
    path.write_text(path.read_text().replace('"label": "real"', '"label": "first"'))
    report = find.read([tmp_path / "evaluation"])
    assert report.outcome is not None and report.outcome.comparison is None and report.outcome.results is not None
    assert len(report.outcome.results.rows) == 6 and "no label of the results is real" in report.notes[0]
    assert report.summary == "3 models on 2 tasks, not compared with a baseline."
