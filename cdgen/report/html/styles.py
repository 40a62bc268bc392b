"""One colour and one marker per method, for everything on the page that belongs to the method."""

import re

from cdgen.report.content import Corpus, Report, TrainingRun
from cdgen.report.html.drawing import Look, looks

BASELINE = "real"  # the label of real text, where no comparison names a baseline


class Styles:
    """How methods, corpora and training runs are drawn.

    Args:
        report: the content of the page. Methods of its comparison come first, the baseline before all others; corpora
            and training runs that belong to none of them follow.
    """

    def __init__(self, report: Report) -> None:
        comparison = report.outcome.comparison if report.outcome else None
        self._labels = [one.method for one in comparison.methods] if comparison else [BASELINE]
        self._owners: dict[str, str] = {}  # label of each corpus by its name
        for corpus in report.corpora.corpora if report.corpora else ():
            self._owners[corpus.name] = self._label(corpus)
        for run in report.models.runs if report.models else ():
            if (label := group(run)) not in self._labels and not _is_good(run):
                self._labels.append(label)
        for ablation in report.ablations:
            self._labels += [one.method for one in ablation.levels if one.method not in self._labels]
        self.methods = looks(self._labels)

    def corpus(self, name: str) -> Look:
        """Return how a corpus is drawn."""
        return self.methods[self._owners[name]]

    def run(self, run: TrainingRun) -> Look:
        """Return how a training run is drawn. GOOD learned from the real text alone, so it looks like the baseline."""
        label = group(run)
        return self.methods[label if label in self.methods else self._labels[0]]

    def _label(self, corpus: Corpus) -> str:
        """Return the label that a corpus belongs to; it has one corpus, or one per seed."""
        unseeded = _without_seed(corpus.name)
        for name, label in self._owners.items():
            if _without_seed(name) == unseeded:
                return label
        short = unseeded.rpartition("/")[2].removeprefix("corpus-")
        wanted = [self._labels[0]] if corpus.kind == "real" else [short, corpus.method]
        taken = self._owners.values()
        for label in wanted:
            if label in self._labels and label not in taken:
                return label
        new = corpus.name if short in self._labels else short
        self._labels.append(new)
        return new


def group(run: TrainingRun) -> str:
    """Return what training runs have in common that differ in their seed only: the label of their method.

    Unless a run was evaluated under exactly one label, its name tells: the method is "head" for model-head-seed42.
    """
    labels = {role.label for role in run.roles if role.label}
    if len(labels) == 1:
        return labels.pop()
    return _without_seed(run.name).removeprefix("model-")


def _without_seed(name: str) -> str:
    return re.sub(r"-seed\d+$", "", name)


def _is_good(run: TrainingRun) -> bool:
    return any(role.kind == "GOOD" for role in run.roles)
