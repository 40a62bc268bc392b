"""The outcome of a comparison in one sentence."""

from dataclasses import replace
from pathlib import Path

from cdgen.evaluation.comparison.compare import compare
from cdgen.evaluation.comparison.data import Comparison, Effect, TaskResult
from cdgen.evaluation.comparison.folder import write
from cdgen.report.outcome import read_outcome, summary
from cdgen.report.parts import find_part
from tests.helpers.reports import comparison
from tests.helpers.results import Scored, correct, write_results

UNCLEAR = Effect(0.01, (-0.02, 0.04), 0.3, 0.6, 0.05)
HIGHER = Effect(0.03, (0.01, 0.05), 0.01, 0.02, 0.05)
SURELY_HIGHER_PERPLEXITY = Effect(0.03, (0.01, 0.05), 0.99, 1.0, 0.05)
LOWER_PERPLEXITY = Effect(-0.03, (-0.05, -0.01), 0.01, 0.02, 0.05)
LOWER = Effect(-0.03, (-0.05, -0.01), 0.99, 1.0, 0.05)


def with_effects(ancestral: tuple[Effect | None, Effect], contrastive: tuple[Effect | None, Effect]) -> Comparison:
    """Return a comparison with a mean relative change, and a difference in perplexity, of each method."""
    found = comparison()
    effects = {"ancestral": ancestral, "contrastive": contrastive}
    methods = tuple(
        replace(one, mean_relative_change=effects[one.method][0]) if one.method in effects else one
        for one in found.methods
    )

    def result(one: TaskResult) -> TaskResult:
        is_changed = one.method in effects and one.task == "text"
        return replace(one, difference=effects[one.method][1]) if is_changed else one

    return replace(found, methods=methods, results=tuple(map(result, found.results)))


START = "2 methods were compared with real on 2 tasks; "


def test_nothing_could_be_shown() -> None:
    found = with_effects((UNCLEAR, UNCLEAR), (UNCLEAR, UNCLEAR))
    assert summary(found) == f"{START}no improvement on average could be shown."


def test_the_mean_and_the_tasks_that_it_leaves_out() -> None:
    found = with_effects((LOWER, SURELY_HIGHER_PERPLEXITY), (HIGHER, LOWER_PERPLEXITY))
    assert summary(found) == (
        f"{START}contrastive is better; ancestral is worse; contrastive is better on text; ancestral is worse on text."
    )


def test_a_better_perplexity_alone() -> None:
    found = with_effects((UNCLEAR, LOWER_PERPLEXITY), (UNCLEAR, LOWER_PERPLEXITY))
    assert summary(found) == (
        f"{START}no improvement on average could be shown; ancestral and contrastive are better on text."
    )


def test_no_task_qualifies() -> None:
    found = with_effects((None, UNCLEAR), (None, UNCLEAR))
    assert summary(found) == f"{START}no task qualifies for the mean relative change."


def test_the_command_is_shown_only_if_it_gives_the_same_comparison(tmp_path: Path) -> None:
    folders = {}
    for name, labels in (("all", ("real", "mixed")), ("mixed", ("mixed",)), ("more", ("real", "mixed", "other"))):
        folders[name] = write_results(tmp_path / name, [Scored(label, "t", correct(0.5)) for label in labels])
    write(compare(folders["all"], resamples=200), tmp_path / "comparison")
    found = {}
    for name, folder in folders.items():
        parts = [find_part(tmp_path / "comparison", "comparison"), find_part(folder, name)]
        outcome = read_outcome([part for part in parts if part], lambda text: None)
        assert outcome is not None
        found[name] = outcome.command
    command = f"cdgen compare {folders['all']} --baseline real --resamples 200"
    assert found == {"all": command, "mixed": "", "more": ""}
