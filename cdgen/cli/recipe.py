"""Recipes of `cdgen run`: an experiment as a sequence of cdgen's own commands, its stages.

A recipe is a TOML file. Each table holds options of a command, with `_` for `-`:

    [prepare]    options of cdgen prepare; sources = [...] are its arguments
    [tokenizer]  options of cdgen tokenizer
    [train]      options of cdgen train for every model
    [good]       more training options for GOOD; checkpoint = N generates with step N instead of the best checkpoint
    [bad]        step = N (an early checkpoint of GOOD), dropout = X, layers = N, or training options for its own run
    [generate]   options of cdgen generate; methods = [...] writes one corpus per method
    [mixed]      more training options for the models that are compared: one per synthetic corpus, and one on real text
                 alone; seeds = [...] trains each of them once per seed. If the options and the seed of a model on real
                 text equal GOOD's, GOOD takes its place.
    [evaluate]   options of cdgen evaluate; tasks = [...]; checkpoint = "best", "latest" or "all". Without this table,
                 no model is evaluated.
    [compare]    options of cdgen compare
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from cdgen.cli.recipe_checks import DERIVED_BADS, TABLES, check_tables
from cdgen.cli.stages import Stage
from cdgen.errors import InputError, first_line
from cdgen.training.config import FIELDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

RECIPES = Path(__file__).parents[1] / "recipes"
PRESETS = ("tiny", "small", "paper")
TASKS = ("held_out", "entity_tracking", "perplexity")  # default of [evaluate] tasks
TEXT_TASKS = ("held_out", "perplexity")  # tasks that read the test text of the recipe's corpus if they have no path
# Options that are repeated if they have several values.
_REPEATED = ("stop", "stop_token_ids", "logit_bias", "bad_words")
SWITCHES = ("compile", "tensorboard", "quiet", "overwrite", "split_documents", "parse_special")  # they have no --no-X
_SEED = next(field.default for field in FIELDS if field.name == "seed")

Table: TypeAlias = dict[str, Any]
Recipe: TypeAlias = Mapping[str, Table]


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

    Args:
        recipe: the tables, as :func:`read_recipe` returns them.
        out: the folder that holds one folder per stage.
    """
    out = Path(out)
    tables = {table: dict(recipe.get(table, {})) for table in TABLES}
    checkpoint = tables["good"].pop("checkpoint", "best")
    methods = _as_list(tables["generate"].pop("methods", ["ancestral", "contrastive"]))

    found = [*_text_stages(tables, out), _training("good", tables["train"] | tables["good"], out)]
    bad = _derived_bad(tables["bad"], out)
    if bad is None:
        found.append(_training("bad", tables["train"] | tables["bad"], out))
    for method in methods:
        found.append(_generation(method, tables["generate"], out, f"{out / 'good'}@{checkpoint}", bad))
    compared = list(_compared(tables, methods, out))
    found += [stage for _, stage in compared if stage.name != "good"]
    if "evaluate" in recipe:
        found.append(_evaluation(tables["evaluate"], [(label, stage.name) for label, stage in compared], out))
        fixed = ("compare", str(out / "evaluation"), *_options({"baseline": "real"} | tables["compare"]))
        argv = (*fixed, "--out", str(out / "comparison"))
        found.append(Stage("comparison", argv, ("evaluation",), always=True))
    return found


def _text_stages(tables: Recipe, out: Path) -> Iterator[Stage]:
    """Yield the stages that write the corpus and the tokenizer."""
    corpus = str(out / "corpus")
    prepare = dict(tables["prepare"])
    sources = _as_list(prepare.pop("sources", []))
    yield Stage("corpus", ("prepare", *sources, *_options(prepare), "--out", corpus), always=True)
    argv = ("tokenizer", corpus, *_options(tables["tokenizer"]), "--out", str(out / "tokenizer"))
    yield Stage("tokenizer", argv, ("corpus",))


