"""Read the folders and files that a report is about."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cdgen.errors import CorpusError, InputError
from cdgen.models.dtypes import float_dtype
from cdgen.models.loading import usable_device
from cdgen.report import documents
from cdgen.report.ablations import find_ablations
from cdgen.report.content import Corpora, Models, Outcome, Report
from cdgen.report.corpora import KINDS, CorporaReader
from cdgen.report.document_content import Documents
from cdgen.report.experiment import Experiment, find_experiment
from cdgen.report.explained import explain
from cdgen.report.loading import Loader
from cdgen.report.made import how_it_was_made
from cdgen.report.models import read_models
from cdgen.report.names import Names
from cdgen.report.outcome import read_outcome, summary
from cdgen.report.parts import Part, find_part, find_text_part, reason
from cdgen.report.replications import corpora_of_one_seed
from cdgen.report.roles import find_uses
from cdgen.storage import manifest as manifests
from cdgen.storage.progress import Progress, Silent
from cdgen.wording import counted, joined

_KINDS = (*KINDS, manifests.RUN, manifests.RESULTS, manifests.COMPARISON)  # parts that may be given by themselves
_MOST_NAMES = 3  # greatest number of parts that the title names


def read(
    paths: Sequence[str | os.PathLike[str]],
    *,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read everything that a report shows.

    Parts of an experiment that are missing, unfinished or damaged are left out, and so are models that are not on this
    machine; the report's notes say so. The folders are not written to, and an experiment may be running.

    Args:
        paths: the folder of an experiment, corpora (folders or files), training runs, results and comparisons, in any
            number, but at most one experiment.
        device, dtype: of the models that score corpora and explain documents; see :class:`cdgen.ContrastiveLM`.
        progress: receives what is read and scored.
    Raises:
        InputError: a path is none of these, two of them are experiments, or the device or dtype cannot be used.
        CorpusError: the manifest in a folder that was given is damaged.
    """
    usable_device(device)
    if dtype is not None:
        float_dtype("dtype", dtype)
    notes: list[str] = []
    experiment, parts = find(paths, notes.append)
    progress = progress or Silent()
    names = Names(parts, experiment)
    load = Loader(names, device, dtype)
    outcome = read_outcome(parts, notes.append)
    comparison = outcome.comparison if outcome else None
    options = [word for name, value in (("device", device), ("dtype", dtype)) if value for word in (f"--{name}", value)]
    models = read_models(parts, names, find_uses(parts, names))
    shown = corpora_of_one_seed(parts, notes.append) if experiment else parts
    corpora = CorporaReader(names, load, options, notes.append, progress).read(shown)
    return Report(
        title=_title(experiment, parts),
        summary=_summary(outcome, models, corpora),
        date=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        state=experiment.state if experiment else None,
        outcome=outcome,
        models=models,
        corpora=corpora,
        ablations=find_ablations(comparison, names) if comparison else (),
        documents=_documents(shown, names, load, notes.append, progress),
        made=how_it_was_made(parts, names, experiment.commands if experiment else (), comparison),
        notes=tuple(dict.fromkeys(notes)),
    )


class Found(NamedTuple):
    """What a report is about: an experiment, if it is one, and all parts, with names of their own."""

    experiment: Experiment | None
    parts: list[Part]


def find(paths: Sequence[str | os.PathLike[str]], note: Callable[[str], None]) -> Found:
    """Find the parts of a report.

    Args:
        paths: see :func:`read`.
        note: receives what is left out, and why.
    Raises:
        InputError, CorpusError: see :func:`read`.
    """
    experiment, given = None, []
    for name in paths:
        path = Path(name)
        if not os.fspath(name) or not path.exists():  # Path("") would be the current folder
            raise InputError(f"{name or repr(name)}: no such file or folder")
        part = find_part(path, path.resolve().name) or find_text_part(path, path.name)
        if part is not None and part.kind in _KINDS:
            given.append(part)
            continue
        found = find_experiment(path, note) if path.is_dir() and part is None else None
        if found is None:
            raise InputError(
                f"{path}: is neither the folder of an experiment nor a corpus, a training run, or the output of cdgen "
                "evaluate or cdgen compare"
            )
        if experiment is not None and not experiment.folder.samefile(path):
            raise InputError(f"{experiment.folder} and {path}: are two experiments; make a report of each")
        experiment = experiment or found
    parts = list(experiment.parts) if experiment else []
    for part in given:
        if not any(part.path.samefile(other.path) for other in parts):
            taken = {other.name for other in parts}
            choices = (part.name, str(part.path), os.path.abspath(part.path))
            parts.append(replace(part, name=next(one for one in choices if one not in taken)))
    return Found(experiment, parts)


def _documents(
    parts: Sequence[Part], names: Names, load: Loader, note: Callable[[str], None], progress: Progress
) -> Documents | None:
    """Return the documents of the corpora, explained; None if there are none."""
    try:
        found = explain(documents.choose(parts, names), names, load, progress)
    except (InputError, CorpusError, OSError) as error:  # a running experiment may replace a corpus
        note(f"The documents are left out: {reason(error)}")
        return None
    if found is not None and not found.entries:
        for each in found.notes:
            note(each)
        return None
    return found


def _title(experiment: Experiment | None, parts: Sequence[Part]) -> str:
    if experiment is not None:
        return f"Experiment {experiment.recipe or experiment.folder.resolve().name}"
    shown = [part.name for part in parts[:_MOST_NAMES]]
    more = len(parts) - len(shown)
    return f"{', '.join(shown)} and {more} more" if more else joined(shown)


def _summary(outcome: Outcome | None, models: Models | None, corpora: Corpora | None) -> str:
    """Return the outcome in one sentence, or what the report shows if nothing was evaluated."""
    if outcome is not None and outcome.comparison is not None:
        return summary(outcome.comparison)
    if outcome is not None and outcome.results is not None:
        evaluated, tasks = ({row[at] for row in outcome.results.rows} for at in (0, 1))
        return f"{counted(len(evaluated), 'model')} on {counted(len(tasks), 'task')}, not compared with a baseline."
    counts = (
        (len(corpora.corpora) if corpora else 0, "corpus", "corpora"),
        (len(models.runs) if models else 0, "training run", ""),
    )
    shown = [counted(count, one, several) for count, one, several in counts if count]
    return f"{joined(shown).capitalize()}." if shown else "There is nothing to show yet."
