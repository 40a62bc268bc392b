"""Tables and sentences of comparisons."""

import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from cdgen.evaluation.comparison.data import Comparison, Effect, MethodSummary, RunValue, TaskResult, TaskSummary
from cdgen.evaluation.comparison.tables import as_latex, as_markdown, as_text, sentences

FOUND = Effect(0.049, (0.012, 0.084), 0.005, 0.01, 0.031)
LOWER = Effect(-0.02, (-0.03, -0.01), 0.01, 0.02, 0.015)


def comparison(label: str = "contrastive", effect: Effect | None = FOUND, task: str = "blimp") -> Comparison:
    """Return a comparison of one method with real text, on two tasks."""
    tasks = (
        TaskSummary(task, "minimal_pairs", "babylm", 67_000, "accuracy", True, True),
        TaskSummary("text", "perplexity", "babylm", 1, "perplexity", False, False),
    )
    runs = (RunValue("a", 42, 500, 0.7), RunValue("b", 43, 1000, 0.72))
    results = tuple(
        TaskResult(method, one.name, runs, 0.7123456, (0.7, 0.72), change, change)
        for one, of_method in zip(tasks, (effect, LOWER), strict=True)
        for method, change in (("real", None), (label, of_method))
    )
    methods = (MethodSummary("real", 2, 0, None), MethodSummary(label, 2, 1, effect))
    return Comparison("real", "best", 1000, 0.95, 0, methods, tasks, results, ("ewok is left out",))


LEFT_OUT = "Not in the mean: text -2.0 % (-3.0 % to -1.0 %, p = 0.020; lower is better)."


@pytest.mark.parametrize(
    ("effect", "sentence"),
    [
        (
            FOUND,
            "contrastive: better than real. Mean relative change over blimp +4.9 % (95 % interval +1.2 % to +8.4 %, "
            "p = 0.010 after Holm's correction).",
        ),
        (
            Effect(0.049, (0.012, 0.084), 0.0005, 0.0005, 0.031),
            "contrastive: better than real. Mean relative change over blimp +4.9 % (95 % interval +1.2 % to +8.4 %, "
            "p < 0.001 after Holm's correction).",
        ),
        (
            Effect(0.01, (-0.03, 0.05), 0.3, 0.6, 0.061),
            "contrastive: no improvement over real could be shown. Mean relative change over blimp +1.0 % (95 % "
            "interval -3.0 % to +5.0 %, p = 0.600 after Holm's correction); with 2 runs, an improvement of 6.1 % would "
            "have been found with probability 0.8.",
        ),
        (
            Effect(-0.04, (-0.05, -0.03), 1, 1, 0.061),
            "contrastive: worse than real. Mean relative change over blimp -4.0 % (95 % interval -5.0 % to -3.0 %, "
            "p = 1.000 after Holm's correction).",
        ),
        (Effect(0, (0, 0), 0.5, 0.5, 0), "contrastive: no difference from real, whose scores are the same."),
        (
            None,
            "contrastive: better than real on 1 of 2 tasks; no task qualifies for the mean relative change.",
        ),
    ],
)
def test_sentences(effect: Effect | None, sentence: str) -> None:
    assert sentences(comparison(effect=effect)) == [f"{sentence} {LEFT_OUT}"]


def test_a_sentence_leaves_out_tasks_without_a_change() -> None:
    found = comparison()
    equal = Effect(0.0, (0.0, 0.0), 0.5, 0.5, 0.0)
    for change in (None, equal):
        results = tuple(replace(one, relative_change=change) if one.task == "text" else one for one in found.results)
        assert "Not in the mean" not in sentences(replace(found, results=results))[0]


def test_text() -> None:
    assert as_text(comparison()).splitlines() == [
        "Mean relative change from real over 1 task",
        "  method       runs     better on  change     95 % interval      p  p (Holm)  detectable",
        "  contrastive     2  1 of 2 tasks  +4.9 %  +1.2 % to +8.4 %  0.005     0.010       3.1 %",
        "",
        "Values and relative changes from real",
        "  method       runs   value     95 % interval  change     95 % interval  p (Holm)",
        "blimp: accuracy; 67,000 items, convention babylm",
        "  real            2  0.7123  0.7000 to 0.7200",
        "  contrastive     2  0.7123  0.7000 to 0.7200  +4.9 %  +1.2 % to +8.4 %     0.010",
        "text: perplexity, lower is better; 1 item, convention babylm",
        "  real            2  0.7123  0.7000 to 0.7200",
        "  contrastive     2  0.7123  0.7000 to 0.7200  -2.0 %  -3.0 % to -1.0 %     0.020",
        "",
        *sentences(comparison()),
        "note: ewok is left out",
    ]


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5000"), (1234.4, "1234"), (0.0, "0.000")])
def test_values_have_four_digits(value: float, shown: str) -> None:
    found = comparison()
    results = tuple(replace(one, estimate=value) for one in found.results)
    assert f"| real | 2 | {shown} | 0.7000 to 0.7200 |" in as_markdown(replace(found, results=results))


@pytest.mark.parametrize("label", ["x" * 100, "高" * 10, "a\x1b[2J\n"])
def test_text_stays_aligned_whatever_the_label(label: str) -> None:
    text = as_text(comparison(label))
    rows = [line for line in text.splitlines() if line.startswith("  ") and "to +8.4" in line]
    header = next(line for line in text.splitlines() if line.startswith("  method") and "detectable" in line)
    assert cell_len(rows[0]) == cell_len(header) < 120
    assert "\x1b" not in text


def test_markdown_keeps_special_characters() -> None:
    text = as_markdown(comparison("top_k|200*<b>", task="a|b"))
    assert "| top\\_k\\|200\\*\\<b\\> | 2 | 1 of 2 tasks | +4.9 % |" in text
    assert "| *a\\|b: accuracy; 67,000 items, convention babylm* |" in text
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(columns) == {9, 8}
    assert "Note: ewok is left out." in text and "paired bootstrap with 1,000 resamples" in text


def test_latex_escapes_special_characters() -> None:
    text = as_latex(replace(comparison("a&b_c%d#e$f{g}~h^i\\j", task="x_y"), warnings=("100 % of x\nis missing",)))
    escaped = (
        r"a\&b\_c\%d\#e\$f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j & 2 & 1 of 2 tasks & +4.9 \% & "
        r"+1.2 \% to +8.4 \% & 0.005 & 0.010 & 3.1 \% \\"
    )
    assert escaped in text.splitlines()
    assert r"\multicolumn{7}{l}{\emph{x\_y: accuracy; 67,000 items, convention babylm}} \\" in text
    for line in text.splitlines():
        assert line.startswith(("%", "\\", "method &", "a\\&b", "real &")) or not line
    assert text.count("\\toprule") == text.count("\\bottomrule") == text.count("\\end{table}") == 2
    worse = as_latex(comparison(effect=Effect(-0.04, (-0.05, -0.03), 1, 1, 0.061)))
    assert r"$-$4.0 \% & $-$5.0 \% to $-$3.0 \%" in worse
