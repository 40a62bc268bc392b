"""Recipes of `cdgen run`: an experiment as a sequence of cdgen's own commands, its stages.

A recipe is a TOML file. Most tables hold options of a command, with `_` for `-`:

    [prepare]    options of cdgen prepare; sources = [...] are its arguments
    [tokenizer]  options of cdgen tokenizer
    [train]      options of cdgen train for every model
    [good]       more training options for GOOD; checkpoint = N generates with step N instead of the best checkpoint
    [bad]        step = N (an early checkpoint of GOOD), dropout = X, layers = N, or training options for its own run.
                 Several BADs have a table each, [bad.NAME].
    [generate]   options of cdgen generate for every synthetic corpus
    [mixed]      more training options for the models that are compared: one per synthetic corpus, and one on real text
                 alone. If the options and the seed of a model on real text equal GOOD's, GOOD takes its place.
    [evaluate]   options of cdgen evaluate; tasks = [...]; checkpoint = "best", "latest" or "all". Without this table,
                 no model is evaluated.
    [compare]    options of cdgen compare

The table [experiment] says what is compared:

    methods      methods, each of which writes a synthetic corpus; "repeated" is a control without one, which mixes real
                 text with real text
    seeds        seeds; each compared model is trained once per seed
    independent  true: each seed also has a GOOD, a BAD and synthetic corpora of its own
    ratio, contrast_strength, alpha, top_k, top_p, temperature, bad
                 factors: a value, or several, of which the first is the usual one. A factor applies to the methods that
                 use it. bad lists names of tables [bad.NAME]; the default is all of them.
    grid         "one_factor": the other values of a factor are tried with the usual values of all others; "full": all
                 combinations
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from cdgen.cli.experiment import commands
from cdgen.cli.experiment.recipe_checks import TABLES, check_tables
from cdgen.cli.experiment.stage import Stage
from cdgen.cli.experiment.variants import DERIVED_BADS, REAL, REPEATED, Recipe, Table, Variant, bads, seeds, variants
from cdgen.errors import InputError, first_line
from cdgen.training.config import DEFAULT_RATIO, FIELDS, MAY_CHANGE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

RECIPES = Path(__file__).parents[2] / "recipes"
PRESETS = ("tiny", "icelandic-small", "small", "paper")
_SEED = next(field.default for field in FIELDS if field.name == "seed")


def read_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe and return its tables by name.

    Args:
        name: one of :data:`PRESETS`, or the path of a TOML file.
    Raises:
        InputError: there is no such recipe, it is not TOML, or a table or key cannot be used.
    """
    path = RECIPES / f"{name}.toml" if name in PRESETS else Path(name)
    try:
        recipe: Recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such recipe; give a TOML file or one of {', '.join(PRESETS)}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{name or repr(name)}: cannot be read as TOML: {reason}") from error
    check_tables(recipe, str(name))
    return recipe


def stages(recipe: Recipe, out: str | os.PathLike[str]) -> list[Stage]:
    """Return the stages of a recipe in the order in which they run.

    The stages of a seed follow those of the seed before, so that the first results appear early.

    Args:
        recipe: the tables, as :func:`read_recipe` returns them.
        out: the folder that holds one folder per stage.
    """
    plan = _Plan(recipe, Path(out))
    for stage in commands.text_stages(plan.tables, plan.out):
        plan.add(stage)
    evaluations = []
    for seed in (*seeds(recipe),) or (None,):
        models = plan.add_models(seed)
        if "evaluate" in recipe:
            name = f"evaluation{plan.suffix(seed)}"
            evaluations.append(plan.add(commands.evaluation(name, plan.tables["evaluate"], plan.out, models)))
    if evaluations:
        plan.add(commands.comparison(plan.tables["compare"], plan.out, evaluations))
    return list(plan.stages.values())


def _weights(options: Table) -> Table:
    """Return the training options that affect the weights."""
    return {"seed": _SEED} | {name: value for name, value in options.items() if name not in MAY_CHANGE}


class _Plan:
    """The stages of a recipe, by name. Stages that several seeds or variants share are planned once."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.tables = {table: dict(recipe.get(table, {})) for table in TABLES}
        self.out = out
        self.stages: dict[str, Stage] = {}
        self._checkpoint = self.tables["good"].pop("checkpoint", "best")
        self._bads = bads(recipe)
        self._variants = list(variants(recipe))
        self._names_seeds = "seeds" in self.tables["experiment"]
        self._independent = self.tables["experiment"].get("independent", False)

    def add(self, stage: Stage) -> str:
        """Plan a stage, unless it is planned already; return its name."""
        planned = self.stages.setdefault(stage.name, stage)
        assert planned == stage, f"two stages are named {stage.name}"
        return stage.name

    def suffix(self, seed: int | None) -> str:
        """Return the end of the names of stages that depend on the seed, so that seeds can be added to a list later."""
        return f"-seed{seed}" if self._names_seeds else ""

    def add_models(self, seed: int | None) -> list[tuple[str, str]]:
        """Plan all that a seed needs; return the labels of the compared models and the names of their stages."""
        seeded = {} if seed is None else {"seed": seed}
        own, suffix = (seeded, self.suffix(seed)) if self._independent else ({}, "")
        good = self.tables["train"] | self.tables["good"] | own
        real = self.add(commands.training(f"good{suffix}", good, self.out))
        found_bads = {name: self._add_bad(name, own, suffix) for name in self._used_bads()}
        corpora = {each.label: self._add_corpus(each, own, suffix, found_bads) for each in self._variants}
        options = self.tables["train"] | self.tables["mixed"] | seeded
        if _weights(options) != _weights(good):
            real = self.add(commands.training(f"model-{REAL}{self.suffix(seed)}", options, self.out))
        found = [(REAL, real)]
        for each in self._variants:
            name = f"model-{each.label}{self.suffix(seed)}"
            mixture = corpora[each.label], each.values.get("ratio", DEFAULT_RATIO)
            found.append((each.label, self.add(commands.training(name, options, self.out, mixture))))
        return found

    def _used_bads(self) -> list[str]:
        """Return the names of the BADs that the variants use."""
        return list(dict.fromkeys(each.bad for each in self._variants if each.bad is not None))

    def _add_bad(self, name: str, own: Table, suffix: str) -> tuple[str, str]:
        """Plan a BAD, unless it is made from GOOD; return the value of `--bad`, and the stage that BAD comes from."""
        table = self._bads[name]
        if "step" in table:
            return f"{self.out / f'good{suffix}'}@{table['step']}", f"good{suffix}"
        for kind in DERIVED_BADS:
            if kind in table:
                return f"{kind}:{table[kind]}", f"good{suffix}"
        stage = f"bad-{name}{suffix}" if name else f"bad{suffix}"
        self.add(commands.training(stage, self.tables["train"] | table | own, self.out))
        return f"{self.out / stage}@best", stage

    def _add_corpus(self, variant: Variant, own: Table, suffix: str, found_bads: Mapping[str, tuple[str, str]]) -> str:
        """Plan the synthetic corpus of a variant; return the name of its stage."""
        if variant.method == REPEATED:
            return "corpus"
        models, inputs = [f"{self.out / f'good{suffix}'}@{self._checkpoint}"], [f"good{suffix}"]
        if variant.bad is not None:
            bad, stage = found_bads[variant.bad]
            models.append(bad)
            inputs.append(stage)
        options = self.tables["generate"] | variant.sampling | own
        name = f"corpus-{variant.corpus}{suffix}"
        return self.add(commands.generation(name, variant.method, options, self.out, models, dict.fromkeys(inputs)))
