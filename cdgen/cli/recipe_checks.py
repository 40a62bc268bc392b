"""Checks of the tables and keys of a recipe."""

import re
from typing import TYPE_CHECKING, Any

from cdgen.engine.sampling_params import METHODS
from cdgen.errors import InputError

if TYPE_CHECKING:
    from cdgen.cli.recipe import Recipe, Table

TABLES = ("prepare", "tokenizer", "train", "good", "bad", "generate", "mixed", "evaluate", "compare")
DERIVED_BADS = ("step", "dropout", "layers")  # keys of [bad] for a BAD that is made from GOOD

_MODEL_KEYS = ("corpus", "tokenizer", "out", "synthetic")
_SET_BY_STAGES = {  # options that cdgen run sets itself, by table
    "prepare": ("out",),
    "tokenizer": ("corpus", "out"),
    "train": (*_MODEL_KEYS, "ratio"),
    "good": (*_MODEL_KEYS, "ratio"),
    "bad": (*_MODEL_KEYS, "ratio"),
    "generate": ("good", "bad", "seeds", "seed_field", "method", "out"),
    "mixed": _MODEL_KEYS,
    "evaluate": ("models", "out"),
    "compare": ("results", "out"),
}
_REMEDIES = {
    "method": "list the methods in [generate] methods = [...]",
    "ratio": "set it in [mixed]",
    "good": "choose GOOD's checkpoint with [good] checkpoint",
    "bad": "describe BAD in [bad]",
}


def check_tables(recipe: "Recipe", name: str) -> None:
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
    for table in ("prepare", "generate", "bad"):
        if not recipe.get(table):
            raise InputError(f"{name}: the table [{table}] is missing or empty")
    for table, options in recipe.items():
        for key, value in options.items():
            _check_key(f"{name}: [{table}] {key}", table, key, value)
    _check_methods(f"{name}: [generate] methods", recipe["generate"].get("methods"))
    _check_bad(f"{name}: [bad]", recipe["bad"])
    _check_seeds(name, recipe)
    _check_evaluation(name, recipe)
    sources = recipe["prepare"].get("sources", [])
    for source in [sources] if not isinstance(sources, list) else sources:
        if not isinstance(source, str) or not source or source.startswith("-"):
            raise InputError(f"{name}: [prepare] sources: {source!r} is not a source; list files or folders")
    checkpoint = recipe.get("good", {}).get("checkpoint", "best")
    if checkpoint not in ("best", "latest") and type(checkpoint) is not int:
        raise InputError(f"{name}: [good] checkpoint = {checkpoint!r}: use the number of a step, or best or latest")


def _check_key(where: str, table: str, key: str, value: Any) -> None:
    option = key.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", option) or option in ("help", "debug"):
        raise InputError(f"{where}: is not an option of a stage")
    if option == "trust_remote_code":
        raise InputError(f"{where}: cannot be set in a recipe, so that no recipe runs code that comes with a model")
    if option in _SET_BY_STAGES[table]:
        remedy = _REMEDIES.get(option, "remove it")
        raise InputError(f"{where}: is set by cdgen run itself; {remedy}")
    if option != key:
        raise InputError(f"{where}: write {option}")
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, str | int | float):
            raise InputError(f"{where} = {each!r}: use a string, a number, true or false")


def _check_methods(where: str, methods: Any) -> None:
    if methods is None:
        return
    listed = methods if isinstance(methods, list) else [methods]
    wrong = next((method for method in listed if method not in METHODS), None)
    if not listed or wrong is not None:
        found = "none" if wrong is None else repr(wrong)
        raise InputError(f"{where}: {found} is not a method; list some of {', '.join(METHODS)}")
    if len(set(listed)) < len(listed):
        raise InputError(f"{where}: lists a method twice")


def _check_bad(where: str, table: "Table") -> None:
    kinds = [key for key in DERIVED_BADS if key in table]
    if kinds and len(table) > 1:
        other = next(key for key in table if key != kinds[0])
        raise InputError(f"{where}: {kinds[0]} and {other} do not go together; {kinds[0]} makes BAD from GOOD")
    if kinds and (isinstance(table[kinds[0]], bool) or not isinstance(table[kinds[0]], int | float)):
        raise InputError(f"{where} {kinds[0]} = {table[kinds[0]]!r}: must be a number")
    if "dropout" in table and not 0 < table["dropout"] < 1:
        raise InputError(f"{where} dropout = {table['dropout']}: must be between 0 and 1, such as 0.3")
    if "layers" in table and (type(table["layers"]) is not int or table["layers"] < 1):
        raise InputError(f"{where} layers = {table['layers']}: must be a whole number, 1 or more")


def _check_seeds(name: str, recipe: "Recipe") -> None:
    """Check the seeds that the compared models are trained with."""
    seeds = recipe.get("mixed", {}).get("seeds")
    if seeds is None:
        return
    where, listed = f"{name}: [mixed] seeds", seeds if isinstance(seeds, list) else [seeds]
    wrong = [seed for seed in listed if type(seed) is not int]
    if not listed or wrong:
        raise InputError(f"{where}: {repr(wrong[0]) if wrong else 'none'} is not a seed; list whole numbers")
    if len(set(listed)) < len(listed):
        raise InputError(f"{where}: lists a seed twice")
    for table in ("mixed", "train"):
        if "seed" in recipe.get(table, {}):
            raise InputError(f"{where}: does not go together with [{table}] seed; set GOOD's seed in [good]")


def _check_evaluation(name: str, recipe: "Recipe") -> None:
    """Check what is evaluated."""
    if "evaluate" not in recipe:
        if "compare" in recipe:
            raise InputError(f"{name}: [compare] compares the results of [evaluate]; add that table")
        return
    tasks = recipe["evaluate"].get("tasks", "held_out")
    listed = tasks if isinstance(tasks, list) else [tasks]
    wrong = [task for task in listed if not isinstance(task, str) or not task or task.startswith("-")]
    if not listed or wrong:
        found = repr(wrong[0]) if wrong else "none"
        raise InputError(f"{name}: [evaluate] tasks: {found} is not a task; list names, NAME=PATH or task files")
    if len(set(listed)) < len(listed):
        raise InputError(f"{name}: [evaluate] tasks: lists a task twice")
    checkpoint = recipe["evaluate"].get("checkpoint", "best")
    if checkpoint not in ("best", "latest", "all"):
        raise InputError(f"{name}: [evaluate] checkpoint = {checkpoint!r}: use best, latest or all")
