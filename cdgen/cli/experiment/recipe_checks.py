"""Checks of the tables and keys of a recipe. Those of [experiment] and [bad] have a module of their own."""

import re
from typing import Any

from cdgen.cli.experiment.variant_checks import check_bads, check_experiment, check_values
from cdgen.cli.experiment.variants import REPEATED, Recipe, as_list, methods, uses
from cdgen.errors import InputError

TABLES = ("prepare", "tokenizer", "train", "good", "bad", "generate", "mixed", "experiment", "evaluate", "compare")

_MODEL_KEYS = ("corpus", "tokenizer", "out", "synthetic")
_SET_BY_STAGES = {  # options that cdgen run sets itself, by table
    "prepare": ("out",),
    "tokenizer": ("corpus", "out"),
    "train": (*_MODEL_KEYS, "ratio"),
    "good": (*_MODEL_KEYS, "ratio"),
    "bad": (*_MODEL_KEYS, "ratio"),
    "generate": ("good", "bad", "seeds", "seed_field", "method", "out"),
    "mixed": _MODEL_KEYS,
    "experiment": (),
    "evaluate": ("models", "out"),
    "compare": ("results", "out"),
}
_MOVED = (("generate", "methods"), ("mixed", "ratio"), ("mixed", "seeds"))  # keys that [experiment] has
_REMEDIES = {
    "method": "list the methods in [experiment] methods = [...]",
    "ratio": "set it in [experiment]",
    "good": "choose GOOD's checkpoint with [good] checkpoint",
    "bad": "describe BAD in [bad]",
}


def check_tables(recipe: Recipe, name: str) -> None:
    """Check the names and types of a recipe's tables and keys.

    Args:
        recipe: the parsed file.
        name: the recipe's name for messages.
    Raises:
        InputError: the message names the table and the key.
    """
    unknown = [table for table in recipe if table not in TABLES or not isinstance(recipe[table], dict)]
    if unknown:
        raise InputError(f"{name}: [{unknown[0]}] is not a table of a recipe; use {', '.join(TABLES)}")
    for table, options in recipe.items():
        for key, value in options.items():
            if table == "bad" and isinstance(value, dict):
                for inner, each in value.items():
                    _check_key(f"{name}: [bad.{key}] {inner}", "bad", inner, each)
            else:
                _check_key(f"{name}: [{table}] {key}", table, key, value)
    check_bads(recipe, name)
    check_experiment(recipe, name)
    _check_needed(recipe, name)
    _check_evaluation(name, recipe)
    for source in as_list(recipe["prepare"].get("sources", [])):
        if not isinstance(source, str) or not source or source.startswith("-"):
            raise InputError(f"{name}: [prepare] sources: {source!r} is not a source; list files or folders")
    checkpoint = recipe.get("good", {}).get("checkpoint", "best")
    if checkpoint not in ("best", "latest") and type(checkpoint) is not int:
        raise InputError(f"{name}: [good] checkpoint = {checkpoint!r}: use the number of a step, or best or latest")


def _check_needed(recipe: Recipe, name: str) -> None:
    """Check that the tables that the stages need are there."""
    needed = {
        "prepare": True,
        "generate": methods(recipe) != [REPEATED],
        "bad": any(uses(method, "bad") for method in methods(recipe)),
    }
    for table, is_needed in needed.items():
        if is_needed and not recipe.get(table):
            raise InputError(f"{name}: the table [{table}] is missing or empty")


def _check_key(where: str, table: str, key: str, value: Any) -> None:
    option = key.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", option) or option in ("help", "debug"):
        raise InputError(f"{where}: is not an option of a stage")
    if option == "trust_remote_code":
        raise InputError(f"{where}: cannot be set in a recipe, so that no recipe runs code that comes with a model")
    if option in ("slurm", "slurm_args"):  # these could put commands of others into the scripts of jobs
        raise InputError(
            f"{where}: cannot be set in a recipe, whose stages are finished when their commands end; "
            "run cdgen generate --slurm yourself"
        )
    if (table, option) in _MOVED:
        raise InputError(f"{where}: belongs in [experiment]")
    if option in _SET_BY_STAGES[table]:
        raise InputError(f"{where}: is set by cdgen run itself; {_REMEDIES.get(option, 'remove it')}")
    if option != key:
        raise InputError(f"{where}: write {option}")
    for each in as_list(value):
        if not isinstance(each, str | int | float):
            raise InputError(f"{where} = {each!r}: use a string, a number, true or false")


def _check_evaluation(name: str, recipe: Recipe) -> None:
    """Check what is evaluated."""
    if "evaluate" not in recipe:
        if "compare" in recipe:
            raise InputError(f"{name}: [compare] compares the results of [evaluate]; add that table")
        return
    listed = as_list(recipe["evaluate"].get("tasks", "held_out"))
    check_values(
        f"{name}: [evaluate] tasks",
        listed,
        lambda task: isinstance(task, str) and task != "" and not task.startswith("-"),
        "task",
        "list names, NAME=PATH or task files",
    )
    checkpoint = recipe["evaluate"].get("checkpoint", "best")
    if checkpoint not in ("best", "latest", "all"):
        raise InputError(f"{name}: [evaluate] checkpoint = {checkpoint!r}: use best, latest or all")
