"""The page of a report, read without a browser."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 (the extra `report`)")
pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `report`)")

from cdgen.evaluation.comparison import tables
from cdgen.report.content import Models, Outcome, Report, Table
from cdgen.report.html.page import render
from tests.helpers import reports
from tests.helpers.pages import ReadPage

# Names from outside, and how they are shown. The last one has two lines.
HOSTILE = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "</style></script></title><img src=x onerror=alert(1)>": "</style></script></title><img src=x onerror=alert(1)>",
    "a\"b'c onload=alert(1)": "a\"b'c onload=alert(1)",
    "a\0b\x1b[2J": "a\\x00b\\x1b[2J",
    "abc\u202edef\u2066": "abc\\u202edef\\u2066",
    "x" * 300: "x" * 300,
    "{{ 7 * 7 }}{% raw %}": "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{$": "$\\frac{1}{$",
    "שלום عربي 漢字 न": "שלום عربي 漢字 न",
    "a\nb": "a\\nb",
}


@pytest.fixture(scope="module")
def html() -> str:
    """Return the page with every section that can be made by hand."""
    return render(reports.report())


@pytest.fixture(scope="module")
def page(html: str) -> ReadPage:
    """Return that page, read."""
    return ReadPage(html)


def test_sections_and_navigation(page: ReadPage) -> None:
    assert page.sections == ["outcome", "models", "corpora", "ablations", "made"]
    assert page.links == [f"#{name}" for name in page.sections]
    assert [text for tag, text in page.blocks if tag == "h1"] == ["tiny"]


def test_tables_of_the_comparison_are_those_of_cdgen_compare(page: ReadPage) -> None:
    comparison = reports.comparison()
    for table in tables.tables(comparison):
        expected = [table.header]
        for heading, rows in table.sections:
            expected += [[heading]] if heading else []
            expected += rows
        assert page.table(table.title).rows == expected


def test_sentences_are_those_of_cdgen_compare(page: ReadPage) -> None:
    said = [text for tag, text in page.blocks if tag == "li"]
    for sentence in tables.sentences(reports.comparison()):
        assert sentence in said
    assert tables.method_text(reports.comparison()) in page.texts["outcome"]
    assert "Note: ewok is left out, since real has no result." in said
    assert "cdgen compare evaluation --baseline real" in page.texts["outcome"]


def test_plots_say_the_figures(page: ReadPage) -> None:
    told = [text for tag, text in page.blocks if tag == "desc"]
    forest = next(text for text in told if "right is better" in text)
    assert "mean over 1 task: right is better." in forest
    assert "contrastive: +4.0 % (-1.0 % to +9.0 %);" in forest
    assert "text: lower values, on the left, are better." in forest
    assert any("The checkpoint of step 100 is GOOD. The checkpoint of step 50 is BAD." in text for text in told)
    assert "corpus-contrastive: 0.3500;" in next(text for text in told if "0.2500" in text)
    assert "corpus-ancestral: 3.40 % / 0.56 %;" in next(text for text in told if "0.56" in text)


def test_tables_of_corpora_are_those_of_the_content(page: ReadPage) -> None:
    table = reports.corpora().table
    assert table is not None
    assert page.table("Statistics").rows == [list(table.header), *map(list, table.rows)]
    assert "It falls as a corpus grows." in page.texts["corpora"]


def test_models_and_what_they_are_used_for(page: ReadPage) -> None:
    table = page.table("Training runs")
    assert table.rows[1] == ["good", "1,234,567", "100", "307,200", "1 min 15 s", "4,074", "cpu", "step 100", "159.78"]
    assert len(table.rows) == 8
    assert "BAD of corpus-contrastive at step 50" in [text for tag, text in page.blocks if tag == "dd"]
    assert page.table("Settings that differ").rows[0] == ["training run", "seed"]
    assert page.table("Other models").rows[1][-1] == "cd" * 32
    assert "Contrastive decoding generates text with two models" in page.texts["models"]
    without_bad = replace(reports.empty(), models=Models((reports.training_run("real"),), ()))
    assert "Contrastive decoding" not in render(without_bad)


def test_ablations_have_the_strings_of_the_comparison(page: ReadPage) -> None:
    table = page.table("Mean relative change by contrast strength")
    assert table.rows[0] == ["contrast strength", "method", "change", "95 % interval", "p (Holm)", "detectable"]
    assert table.rows[1] == ["0", "real", "", "", "", ""]
    assert table.rows[3] == ["1.0", "contrastive", "+4.0 %", "-1.0 % to +9.0 %", "0.024", "3.5 %"]


def test_how_it_was_made(page: ReadPage) -> None:
    text = page.texts["made"]
    assert "corpus-b: its models are gone, so it was not scored" in text
    assert "good 1 min 15 s cdgen train" in text and "evaluation not started cdgen evaluate" in text
    assert {"ef" * 32, "2.13.0", "42"} <= {value for tag, value in page.blocks if tag == "dd"}
    assert reports.CITATION in [text for tag, text in page.blocks if tag == "pre"]


def test_ids_are_unique_and_tables_have_captions_and_scopes(page: ReadPage) -> None:
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert all(table.caption for table in page.tables)
    scoped = [tag for tag, name, _ in page.attributes if (tag, name) == ("th", "scope")]
    assert len(scoped) == page.tags.count("th")
    referred = [value for _, name, value in page.attributes if name in ("aria-labelledby", "href")]
    assert {name.lstrip("#") for value in referred for name in value.split()} <= {*page.ids}


def test_only_colours_of_the_page_are_drawn(page: ReadPage) -> None:
    styles = [value for _, name, value in page.attributes if name == "style"]
    assert any("var(--m1)" in value for value in styles)
    assert not any("#" in value.replace("url(#", "") or "font-family" in value for value in styles)


PARTS = ("outcome", "models", "corpora")


def only(part: str) -> Report:
    """Return a report with one part."""
    return replace(reports.empty(), **{part: getattr(reports.report(), part)})


@pytest.mark.parametrize("part", PARTS)
def test_a_report_of_one_part_has_one_section_and_no_navigation(part: str) -> None:
    page = ReadPage(render(only(part)))
    assert page.sections == [part]
    assert "nav" not in page.tags and page.links == []
    assert all(text for _, text in page.blocks)


def test_an_experiment_that_has_just_begun() -> None:
    begun = replace(reports.empty(), state=reports.unfinished(), made=reports.made())
    page = ReadPage(render(begun))
    assert page.sections == ["made"]
    assert "1 of 3 stages is finished. Finished: corpus. Left to do: train good; evaluate the models." in page.texts[""]
    assert all(text for _, text in page.blocks)
    assert page.tables == []


def test_nothing_is_said_about_the_state_of_a_finished_experiment() -> None:
    done = replace(reports.empty(), state=replace(reports.unfinished(), left=(), sentence="All stages are finished."))
    assert "All stages are finished" not in render(done)


def test_results_without_a_baseline_are_a_table() -> None:
    table = Table(("model", "task", "value"), (("a-seed42-step150", "blimp", "0.7123"),))
    page = ReadPage(render(replace(reports.empty(), outcome=Outcome(None, table, "cdgen evaluate a"))))
    assert page.table("Results").rows == [["model", "task", "value"], ["a-seed42-step150", "blimp", "0.7123"]]
    assert "svg" not in page.tags


def unmeasured() -> dict[str, Any]:
    """Return contents that lack whatever may be missing."""
    comparison, corpora, models = reports.comparison(), reports.corpora(scored=False), reports.models()
    undefined = replace(
        comparison,
        methods=tuple(replace(one, mean_relative_change=None) for one in comparison.methods),
        results=tuple(replace(one, relative_change=None) for one in comparison.results),
        warnings=(),
    )
    begun = replace(
        models.runs[0], train=(), test=(), parameters=None, best_step=None, perplexity=None, tokens_per_second=None,
        finished=False, step=0, roles=(), config=(),
    )  # fmt: skip
    unfinished = replace(corpora.corpora[1], finished=False, stats=None, parameters=(), good="", bad="", tokens=None)
    return {
        "outcome": Outcome(undefined, None, ""),
        "models": Models((begun,), ()),
        "corpora": replace(corpora, corpora=(unfinished,), table=None, notes=(), command=""),
        "ablations": (),
    }


def test_what_is_missing_leaves_no_hole() -> None:
    page = ReadPage(render(replace(reports.report(), **unmeasured())))
    assert "svg" not in [tag for tag in page.tags if tag == "figure"] and page.tags.count("figure") == 0
    assert page.table("Training runs").rows[1] == [
        "good",
        "–",
        "0 of 100",
        "307,200",
        "1 min 15 s",
        "–",
        "cpu",
        "–",
        "–",
    ]
    assert all(text for _, text in page.blocks)
    assert all(row for table in page.tables for row in table.rows)
    assert "corpus-ancestral" in page.texts["corpora"]


def test_names_are_shown_as_text() -> None:
    labels = tuple(HOSTILE)
    plain = ReadPage(render(named(tuple(f"name {at}" for at in range(len(labels))))))
    hostile = ReadPage(render(named(labels)))
    # Each word of a command has a span.
    assert [tag for tag in hostile.tags if tag != "span"] == [tag for tag in plain.tags if tag != "span"]
    assert not any(name.startswith("on") for _, name, _ in hostile.attributes)
    for section in ("", "outcome", "models", "corpora", "ablations", "made"):
        text = hostile.texts[section]
        assert not any(character in text for character in "\0\x1b\u202e\u2066")
        # The header shows only the first name as the title, but all of them as stages.
        assert [label for label, shown in HOSTILE.items() if shown not in text] == [], section


def named(labels: tuple[str, ...]) -> Report:
    """Return a report in which labels stand wherever a name from outside can stand."""
    plain, pairs = reports.report(), tuple((label, label) for label in labels)
    runs = tuple(replace(reports.training_run(label), config=((label, label),)) for label in labels)
    level = reports.ablations()[0].levels[1]
    levels = tuple(replace(level, method=label, value=label) for label in labels)
    made = reports.made()
    return replace(
        plain,
        title=labels[0],
        summary=labels[0],
        state=replace(reports.unfinished(), sentence=labels[0], finished=labels, left=labels),
        outcome=Outcome(reports.comparison(("real", *labels), (labels[0], "text")), None, labels[0]),
        models=Models(runs, (replace(reports.models().others[0], name=labels[0], fingerprint=labels[1]),)),
        corpora=replace(reports.corpora(("corpus", *labels)), notes=labels, command=labels[0]),
        ablations=(replace(reports.ablations()[1], factor=labels[0], equal=pairs, levels=levels),),
        made=replace(
            made,
            commands=tuple(replace(made.commands[0], name=label, line=label) for label in labels),
            environments=(replace(made.environments[0], values=pairs, names=labels),),
            fingerprints=pairs,
            citations=pairs[:-1],  # the lines of a citation stay lines
        ),
        notes=labels,
    )


def test_the_lines_of_a_citation_stay_lines(page: ReadPage) -> None:
    assert any("\n  title = {cdgen},\n" in text for tag, text in page.blocks if tag == "pre")


def test_the_same_report_is_the_same_page(html: str) -> None:
    assert render(reports.report()) == html