def _derived_bad(table: Table, out: Path) -> str | None:
    """Return the value of `--bad` for a BAD that is derived from GOOD, or None for one that is trained by itself."""
    if "step" in table:
        return f"{out / 'good'}@{table['step']}"
    return next((f"{kind}:{table[kind]}" for kind in DERIVED_BADS if kind in table), None)


def _generation(method: str, options: Table, out: Path, good: str, bad: str | None) -> Stage:
    """Return the stage that writes the synthetic corpus of a method; `bad` is None if BAD has a stage of its own."""
    contrast = ("--bad", bad or f"{out / 'bad'}@best") if method.startswith("contrastive") else ()
    seeds = ("--seeds", str(out / "corpus" / "seeds.parquet"))
    fixed = ("generate", "--good", good, *contrast, *seeds, "--method", method)
    name = f"corpus-{method}"
    argv = (*fixed, *_options(options), "--out", str(out / name))
    return Stage(name, argv, ("good",) if bad else ("good", "bad"))


def _training(name: str, options: Table, out: Path, synthetic: str | None = None) -> Stage:
    """Return the stage that trains a model; `synthetic` is the name of the stage of a synthetic corpus."""
    fixed = ("--corpus", str(out / "corpus"), "--tokenizer", str(out / "tokenizer"))
    argv = ("train", *fixed, *_options(options), "--out", str(out / name))
    return Stage(name, argv, ("corpus", "tokenizer", *([synthetic] if synthetic else [])))


def _compared(tables: Recipe, methods: list[str], out: Path) -> Iterator[tuple[str, Stage]]:
    """Yield the label and the stage of each model that is compared; the stage is GOOD's if GOOD takes its place."""
    mixed = dict(tables["mixed"])
    ratio, seeds = mixed.pop("ratio", 0.3), _as_list(mixed.pop("seeds", []))
    good = tables["train"] | tables["good"]
    for label in ("real", *methods):
        for seeded in [{"seed": seed} for seed in seeds] or [{}]:
            options = tables["train"] | mixed | seeded
            name = f"model-{label}-seed{seeded['seed']}" if len(seeds) > 1 else f"model-{label}"
            if label != "real":
                mixture = {"synthetic": [str(out / f"corpus-{label}")], "ratio": ratio}
                yield label, _training(name, options | mixture, out, f"corpus-{label}")
            else:
                is_good = {"seed": _SEED} | options == {"seed": _SEED} | good
                yield label, _training("good" if is_good else name, options, out)


def _evaluation(options: Table, models: list[tuple[str, str]], out: Path) -> Stage:
    """Return the stage that evaluates models, given as pairs of a label and the name of a stage."""
    options = dict(options)
    tasks, checkpoint = _as_list(options.pop("tasks", [*TASKS])), options.pop("checkpoint", "best")
    named = [f"{label}={out / name}@{checkpoint}" for label, name in models]
    found = [f"{task}={out / 'corpus'}" if task in TEXT_TASKS else task for task in tasks]
    argv = ("evaluate", *named, "--tasks", *found, *_options(options), "--out", str(out / "evaluation"))
    return Stage("evaluation", argv, ("corpus", *(name for _, name in models)), always=not {*tasks} <= {*TASKS})


def _options(table: Table) -> list[str]:
    """Return a table as options: `warmup_steps = 10` is `--warmup-steps 10`; a list gives an option several values."""
    argv = []
    for key, value in table.items():
        flag, values = f"--{key.replace('_', '-')}", [str(each) for each in _as_list(value)]
        if value is False and key in SWITCHES:
            continue
        if isinstance(value, bool):
            argv.append(flag if value else flag.replace("--", "--no-", 1))
        elif key in _REPEATED or any(each.startswith("-") for each in values):
            argv += [f"{flag}={each}" for each in values]
        else:
            argv += [flag, *values]
    return argv


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
