"""Checks of what a recipe compares: its tables [experiment] and [bad]."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from cdgen.cli.experiment.variants import (
    DERIVED_BADS,
    FACTORS,
    GRIDS,
    REPEATED,
    Recipe,
    Table,
    as_list,
    bads,
    methods,
    seeds,
    uses,
    variants,
)
from cdgen.engine.sampling_params import METHODS
from cdgen.errors import InputError

_KEYS = ("methods", "seeds", "independent", "grid", *FACTORS)
_NAME = re.compile(r"[a-z0-9][\w-]{0,39}", re.IGNORECASE | re.ASCII)  # names of BADs


def check_bads(recipe: Recipe, name: str) -> None:
    """Check the table [bad], or the tables [bad.NAME].

    Raises:
        InputError: the message names the table and the key.
    """
    found = bads(recipe)
    for bad, table in found.items():
        where = f"{name}: [bad.{bad}]" if bad else f"{name}: [bad]"
        if not isinstance(table, dict):
            raise InputError(f"{name}: [bad] {bad}: does not go together with tables [bad.NAME]; put it into one")
        if bad and not _NAME.fullmatch(bad):
            raise InputError(f"{where}: name it with at most 40 letters, digits and _-; a letter or digit comes first")
        if bad and not table:
            raise InputError(f"{where}: the table is empty")
        _check_bad(where, table)


def _check_bad(where: str, table: Table) -> None:
    """Check a BAD."""
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


def check_experiment(recipe: Recipe, name: str) -> None:
    """Check the table [experiment].

    Raises:
        InputError: the message names the key.
    """
    where, table = f"{name}: [experiment]", recipe.get("experiment", {})
    for key in table:
        if key not in _KEYS:
            raise InputError(f"{where} {key}: is not a key of this table; use {', '.join(_KEYS)}")
    known = (*METHODS, REPEATED)
    check_values(f"{where} methods", methods(recipe), known.__contains__, "method", f"list some of {', '.join(known)}")
    for factor in FACTORS:
        if factor in table:
            _check_factor(f"{where} {factor}", factor, recipe)
    grid = table.get("grid", GRIDS[0])
    if grid not in GRIDS:
        raise InputError(f"{where} grid = {grid!r}: use {' or '.join(GRIDS)}")
    if not isinstance(table.get("independent", False), bool):
        raise InputError(f"{where} independent = {table['independent']!r}: use true or false")
    _check_seeds(recipe, where)
    _check_labels(recipe, where)


def check_values(where: str, values: Sequence[Any], is_one: Callable[[Any], bool], noun: str, remedy: str) -> None:
    """Check a list of a recipe.

    Args:
        where: recipe, table and key, for messages.
        values: the list.
        is_one: returns whether a value may be in the list.
        noun: what one value is called.
        remedy: what to do if another value is listed.
    Raises:
        InputError: the list is empty, or a value is of another kind or occurs twice.
    """
    wrong = [value for value in values if not is_one(value)]
    if not values or wrong:
        raise InputError(f"{where}: {f'{wrong[0]!r} is not a {noun}' if wrong else 'is empty'}; {remedy}")
    if any(value in values[:at] for at, value in enumerate(values)):
        raise InputError(f"{where}: lists a {noun} twice")


def _check_factor(where: str, factor: str, recipe: Recipe) -> None:
    """Check the values of a factor, and that it changes something."""
    values = as_list(recipe["experiment"][factor])
    if factor == "bad":
        named = [bad for bad in bads(recipe) if bad]
        check_values(where, values, named.__contains__, "BAD", "list names of tables [bad.NAME]")
    else:
        check_values(where, values, _is_number, "number", "give a number, or list several")
    if factor == "ratio" and 0 in values:
        raise InputError(f"{where} = 0: is real text alone, which is always compared; use more than 0")
    if factor in recipe.get("generate", {}):
        raise InputError(f"{where}: is also set in [generate]; keep one of the two")
    if not any(uses(method, factor) for method in methods(recipe)):
        raise InputError(f"{where}: is used by none of the methods ({', '.join(methods(recipe))}); remove it")


def _check_seeds(recipe: Recipe, where: str) -> None:
    """Check the seeds, and that no other table sets what they set."""
    table = recipe.get("experiment", {})
    independent = table.get("independent", False)
    if "seeds" not in table:
        if independent:
            raise InputError(f"{where} independent: needs seeds; list them in seeds = [...]")
        return
    if not isinstance(table["seeds"], list):
        raise InputError(f"{where} seeds = {table['seeds']!r}: is not a list; list them, such as seeds = [42, 43]")
    check_values(f"{where} seeds", seeds(recipe), lambda seed: type(seed) is int, "seed", "list whole numbers")
    for key in ("mixed", "train", *(("good", "generate") if independent else ())):
        if "seed" in recipe.get(key, {}):
            remedy = "set GOOD's seed in [good]" if key == "train" and not independent else "remove it"
            raise InputError(f"{where} seeds: does not go together with [{key}] seed; {remedy}")
    for bad, options in bads(recipe).items():
        if independent and "seed" in options:
            raise InputError(f"{where} independent: does not go together with [bad{bad and f'.{bad}'}] seed; remove it")


def _check_labels(recipe: Recipe, where: str) -> None:
    """Check that the methods with their values can be labels, which are also names of folders."""
    from cdgen.evaluation.models import LABEL

    for variant in variants(recipe):
        if not LABEL.fullmatch(variant.label):
            raise InputError(
                f"{where}: {variant.label} cannot be a label, which has at most 100 letters, digits and ._-; shorten "
                "the name of the BAD, or use other numbers"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
