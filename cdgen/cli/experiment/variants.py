"""The table [experiment] of a recipe: the methods that are compared, and the variants of each that its factors give."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from cdgen.engine.sampling_params import METHODS

Table: TypeAlias = dict[str, Any]
Recipe: TypeAlias = Mapping[str, Table]

REAL = "real"  # label of the models on real text alone, the baseline
REPEATED = "repeated"  # a control: real text takes the place of the synthetic corpus
DEFAULT_METHODS = ("ancestral", "contrastive")
SAMPLING_FACTORS = ("contrast_strength", "alpha", "top_k", "top_p", "temperature")
# BAD is the last part of a label: its name may hold hyphens.
FACTORS = ("ratio", *SAMPLING_FACTORS, "bad")
GRIDS = ("one_factor", "full")
DERIVED_BADS = ("step", "dropout", "layers")  # keys of [bad] for a BAD that is made from GOOD


@dataclass(frozen=True)
class Variant:
    """A method with a value of each factor: what one compared model is trained on.

    Attributes:
        method: name of the method, or :data:`REPEATED`.
        values: value of each factor that the recipe sets and the method uses.
        usual: the usual value of each of them.
    """

    method: str
    values: Mapping[str, Any]
    usual: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The method, and the values that are not the usual ones, such as "contrastive-alpha0.05-bad-small"."""
        return self._label(FACTORS)

    @property
    def corpus(self) -> str:
        """The label of the synthetic corpus, which variants share if they differ only in the ratio."""
        return self._label(FACTORS[1:])

    @property
    def bad(self) -> str | None:
        """The name of BAD, which is "" if the recipe has only one; None for a method without contrast."""
        return self.values.get("bad", "") if uses(self.method, "bad") else None

    @property
    def sampling(self) -> Table:
        """The options of cdgen generate that the factors set."""
        return {name: self.values[name] for name in SAMPLING_FACTORS if name in self.values}

    def _label(self, factors: tuple[str, ...]) -> str:
        changed = [name for name in factors if name in self.values and self.values[name] != self.usual[name]]
        parts = [f"bad-{self.values[name]}" if name == "bad" else f"{name}{self.values[name]}" for name in changed]
        return "-".join([self.method, *(part.removesuffix(".0") for part in parts)])


def methods(recipe: Recipe) -> list[str]:
    """Return the methods of a recipe."""
    return as_list(recipe.get("experiment", {}).get("methods", [*DEFAULT_METHODS]))


def seeds(recipe: Recipe) -> list[int]:
    """Return the seeds of the compared models; empty if the recipe lists none."""
    found: list[int] = recipe.get("experiment", {}).get("seeds", [])
    return found


def bads(recipe: Recipe) -> dict[str, Table]:
    """Return the tables of BADs by name. The only BAD of a table without names has the name ""."""
    table = recipe.get("bad", {})
    return table if any(isinstance(value, dict) for value in table.values()) else {"": table}


def levels(recipe: Recipe) -> dict[str, list[Any]]:
    """Return the values of the factors that a recipe sets, the usual one first."""
    table = recipe.get("experiment", {})
    named = [name for name in bads(recipe) if name]
    found = {"bad": named} if named else {}
    found |= {name: as_list(table[name]) for name in FACTORS if name in table}
    return {name: found[name] for name in FACTORS if name in found}


def uses(method: str, factor: str) -> bool:
    """Return whether a factor changes what a method does."""
    if factor == "ratio" or method == REPEATED:
        return factor == "ratio"
    defined = METHODS[method]
    if factor in ("bad", "contrast_strength"):
        return defined.get("contrast_strength") != 0
    if factor == "alpha":
        return defined.get("alpha") != 0
    return factor in defined or factor == "temperature"


def variants(recipe: Recipe) -> Iterator[Variant]:
    """Yield the variants of a recipe, method by method: the one with the usual values first."""
    for method in methods(recipe):
        own = {name: values for name, values in levels(recipe).items() if uses(method, name)}
        if method == REPEATED:  # whatever the ratio, all text is real
            own = {name: values[:1] for name, values in own.items()}
        usual = {name: values[0] for name, values in own.items()}
        if recipe.get("experiment", {}).get("grid", GRIDS[0]) == "full":
            for combination in product(*own.values()):
                yield Variant(method, dict(zip(own, combination, strict=True)), usual)
            continue
        yield Variant(method, usual, usual)
        for name, values in own.items():
            for value in values[1:]:
                yield Variant(method, usual | {name: value}, usual)


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]
