"""Ablations: compared methods that differ in one factor, while everything else is equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cdgen.errors import CorpusError
from cdgen.evaluation.comparison.data import Comparison
from cdgen.report.content import Ablation, Level
from cdgen.report.corpora import params_of
from cdgen.report.names import Model, Names
from cdgen.report.parts import Part, find_part
from cdgen.report.replications import SEED
from cdgen.report.roles import pair_of
from cdgen.storage import manifest as manifests

RATIO, METHOD, STRENGTH, ALPHA, BAD = "mixing ratio", "method", "contrast strength", "alpha", "kind of BAD"
FACTORS = (RATIO, METHOD, STRENGTH, ALPHA, BAD)
_OWN_CONFIG = ("corpus", "tokenizer", "test", "model", "synthetic", "ratio", "seed")  # inputs, factors, the seed
_REPEATED = "real text, repeated"  # the method of models that mix real text with itself
_OWN_PARAMS = ("alpha", "contrast_strength", "top_k", "top_p", "outside_head", "seed")

Value: TypeAlias = "str | float | None"  # None: the factor, or setting, does not apply


@dataclass(frozen=True)
class _Setting:
    """How a method's models were made: the factors, and everything else that has to be equal, by name."""

    factors: dict[str, Value]
    rest: dict[str, Value]

    def others(self, factor: str) -> dict[str, Value]:
        """Return all values but that of one factor."""
        return {name: value for name, value in (self.factors | self.rest).items() if name != factor}


def find_ablations(comparison: Comparison, names: Names) -> tuple[Ablation, ...]:
    """Return the ablations in a comparison, from its training runs and the corpora that they were trained on.

    A factor that does not apply to a method, such as the contrast strength of plain sampling, counts as equal. The
    baseline without synthetic text is a level of the mixing ratio, 0.

    Args:
        comparison: the comparison.
        names: what names in manifests stand for.
    """
    settings: dict[str, _Setting] = {}
    for method in comparison.methods:
        runs = {
            (run.seed or 0, run.model.rpartition("@")[0])
            for result in comparison.results
            if result.method == method.method
            for run in result.runs
        }
        setting = _shared([_setting(name, names) for _, name in sorted(runs)])
        if setting is not None:
            settings[method.method] = setting
    return tuple(ablation for factor in FACTORS for ablation in _of_factor(factor, settings, comparison))


def _of_factor(factor: str, settings: Mapping[str, _Setting], comparison: Comparison) -> list[Ablation]:
    """Return the groups of methods that differ in a factor."""
    effects = {one.method: one.mean_relative_change for one in comparison.methods}
    others = {label: one.others(factor) for label, one in settings.items() if one.factors[factor] is not None}
    found = []
    for equal in _most_specific(list(others.values())):
        labels = [label for label, values in others.items() if _fits(values, equal)]
        if factor in (RATIO, STRENGTH, ALPHA):
            labels.sort(key=lambda label: _order(settings[label].factors[factor]))
        levels = [Level(_shown(settings[label].factors[factor]), label, effects[label]) for label in labels]
        if len({level.value for level in levels if (factor, level.value) != (RATIO, "0")}) < 2:
            continue
        stated = tuple((name, _shown(equal[name])) for name in FACTORS if equal.get(name) is not None)
        found.append(Ablation(factor, stated, tuple(levels)))
    return found


def _order(value: Value) -> tuple[bool, float]:
    """Return a key that sorts numbers, and puts text, such as "1.0 + 0.5" for a mixture of two corpora, after them."""
    return (True, 0.0) if value is None or isinstance(value, str) else (False, value)


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _most_specific(keys: Sequence[dict[str, Value]]) -> list[dict[str, Value]]:
    """Return the distinct sets of values that no other one completes."""
    distinct = [key for at, key in enumerate(keys) if key not in keys[:at]]
    return [key for key in distinct if not any(other != key and _fits(key, other) for other in distinct)]


def _fits(values: Mapping[str, Value], equal: Mapping[str, Value]) -> bool:
    """Return whether the values that apply to a method are those of the group."""
    return all(value is None or value == equal.get(name) for name, value in values.items())


