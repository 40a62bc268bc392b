"""Everything that a report shows, as plain data. :mod:`cdgen.report.find` fills it in, a page renders it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cdgen.report.document_content import Documents

if TYPE_CHECKING:
    from cdgen.evaluation.comparison.data import Comparison, Effect
    from cdgen.evaluation.corpus_stats.corpus_stats import CorpusStats

Pairs: TypeAlias = tuple[tuple[str, str], ...]  # names and values, for a list or a table of two columns


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        header: titles of the columns; the first one may be empty.
        rows: the cells; the first cell of a row names it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class State:
    """How far an experiment is.

    Attributes:
        sentence: the state in plain words.
        finished: names of the finished stages.
        left: what is left to do, such as "train good".
    """

    sentence: str
    finished: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What evaluations found: a comparison or, if the results have no baseline, the results alone.

    Attributes:
        comparison: None if there is no baseline.
        results: a row per model and task; None if there is a comparison.
        command: the command line that prints the same comparison; "" without one, or if its results are not at hand.
    """

    comparison: "Comparison | None"
    results: Table | None
    command: str


@dataclass(frozen=True)
class Point:
    """A loss in a training run, in nats per token."""

    step: int
    loss: float


@dataclass(frozen=True)
class Role:
    """What a model is used for.

    Attributes:
        kind: "GOOD" or "BAD" of corpora; "" for a model that was evaluated.
        text: the use in words, such as "GOOD of corpus-contrastive at step 150".
        step: step of the checkpoint; None for a model that is not a checkpoint of a training run.
        label: label in the evaluation; "" for GOOD and BAD.
    """

    kind: str
    text: str
    step: int | None
    label: str = ""


@dataclass(frozen=True)
class TrainingRun:
    """A training run.

    Attributes:
        name: name of its folder.
        roles: what its checkpoints are used for.
        config: its settings.
        parameters: number of weights; None if it has no checkpoint.
        train: training loss, at most 400 points.
        test: loss on the test text, at each checkpoint.
        best_step: step of the best checkpoint; None without a checkpoint.
        perplexity: perplexity of the best checkpoint on the test text; None if it was not computed.
        step: the last step in the log.
        steps: number of steps of the whole run.
        finished: whether the checkpoint of the last step is there.
        tokens: number of tokens that the model was trained on.
        seconds: duration of all steps, without evaluations and checkpoints.
        tokens_per_second: tokens / seconds; None without a step.
        device: devices that it was trained on, such as "cpu".
    """

    name: str
    roles: tuple[Role, ...]
    config: Pairs
    parameters: int | None
    train: tuple[Point, ...]
    test: tuple[Point, ...]
    best_step: int | None
    perplexity: float | None
    step: int
    steps: int
    finished: bool
    tokens: int
    seconds: float
    tokens_per_second: float | None
    device: str


@dataclass(frozen=True)
class OtherModel:
    """A model that is not a training run of this report: from the hub, a folder, or derived from GOOD.

    Attributes:
        name: its name, or how it is made from GOOD, such as "good@150 with attention dropout 0.4".
        roles: what it is used for.
        fingerprint: sha256 of its weights and how they are read.
        parameters: number of weights; None if it is not on this machine.
        bytes: size of its files; None if they are not on this machine, or if it is derived from GOOD.
    """

    name: str
    roles: tuple[Role, ...]
    fingerprint: str
    parameters: int | None
    bytes: int | None


@dataclass(frozen=True)
class Models:
    """The models of a report."""

    runs: tuple[TrainingRun, ...]
    others: tuple[OtherModel, ...]


@dataclass(frozen=True)
class Corpus:
    """A corpus.

    Attributes:
        name: the name by which the other parts of the report call it.
        kind: "real" for a prepared corpus, "generated", or "text" for a file.
        method: decoding method of a generated corpus; "" for others.
        good, bad: names of the models that wrote it; "" if there is none.
        parameters: sampling parameters that differ from their defaults.
        seeds: what it was continued from, such as "215 seeds x 2 continuations"; "" unless it was generated.
        tokens: number of generated tokens; None unless it was generated.
        finished: whether all of it was generated.
        stats: None if it is not finished, or cannot be read.
    """

    name: str
    kind: str
    method: str
    good: str
    bad: str
    parameters: Pairs
    seeds: str
    tokens: int | None
    finished: bool
    stats: "CorpusStats | None"


@dataclass(frozen=True)
class Corpora:
    """The corpora of a report, measured side by side.

    Attributes:
        corpora: all of them, unfinished ones included.
        table: the table of `cdgen corpus-stats`, a column per corpus with statistics, in the order of `corpora`.
        notes: the notes below that table.
        command: the command line that prints the same table; "" if nothing was measured.
    """

    corpora: tuple[Corpus, ...]
    table: Table | None
    notes: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Level:
    """A value of a factor.

    Attributes:
        value: the value.
        method: label of the method in the comparison.
        effect: its mean relative change from the baseline; None for the baseline, or if no task qualifies.
    """

    value: str
    method: str
    effect: "Effect | None"


@dataclass(frozen=True)
class Ablation:
    """Methods that differ in one factor only.

    Attributes:
        factor: the factor, such as "contrast strength".
        equal: the other factors, which are equal.
        levels: its values, in ascending order if they are numbers.
    """

    factor: str
    equal: Pairs
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Command:
    """A stage of an experiment.

    Attributes:
        name: name of the stage.
        line: its command line.
        seconds: duration of all its attempts; None if it has not been started, or if that is not known.
        finished: whether it is finished; None if that is not known.
    """

    name: str
    line: str
    seconds: float | None
    finished: bool | None


@dataclass(frozen=True)
class Environment:
    """Versions and devices, and the names of the stages and folders whose output was computed with them."""

    values: Pairs
    names: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """How everything was made.

    Attributes:
        commands: the stages of the experiment, in their order.
        environments: versions and devices.
        fingerprints: what was fingerprinted, and its sha256.
        seeds: what was seeded, and its random seed.
        citations: BibTeX entries by what they cite.
    """

    commands: tuple[Command, ...]
    environments: tuple[Environment, ...]
    fingerprints: Pairs
    seeds: Pairs
    citations: Pairs


@dataclass(frozen=True)
class Report:
    """Everything that a page shows. A part that is None has no section.

    Attributes:
        title: title of the page.
        summary: the outcome in one sentence.
        date: when the report was made, such as "2026-01-31 12:00 UTC".
        state: None unless it is the report of an experiment.
        notes: what was left out, and why.
    """

    title: str
    summary: str
    date: str
    state: State | None
    outcome: Outcome | None
    models: Models | None
    corpora: Corpora | None
    ablations: tuple[Ablation, ...]
    documents: Documents | None
    made: Made
    notes: tuple[str, ...]
