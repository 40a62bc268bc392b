"""What the templates of the sections show: tables of strings, and plots."""

from typing import Any, NamedTuple

from markupsafe import Markup

from cdgen.evaluation.comparison import tables
from cdgen.evaluation.comparison.data import Comparison
from cdgen.report.content import Ablation, Corpora, Models, Outcome, Role, Table, TrainingRun
from cdgen.report.html import plots
from cdgen.report.html.corpus_plots import Measured, panels
from cdgen.report.html.drawing import Look
from cdgen.report.html.styles import Styles, group
from cdgen.wording import duration

_ABSENT = "–"


class Statement(NamedTuple):
    """A sentence about a method.

    Attributes:
        label: the method.
        look: how it is drawn.
        rest: the sentence, without the label before it.
    """

    label: str
    look: Look
    rest: str


class Curves(NamedTuple):
    """The loss curves of training runs that differ in their seed only.

    Attributes:
        title: what they have in common.
        plot: the plot.
    """

    title: str
    plot: Markup


class Factor(NamedTuple):
    """A factor of an ablation, with its plot and its table."""

    ablation: Ablation
    plot: Markup | None
    table: Table


def outcome_view(outcome: Outcome, styles: Styles) -> dict[str, Any]:
    """Return what the section about the outcome shows."""
    comparison = outcome.comparison
    if comparison is None:
        return {"comparison": None, "results": outcome.results, "command": outcome.command}
    others = [one.method for one in comparison.methods[1:]]
    statements = [
        Statement(label, styles.methods[label], sentence.removeprefix(label))
        for label, sentence in zip(others, tables.sentences(comparison), strict=True)
    ]
    return {
        "comparison": comparison,
        "statements": statements,
        "tables": tables.tables(comparison),
        "method_text": tables.method_text(comparison),
        "forest": plots.forest(comparison, styles.methods, "forest"),
        "narrow_forest": plots.forest(comparison, styles.methods, "narrow-forest", narrow=True),
        "command": outcome.command,
    }


def models_view(models: Models, styles: Styles) -> dict[str, Any]:
    """Return what the section about models shows."""
    groups: dict[str, list[TrainingRun]] = {}
    for run in models.runs:
        groups.setdefault(group(run), []).append(run)
    limits = plots.loss_limits(models.runs)
    curves = []
    for index, (label, runs) in enumerate(groups.items()):
        plot = plots.losses(runs, styles.run(runs[0]), limits, f"loss-{index}")
        if plot is not None:
            curves.append(Curves(label, plot))
    shared, different = _settings(models.runs)
    return {
        "has_bad": any(role.kind == "BAD" for role in _roles(models)),
        "curves": curves,
        "runs": _run_table(models.runs),
        "others": _others_table(models),
        "uses": _uses(models),
        "shared_settings": shared,
        "different_settings": different,
    }


def _run_table(runs: tuple[TrainingRun, ...]) -> Table:
    header = (
        "training run", "weights", "steps", "tokens", "time", "tokens/s", "device", "best checkpoint", "perplexity",
    )  # fmt: skip
    rows = tuple(
        (
            run.name,
            _count(run.parameters),
            f"{run.steps:,}" if run.finished else f"{run.step:,} of {run.steps:,}",
            f"{run.tokens:,}",
            duration(run.seconds),
            _ABSENT if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            run.device or _ABSENT,
            _ABSENT if run.best_step is None else f"step {run.best_step:,}",
            _perplexity(run.perplexity),
        )
        for run in runs
    )
    return Table(header, rows)


def _others_table(models: Models) -> Table:
    rows = tuple(
        (one.name, _count(one.parameters), _ABSENT if one.bytes is None else f"{one.bytes / 1e6:,.1f}", one.fingerprint)
        for one in models.others
    )
    return Table(("model", "weights", "megabytes", "fingerprint"), rows)


def _perplexity(value: float | None) -> str:
    if value is None:
        return _ABSENT
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"  # a run that has diverged


def _count(number: int | None) -> str:
    return _ABSENT if number is None else f"{number:,}"


def _roles(models: Models) -> list[Role]:
    """Return the roles of all models."""
    return [
        *(role for run in models.runs for role in run.roles),
        *(role for one in models.others for role in one.roles),
    ]


def _uses(models: Models) -> list[tuple[str, list[str]]]:
    """Return what each model is used for."""
    named = [(one.name, one.roles) for one in models.runs] + [(one.name, one.roles) for one in models.others]
    return [(name, list(dict.fromkeys(role.text for role in roles))) for name, roles in named if roles]


def _settings(runs: tuple[TrainingRun, ...]) -> tuple[tuple[tuple[str, str], ...], Table | None]:
    """Return the settings that all training runs share, and a table of those that differ."""
    configs = [dict(run.config) for run in runs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    values = {name: [config.get(name, _ABSENT) for config in configs] for name in names}
    shared = tuple((name, each[0]) for name, each in values.items() if len(set(each)) == 1)
    different = [name for name, each in values.items() if len(set(each)) > 1]
    if not different:
        return shared, None
    rows = tuple((run.name, *(values[name][index] for name in different)) for index, run in enumerate(runs))
    return shared, Table(("training run", *different), rows)


def corpora_view(corpora: Corpora, styles: Styles) -> dict[str, Any]:
    """Return what the section about corpora shows."""
    measured = [
        Measured(one.name, styles.corpus(one.name), one.stats) for one in corpora.corpora if one.stats is not None
    ]
    return {
        "corpora": corpora,
        "panels": panels(measured, "corpora") if measured else [],
        "generated": _generated_table(corpora),
        "unfinished": [one.name for one in corpora.corpora if not one.finished],
    }


def _generated_table(corpora: Corpora) -> Table | None:
    """Return how the generated corpora were written; None if there are none."""
    written = [one for one in corpora.corpora if one.kind == "generated"]
    rows = tuple(
        (
            one.name,
            one.method,
            ", ".join(f"{name} {value}" for name, value in one.parameters) or "defaults",
            one.good or _ABSENT,
            one.bad or _ABSENT,
            one.seeds or _ABSENT,
            _count(one.tokens),
        )
        for one in written
    )
    header = ("corpus", "method", "sampling parameters", "GOOD", "BAD", "continued from", "new tokens")
    return Table(header, rows) if rows else None


def ablations_view(ablations: tuple[Ablation, ...], comparison: Comparison, styles: Styles) -> dict[str, Any]:
    """Return what the section about ablations shows. The strings are those of the comparison's first table."""
    header, rows = list[str](), dict[str, list[str]]()
    if any(one.mean_relative_change for one in comparison.methods):
        summary = tables.tables(comparison)[0]
        shown = [at for at, name in enumerate(summary.header) if name not in ("method", "runs", "better on", "p")]
        header = [summary.header[at] for at in shown]
        rows = {row[0]: [row[at] for at in shown] for _, section in summary.sections for row in section}
    factors = []
    for index, one in enumerate(ablations):
        plot = plots.ablation(one, styles.methods, comparison.baseline, f"ablation-{index}")
        names: list[tuple[str, ...]] = [("method",), *((each.method,) for each in one.levels)]
        if all(each.value == each.method for each in one.levels):
            names = [()] * len(names)  # the factor is the method
        cells = tuple(
            (each.value, *label, *rows.get(each.method, [""] * len(header)))
            for each, label in zip(one.levels, names[1:], strict=True)
        )
        factors.append(Factor(one, plot, Table((one.factor, *names[0], *header), cells)))
    return {"factors": factors, "baseline": comparison.baseline}
