"""Contents of reports, made by hand."""

from dataclasses import replace
from typing import TYPE_CHECKING

from cdgen.evaluation.comparison.data import Comparison, Effect, MethodSummary, RunValue, TaskResult, TaskSummary
from cdgen.evaluation.corpus_stats.contrast import Contrast
from cdgen.evaluation.corpus_stats.corpus_stats import CorpusStats, Diversity, EndOfText
from cdgen.evaluation.corpus_stats.overlap import Overlap
from cdgen.report.content import (
    Ablation,
    Command,
    Corpora,
    Corpus,
    Environment,
    Level,
    Made,
    Models,
    OtherModel,
    Outcome,
    Point,
    Report,
    Role,
    State,
    Table,
    TrainingRun,
)

if TYPE_CHECKING:
    from cdgen.report.content import Pairs

CITATION = "@misc{cdgen,\n  title = {cdgen},\n  year = {2026}\n}"
METHODS = ("real", "ancestral", "contrastive")


def effect(value: float, half: float) -> Effect:
    """Return an effect with a symmetric interval."""
    return Effect(value, (value - half, value + half), 0.012, 0.024, 0.0345)


def comparison(methods: tuple[str, ...] = METHODS, tasks: tuple[str, ...] = ("blimp", "text")) -> Comparison:
    """Return a comparison of methods with the first of them. Lower is better for the last task."""
    summaries = [MethodSummary(methods[0], 2, 0, None)]
    summaries += [MethodSummary(one, 2, 1, effect(0.02 * at, 0.05)) for at, one in enumerate(methods[1:], 1)]
    results = tuple(
        TaskResult(
            method,
            task,
            (RunValue(f"model-{method}", 42, 500, 0.7), RunValue(f"model-{method}-b", 43, 1000, 0.72)),
            0.7123456 + 0.01 * at,
            (0.7, 0.72),
            effect(0.01 * at, 0.03) if at else None,
            effect(0.02 * at, 0.06) if at else None,
        )
        for task in tasks
        for at, method in enumerate(methods)
    )
    found = tuple(
        TaskSummary(task, "minimal_pairs", "babylm", 67_000, metric, metric == "accuracy", metric == "accuracy")
        for task, metric in zip(tasks, ("accuracy",) * (len(tasks) - 1) + ("perplexity",), strict=True)
    )
    warnings = ("ewok is left out, since real has no result",)
    return Comparison(methods[0], "best", 1000, 0.95, 0, tuple(summaries), found, results, warnings)


def stats(name: str, words: int = 1000, diversity: float = 0.5, scored: bool = True) -> CorpusStats:
    """Return statistics of a corpus."""
    shares = {1: 0.4, 2: 0.7, 3: 0.85, 4: 0.95}
    contrast = Contrast(20, 2000, 21.5, 34.25, 0.456, 2.5, 0.1, 6.78, {1: 0.4, 2: 0.2, 4: 0.2, 8: 0.15, 16: 0.05})
    return CorpusStats(
        name=name,
        fingerprint="ab" * 32,
        documents=100,
        words=words,
        characters=5 * words,
        bytes=6 * words,
        mean_length=words / 100,
        length_quantiles={0.05: 3, 0.25: 6, 0.5: 10, 0.75: 14, 0.95: 30},
        end_of_text=EndOfText(50, 20) if "corpus-" in name else None,
        whole=Diversity(words, shares, diversity),
        equal_size=Diversity(900, shares, diversity / 2),
        repetition=0.0123,
        window_repetition=0.011,
        overlap=Overlap({8: 0.034, 13: 0.0056}, 19) if "corpus-" in name else None,
        contrast=contrast if scored else None,
    )


def corpora(
    names: tuple[str, ...] = ("corpus", "corpus-ancestral", "corpus-contrastive"), scored: bool = True
) -> Corpora:
    """Return corpora; the first one is real text."""
    found = []
    for at, name in enumerate(names):
        method = name.removeprefix("corpus-") if at else ""
        parameters: Pairs = (("temperature", "0.9"),) if at else ()
        found.append(
            Corpus(
                name, "generated" if at else "real", method, "good@150" if at else "", "good@50" if at else "",
                parameters, "215 seeds x 2 continuations" if at else "", 12_345 if at else None, True,
                stats(name, 1000 + at, 0.5 + 0.1 * at, scored),
            )
        )  # fmt: skip
    table = Table(
        ("", *names), (("documents", *("100" for _ in names)), ("n-gram diversity", *("0.5000" for _ in names)))
    )
    return Corpora(tuple(found), table, ("It falls as a corpus grows.",), "cdgen corpus-stats corpus")