def _shared(found: Sequence[_Setting | None]) -> _Setting | None:
    """Return how all models of a method were made; None if that is not known, or if they differ in a factor.

    Replications have a GOOD and corpora of their own. What differs between them is listed in the order of their seeds,
    so that it is equal to that of another method with the same replications.
    """
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    factors = {name: _common([one.factors[name] for one in known]) for name in FACTORS}
    if any(value == "" for value in factors.values()):
        return None
    values = {name: [one.rest.get(name) for one in known] for one in known for name in one.rest}
    rest = {name: each[0] if len({*each}) == 1 else " | ".join(map(str, each)) for name, each in values.items()}
    return _Setting(factors, rest)


def _common(values: Sequence[Value]) -> Value:
    """Return the value that is the same in all replications, apart from their seeds; "" if there is none."""
    if len({*values}) == 1:
        return values[0]
    distinct = {SEED.sub("", value) if isinstance(value, str) else value for value in values}
    return distinct.pop() if len(distinct) == 1 else ""


def _setting(name: str, names: Names) -> _Setting | None:
    """Return how a model was made; None if it does not come from a training run that can be read."""
    run = _part(name, manifests.RUN, names)
    if run is None:
        return None
    config, inputs = run.manifest["config"], run.manifest["inputs"]
    rest: dict[str, Value] = {name: str(value) for name, value in config.items() if name not in _OWN_CONFIG}
    rest |= {f"content of {name}": str(value) for name, value in inputs.items() if name != "synthetic"}
    ratio, corpora = config.get("ratio"), config.get("synthetic") or ()
    made: list[_Setting | None]
    if corpora and inputs.get("synthetic") == inputs.get("corpus"):
        made = [_Setting({name: _REPEATED if name == METHOD else None for name in FACTORS[1:]}, {})]
    else:
        parts = [_part(str(name), manifests.GENERATED, names) for name in corpora]
        made = [_generation(part, names) for part in parts if part is not None]
    if not isinstance(ratio, int | float) or len(made) < len(corpora) or None in made:
        return None
    values = [each for each in made if each is not None]
    factors = {name: _joined([each.factors[name] for each in values]) for name in FACTORS[1:]}
    for name in dict.fromkeys(name for each in values for name in each.rest):
        rest[f"generation: {name}"] = _joined([each.rest.get(name) for each in values])
    return _Setting({RATIO: float(ratio), **factors}, rest)


def _part(name: str, kind: str, names: Names) -> Part | None:
    """Return what a manifest names, wherever it is now; None if it is gone, damaged or of another kind."""
    try:
        part = find_part(names.path(name), name) if name else None
    except (CorpusError, OSError):
        return None
    return part if part is not None and part.kind == kind else None


def _generation(corpus: Part, names: Names) -> _Setting | None:
    """Return how a corpus was generated, without the mixing ratio."""
    params = params_of(corpus)
    if params is None:
        return None
    good, bad = pair_of(corpus, names)
    usual = type(params).for_method(params.method)
    changed = [name for name in ("top_k", "top_p", "outside_head") if getattr(params, name) != getattr(usual, name)]
    suffix = "".join(f", {name} {getattr(params, name)}" for name in changed)
    factors: dict[str, Value] = {
        METHOD: params.method + suffix,
        STRENGTH: params.contrast_strength or None,
        ALPHA: params.alpha or None,
        BAD: _kind_of_bad(good, bad, corpus.manifest["models"]["bad"]["name"]) if bad else None,
    }
    rest: dict[str, Value] = {name: str(value) for name, value in vars(params).items() if name not in _OWN_PARAMS}
    return _Setting(factors, rest | {"GOOD": good.fingerprint, "seeds": corpus.manifest["seeds"]["fingerprint"]})


def _kind_of_bad(good: Model, bad: Model, stated: str) -> str:
    """Return what kind of BAD a model is, given the name that it was loaded by."""
    kind, _, value = bad.rule.partition(":")
    if kind:
        return f"attention dropout {float(value):g}" if kind == "dropout" else f"first {value} layers of GOOD"
    same_run = bad.source.rpartition("@")[0] == good.source.rpartition("@")[0] != ""
    if same_run:
        return f"step {bad.source.rpartition('@')[2]} of GOOD's run"
    return f"{bad.run.name}@{stated.rpartition('@')[2]}" if bad.run and "@" in stated else bad.name


def _joined(values: Sequence[Any]) -> Value:
    """Return the value of several corpora that were mixed: the one that they share, or all."""
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    if not distinct:
        return None
    only: Value = distinct[0]
    return only if len(distinct) == 1 else " + ".join(map(str, distinct))
