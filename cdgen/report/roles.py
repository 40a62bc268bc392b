"""What models are used for: they are GOOD or BAD of generated corpora, or they are evaluated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdgen.report.names import Model, Names
from cdgen.report.parts import Part, of_kind
from cdgen.storage import manifest as manifests
from cdgen.wording import joined


@dataclass(frozen=True)
class Use:
    """A use of a model; see :class:`cdgen.report.content.Role`."""

    model: Model
    kind: str
    text: str
    label: str = ""


def pair_of(part: Part, names: Names) -> tuple[Model, Model | None]:
    """Return GOOD and BAD of a generated corpus."""
    models = part.manifest["models"]
    good = names.model(models["good"])
    return good, names.model(models["bad"], good) if models["bad"] else None


def find_uses(parts: Sequence[Part], names: Names) -> list[Use]:
    """Return the uses of all models. A model has one use as GOOD and one as BAD, which name all its corpora."""
    corpora: dict[tuple[str, str, str], tuple[Model, list[str]]] = {}
    for part in of_kind(parts, manifests.GENERATED):
        for role, model in zip(("GOOD", "BAD"), pair_of(part, names), strict=True):
            if model is not None:
                # The source of a BAD that is made from GOOD, such as "dropout:0.3", does not say which GOOD.
                key = role, model.source, model.fingerprint
                corpora.setdefault(key, (model, []))[1].append(part.name)
    found = [
        Use(model, role, f"{role} of {joined(written)}{_at(model)}") for (role, *_), (model, written) in corpora.items()
    ]
    return found + list(_evaluated(parts, names))


def _evaluated(parts: Sequence[Part], names: Names) -> Iterator[Use]:
    """Yield the models that were evaluated, each checkpoint once."""
    seen = set()
    for part in of_kind(parts, manifests.RESULTS):
        for result in part.manifest["results"]:
            entry: Mapping[str, Any] = result["model"]
            model = names.model({"name": entry["name"], "fingerprint": entry["fingerprint"]})
            seed = "" if entry["seed"] is None else f", seed {entry['seed']}"
            use = Use(model, "", f"evaluated{_at(model)} as {entry['label']}{seed}", entry["label"])
            if use.text not in seen:
                seen.add(use.text)
                yield use


def _at(model: Model) -> str:
    return "" if model.run is None or model.step is None else f" at step {model.step}"
