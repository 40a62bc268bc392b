"""The models that manifests name, loaded to score corpora and to explain documents."""

from typing import TYPE_CHECKING, Any, TypeAlias

from cdgen.errors import CorpusError, InputError
from cdgen.models.bad import parse_bad
from cdgen.report.local_models import local_source
from cdgen.report.names import Names

if TYPE_CHECKING:
    from cdgen.engine.llm import ContrastiveLM

ModelEntry: TypeAlias = dict[str, str]  # "name" and "fingerprint", as in the manifest of a corpus


class Loader:
    """Loads pairs of models. The latest pair is kept, and no other.

    Args:
        names: what names in manifests stand for.
        device, dtype: see :class:`cdgen.ContrastiveLM`.
    """

    def __init__(self, names: Names, device: str | None, dtype: str | None) -> None:
        self._names, self._options = names, {"device": device, "dtype": dtype}
        self._sources: tuple[str, str | None] | None = None
        self._latest: ContrastiveLM | None = None

    def __call__(self, good: ModelEntry, bad: ModelEntry | None) -> "ContrastiveLM":
        """Return GOOD and BAD, as a manifest names them.

        Raises:
            InputError: a model is not on this machine, has changed since the manifest was written, or does not load.
        """
        first = self._names.model(good)
        second = self._names.model(bad, first) if bad else None
        sources = first.source, second.source if second else None
        if self._sources != sources:
            self._sources = self._latest = None  # frees the memory before other models are loaded
            try:
                self._latest = _load(*sources, self._options)
            except (CorpusError, OSError) as error:
                raise InputError(str(error)) from error
            self._sources = sources
        assert self._latest is not None, "it was just loaded"
        pair = self._latest.pair
        for loaded, model in ((pair.good, first), (pair.bad, second)):
            if loaded is not None and model is not None and loaded.fingerprint != model.fingerprint:
                raise InputError(f"{model.name}: has changed since it was used; restore it")
        return self._latest


def _load(good: str, bad: str | None, options: dict[str, Any]) -> "ContrastiveLM":
    from cdgen.engine.llm import ContrastiveLM

    arguments = parse_bad(bad) if bad else {}
    if "bad" in arguments:
        arguments["bad"] = local_source(arguments["bad"])
    return ContrastiveLM(local_source(good), **arguments, **options)
