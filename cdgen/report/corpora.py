"""The corpora of a report, measured side by side as `cdgen corpus-stats` does."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cdgen.corpus.find import Corpus as FoundCorpus
from cdgen.corpus.find import check_file
from cdgen.engine.sampling_params import FIELDS, SamplingParams
from cdgen.errors import CorpusError, InputError
from cdgen.evaluation.corpus_stats import table
from cdgen.evaluation.corpus_stats.contrast import check_models
from cdgen.evaluation.corpus_stats.corpus_stats import corpus_stats, find_text
from cdgen.report.content import Corpora, Corpus, Pairs, Table
from cdgen.report.loading import Loader
from cdgen.report.names import Model, Names
from cdgen.report.parts import TEXT, Part, of_kind, reason
from cdgen.report.roles import pair_of
from cdgen.storage import manifest as manifests
from cdgen.storage.progress import Progress

if TYPE_CHECKING:
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.evaluation.corpus_stats.corpus_stats import CorpusStats

KINDS = (manifests.PREPARED, manifests.GENERATED, TEXT)


class _Readable(NamedTuple):
    """A corpus that can be measured."""

    part: Part
    corpus: FoundCorpus


class _Scorers(NamedTuple):
    """GOOD and BAD, with the values of the options that name them."""

    lm: "ContrastiveLM"
    options: list[str]


class CorporaReader:
    """Describes corpora, and measures those that are finished.

    Args:
        names: what names in manifests stand for.
        load: loads the models that score them.
        options: options of `cdgen corpus-stats` that the models were loaded with.
        note: receives what is left out, and why.
        progress: receives what is read and scored.
    """

    def __init__(
        self, names: Names, load: Loader, options: Sequence[str], note: Callable[[str], None], progress: Progress
    ) -> None:
        self._names, self._load, self._options = names, load, list(options)
        self._note, self._progress = note, progress

    def read(self, parts: Sequence[Part]) -> Corpora | None:
        """Return the corpora among the parts of a report, real ones first; None if nothing is known about any."""
        found = sorted(of_kind(parts, *KINDS), key=lambda part: KINDS.index(part.kind))
        readable = [each for part in found if (each := self._find(part)) is not None]
        real = [each for each in readable if each.part.kind == manifests.PREPARED]
        against = real[0] if len(real) == 1 and len(readable) > 1 else None
        measured, scorers = self._measure(readable, against)
        stats = {each.part.name: one for each, one in zip(readable, measured, strict=False)}
        described = (part for part in found if part.kind == manifests.GENERATED or part.name in stats)
        corpora = tuple(replace(self._describe(part), stats=stats.get(part.name)) for part in described)
        if not measured:
            return Corpora(corpora, None, (), "") if corpora else None
        stated = against.corpus.name if against else None
        header, *lines = table.cells(measured, stated)
        return Corpora(
            corpora,
            Table(tuple(header), tuple(map(tuple, lines))),
            tuple(table.notes(measured, stated)),
            self._command(readable, stated, scorers),
        )

    def _describe(self, part: Part) -> Corpus:
        """Return a corpus without statistics."""
        if part.kind != manifests.GENERATED:
            kind = "real" if part.kind == manifests.PREPARED else "text"
            return Corpus(part.name, kind, "", "", "", (), "", None, True, None)
        good, bad = pair_of(part, self._names)
        params = params_of(part)
        about = part.manifest["seeds"]
        seeds = f"{about['count']:,} seeds" if "count" in about else "seeds"
        if about.get("prefix_tokens"):
            seeds += f", the first {about['prefix_tokens']} tokens of each"
        if params and params.n > 1:
            seeds += f", {params.n} continuations"
        return Corpus(
            name=part.name,
            kind="generated",
            method=params.method if params else "",
            good=good.name,
            bad=bad.name if bad else "",
            parameters=_unusual(params) if params else (),
            seeds=seeds,
            tokens=part.manifest["counts"]["new_tokens"],
            finished=part.manifest["complete"],
            stats=None,
        )

    def _find(self, part: Part) -> _Readable | None:
        """Return a corpus that can be measured, or None."""
        if not part.manifest.get("complete", True):
            self._note(f"{part.name} is not measured: it is not finished.")
            return None
        try:
            for shard in part.manifest.get("shards", ()):
                check_file(part.path / shard["name"], shard["sha256"])
            return _Readable(part, find_text(str(part.path)))
        except (InputError, CorpusError, OSError) as error:
            self._note(f"{part.name} is not measured: {reason(error)}")
            return None

    def _scorers(self, parts: Sequence[Part]) -> _Scorers | None:
        """Return the models that wrote a corpus, one with a BAD if there is one; None if they cannot be used."""
        written = of_kind(parts, manifests.GENERATED)
        if not written:
            return None
        chosen = next((part for part in written if part.manifest["models"]["bad"]), written[0])
        models = chosen.manifest["models"]
        try:
            lm = check_models(self._load(models["good"], models["bad"]))
        except InputError as error:
            self._note(f"The corpora are not scored by the models that wrote them: {error}")
            return None
        good, bad = pair_of(chosen, self._names)
        others = [part.name for part in written if _differs(pair_of(part, self._names), good, bad)]
        if others:
            pair = f"{good.name} and {bad.name}" if bad else good.name
            self._note(f"All corpora are scored by {pair}, although other models wrote {', '.join(others)}.")
        return _Scorers(lm, ["--good", good.source, *(["--bad", bad.source] if bad else []), *self._options])

    def _measure(
        self, readable: Sequence[_Readable], against: _Readable | None
    ) -> "tuple[list[CorpusStats], _Scorers | None]":
        """Return the statistics, and the models that scored the corpora; no statistics if they cannot be measured."""
        scorers = self._scorers([each.part for each in readable])
        while readable:
            try:
                measured = corpus_stats(
                    [each.corpus for each in readable],
                    against=against.corpus if against else None,
                    models=scorers.lm if scorers else None,
                    progress=self._progress,
                )
            except (InputError, CorpusError, OSError) as error:
                if scorers is None:
                    self._note(f"The corpora are not measured: {reason(error)}")
                    break
                self._note(f"The corpora are not scored by the models that wrote them: {reason(error)}")
                scorers = None  # they may be measured nevertheless
            else:
                return measured, scorers
        return [], None

    def _command(self, readable: Sequence[_Readable], against: str | None, scorers: _Scorers | None) -> str:
        argv = ["cdgen", "corpus-stats", *(each.corpus.name for each in readable)]
        argv += ["--against", against] if against else []
        return shlex.join([*argv, *(scorers.options if scorers else [])])


def params_of(part: Part) -> SamplingParams | None:
    """Return the sampling parameters of a generated corpus; None if this version of cdgen does not know them."""
    settings = part.manifest["settings"]
    try:
        return SamplingParams(**{name: settings[name] for name in FIELDS if name in settings})
    except InputError:
        return None


def _unusual(params: SamplingParams) -> Pairs:
    """Return the sampling parameters that differ from those of the method's defaults, without the number of outputs."""
    usual = SamplingParams.for_method(params.method)
    names = [name for name in FIELDS if name != "n" and getattr(params, name) != getattr(usual, name)]
    return tuple((name, _shown(getattr(params, name))) for name in names)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _differs(pair: tuple[Model, Model | None], good: Model, bad: Model | None) -> bool:
    """Return whether a corpus was written by another GOOD, or with another BAD."""
    others = (pair[0].fingerprint, pair[1].fingerprint if pair[1] else None)
    return others[0] != good.fingerprint or others[1] not in (None, bad.fingerprint if bad else None)