def training_run(name: str, roles: tuple[Role, ...] = (), loss: float = 5.0, finished: bool = True) -> TrainingRun:
    """Return a training run of 100 steps, with a checkpoint every 50."""
    train = tuple(Point(step, loss + 30 / (step + 10)) for step in range(1, 101))
    config = (("model", "tiny"), ("seed", name[-2:] if "seed" in name else "42"), ("steps", "100"))
    return TrainingRun(
        name=name,
        roles=roles,
        config=config,
        parameters=1_234_567,
        train=train,
        test=(Point(50, loss + 0.7), Point(100, loss + 0.4)),
        best_step=100,
        perplexity=159.78,
        step=100 if finished else 60,
        steps=100,
        finished=finished,
        tokens=307_200,
        seconds=75.4,
        tokens_per_second=4074.3,
        device="cpu",
    )


def models() -> Models:
    """Return training runs of GOOD and of models under comparison, and a model from elsewhere."""
    roles = (
        Role("GOOD", "GOOD of corpus-contrastive at step 100", 100),
        Role("BAD", "BAD of corpus-contrastive at step 50", 50),
    )
    runs = [training_run("good", roles)]
    runs += [training_run(f"model-{one}-seed{seed}", loss=5 + 0.001 * seed) for one in METHODS for seed in (42, 43)]
    other = OtherModel(
        "good@100 with attention dropout 0.4", (Role("BAD", "BAD of corpus-b", None),), "cd" * 32, 1000, None
    )
    return Models(tuple(runs), (other,))


def ablations() -> tuple[Ablation, ...]:
    """Return an ablation whose levels are numbers, and one whose levels are names."""
    strengths = tuple(Level(f"{0.5 * at}", METHODS[at], effect(0.02 * at, 0.05)) for at in (1, 2))
    kinds = (
        Level("earlier checkpoint", "ancestral", effect(0.02, 0.05)),
        Level("smaller model", "contrastive", effect(0.04, 0.05)),
        Level("none", "real", None),
    )
    return (
        Ablation("contrast strength", (("alpha", "0.1"),), (Level("0", "real", None), *strengths)),
        Ablation("kind of BAD", (), kinds),
    )


def made() -> Made:
    """Return how something was made."""
    commands = (
        Command("corpus", "cdgen prepare --preset tiny --out corpus", 3.21, True),
        Command("good", "cdgen train --corpus corpus --out good", 75, True),
        Command("evaluation", "cdgen evaluate good --out evaluation", None, False),
    )
    versions = (("cdgen", "0.1.0"), ("torch", "2.13.0"), ("device", "cpu"))
    return Made(
        commands, (Environment(versions, ("corpus", "good")),), (("corpus", "ef" * 32),), (("good", "42"),),
        (("cdgen", CITATION),),
    )  # fmt: skip


NOTHING_MADE = Made((), (), (), (), ())


def report() -> Report:
    """Return a report with every section but the documents."""
    return Report(
        title="tiny",
        summary="No improvement could be shown.",
        date="2026-01-31 12:00 UTC",
        state=None,
        outcome=Outcome(comparison(), None, "cdgen compare evaluation --baseline real"),
        models=models(),
        corpora=corpora(),
        ablations=ablations(),
        documents=None,
        made=made(),
        notes=("corpus-b: its models are gone, so it was not scored",),
    )


def empty() -> Report:
    """Return a report without a section."""
    return replace(
        report(), outcome=None, models=None, corpora=None, ablations=(), made=NOTHING_MADE, notes=(), summary=""
    )


def unfinished() -> State:
    """Return the state of an experiment that has not got far."""
    return State("1 of 3 stages is finished.", ("corpus",), ("train good", "evaluate the models"))
