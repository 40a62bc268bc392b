"""Plots of a report: how methods are drawn, and that plots belong to the page."""

import re
import warnings
from dataclasses import replace

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 (the extra `report`)")
pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `report`)")

from cdgen.report.content import Role
from cdgen.report.html import plots
from cdgen.report.html.corpus_plots import Measured, panels
from cdgen.report.html.drawing import looks, shortened, swatch
from cdgen.report.html.styles import Styles
from cdgen.report.html.views import models_view
from tests.helpers import reports

LOOKS = looks(reports.METHODS)


def texts(plot: str) -> list[str]:
    """Return the texts in a plot."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", plot)


def test_methods_differ_in_colour_and_marker() -> None:
    found = looks([str(number) for number in range(20)])
    assert len({(one.color, one.marker) for one in found.values()}) == 20
    assert len({one.color for one in list(found.values())[:8]}) == 8
    assert found["0"].name == "m0" and "m0" not in [one.name for label, one in found.items() if label != "0"]
    assert "var(--m1)" in swatch(found["1"])


def test_a_method_has_one_look_everywhere() -> None:
    report = reports.report()
    styles = Styles(report)
    assert report.models is not None
    looks_of_runs = {run.name: styles.run(run) for run in report.models.runs}
    for method in ("ancestral", "contrastive"):
        assert styles.methods[method] == styles.corpus(f"corpus-{method}") == looks_of_runs[f"model-{method}-seed42"]
    assert styles.methods["real"] == styles.corpus("corpus") == looks_of_runs["good"]


def test_training_runs_that_are_evaluated_under_one_label_share_a_plot() -> None:
    models = reports.models()
    good = replace(models.runs[0], roles=(*models.runs[0].roles, Role("", "evaluated as real", 100, "real")))
    view = models_view(replace(models, runs=(good, *models.runs[1:])), Styles(reports.report()))
    assert [curves.title for curves in view["curves"]] == ["real", "ancestral", "contrastive"]
    assert [curves.title for curves in models_view(models, Styles(reports.report()))["curves"]][:2] == ["good", "real"]


def test_without_a_comparison_corpora_and_training_runs_of_a_method_still_look_alike() -> None:
    report = replace(reports.report(), outcome=None, ablations=())
    styles = Styles(report)
    assert report.models is not None
    found = [styles.corpus(name) for name in ("corpus", "corpus-ancestral", "corpus-contrastive")]
    assert len(set(found)) == 3
    assert found[1] == styles.run(next(run for run in report.models.runs if run.name == "model-ancestral-seed43"))


def test_corpora_that_differ_in_the_seed_look_alike() -> None:
    seeded = reports.corpora(("corpus", "corpus-ancestral-seed42", "corpus-ancestral-seed43", "corpus-b-seed42"))
    styles = Styles(replace(reports.report(), corpora=seeded))
    found = [styles.corpus(f"corpus-{name}") for name in ("ancestral-seed42", "ancestral-seed43", "b-seed42")]
    assert found[0] == found[1] == styles.methods["ancestral"] and found[2] != found[0]


def test_corpora_of_one_method_look_different() -> None:
    two = reports.corpora(("corpus", "corpus-a", "corpus-b"))
    same = tuple(replace(one, method="contrastive") if one.method else one for one in two.corpora)
    styles = Styles(replace(reports.report(), corpora=replace(two, corpora=same)))
    assert len({styles.corpus(one.name) for one in same}) == 3


def test_a_forest_plot_names_methods_and_tasks_and_fits_a_phone() -> None:
    wide = plots.forest(reports.comparison(), LOOKS, "forest")
    narrow = plots.forest(reports.comparison(), LOOKS, "narrow", narrow=True)
    assert wide is not None and narrow is not None
    assert texts(wide).count("contrastive") == texts(narrow).count("contrastive") == 3
    assert "mean over 1 task: right is better" in texts(wide)
    assert "text: lower values, on the left, are better" in texts(narrow)
    assert "+4.0 % (-2.0 % to +10.0 %)" in texts(wide) and not any("+10.0" in text for text in texts(narrow))
    assert 'viewBox="0 0 720 ' in wide and 'viewBox="0 0 350 ' in narrow
    assert min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", wide + narrow)) >= 12


def test_a_change_that_is_not_defined_is_said_to_be_so() -> None:
    whole = reports.comparison()
    results = tuple(replace(one, relative_change=None) if one.task == "text" else one for one in whole.results)
    plot = plots.forest(replace(whole, results=results), LOOKS, "forest")
    assert plot is not None and texts(plot).count("not defined") == 2


def test_values_that_are_not_finite_leave_the_scale_to_the_others() -> None:
    whole = reports.comparison()
    wild = tuple(
        replace(one, relative_change=replace(reports.effect(0.1, 0.2), interval=(-0.1, float("inf"))))
        if one.method == "ancestral"
        else one
        for one in whole.results
    )
    assert plots.forest(replace(whole, results=wild), LOOKS, "forest") is not None
    stats = reports.stats("corpus")
    assert stats.contrast is not None
    lost = replace(stats, contrast=replace(stats.contrast, bad_perplexity=float("inf")))
    drawn = panels([Measured("corpus", LOOKS["real"], lost)], "corpora")
    assert "20" in texts(next(panel.plot for panel in drawn if panel.title.startswith("Perplexity")))


def test_losses_mark_good_and_bad() -> None:
    good, other = reports.models().runs[:2]
    limits = plots.loss_limits([good, other])
    plot = plots.losses([good], LOOKS["real"], limits, "loss")
    assert plot is not None and {"GOOD", "BAD", "step"} <= set(texts(plot))
    assert not {"GOOD", "BAD"} & set(texts(str(plots.losses([other], LOOKS["real"], limits, "loss"))))
    both = texts(str(plots.losses([good, replace(good, name="seed 2")], LOOKS["real"], limits, "loss")))
    assert (both.count("GOOD"), both.count("BAD")) == (1, 1), "words of several seeds would cover each other"


@pytest.mark.parametrize(("number", "names"), [(0, ["0", "0.5", "1.0"]), (1, ["earlier checkpoint", "smaller model"])])
def test_ablations(number: int, names: list[str]) -> None:
    plot = plots.ablation(reports.ablations()[number], LOOKS, "real", "ablation")
    assert plot is not None
    assert [text for text in texts(plot) if text in names] == names
    assert "change from real" in texts(plot)


def test_long_names_of_methods_are_whole_in_a_wide_plot() -> None:
    names = ("real", "contrastive-strength-0.25", "contrastive-strength-1.0")
    plot = plots.forest(reports.comparison(names), looks(names), "forest")
    assert plot is not None and set(names) < set(texts(plot))


def test_labels_of_an_axis_do_not_touch() -> None:
    stats = reports.stats("corpus")
    assert stats.contrast is not None
    many = replace(stats.contrast, candidates={2**power: 1 / 11 for power in range(11)})
    one = replace(stats, contrast=many, length_quantiles={0.05: 13, 0.25: 60, 0.5: 270, 0.75: 600, 0.95: 943})
    drawn = {panel.title: panel.plot for panel in panels([Measured("corpus", LOOKS["real"], one)], "corpora")}
    assert [text for text in texts(drawn["Number of candidates"]) if text[0] in "123456789"][:6] == [
        "1", "4", "16", "64", "256", "1,024",
    ]  # fmt: skip
    assert "rotate(-60" not in drawn["Number of candidates"]
    assert [text for text in texts(drawn["Words per document"]) if text[0] in "1235"] == [
        "10",
        "30",
        "100",
        "300",
        "1,000",
    ]


def test_an_ablation_of_one_level_has_no_plot() -> None:
    one = reports.ablations()[1]
    assert plots.ablation(replace(one, levels=one.levels[:1]), LOOKS, "real", "ablation") is None


def test_panels_of_corpora_leave_out_what_was_not_measured() -> None:
    def titles(scored: bool, names: tuple[str, ...]) -> list[str]:
        found = reports.corpora(names, scored).corpora
        drawn = panels([Measured(one.name, LOOKS["real"], one.stats) for one in found if one.stats], "corpora")
        return [panel.title for panel in drawn]

    assert titles(True, ("corpus", "corpus-a")) == [
        "n-gram diversity in 900 words of each",
        "Repeated 4-grams",
        "n-grams copied from the training text",
        "Words per document",
        "Perplexity under GOOD and BAD",
        "Number of candidates",
    ]
    assert titles(False, ("corpus",)) == ["n-gram diversity in all 900 words", "Repeated 4-grams", "Words per document"]


def test_names_in_any_script_are_drawn_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot = plots.forest(
            reports.comparison(("real", "漢字\u202e"), ("עברית", "text")), looks(("real", "漢字\u202e")), "f"
        )
    assert plot is not None and "漢字\\u202e" in texts(plot)


def test_the_middle_of_a_long_name_is_cut_out() -> None:
    assert shortened("contrastive-strength-1.0", 12) == "contr…th-1.0"
    assert shortened("x\ny") == "x\\ny" and len(shortened("x" * 300)) == 24
