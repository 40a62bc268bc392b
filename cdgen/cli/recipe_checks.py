"""Checks of a recipe before its first stage runs, so that no mistake in it surfaces after hours of training."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgen.cli.generate import Request, check_request
from cdgen.cli.train import train_config
from cdgen.engine.sampling_params import METHODS
from cdgen.errors import InputError
from cdgen.training.config import PRESETS, TrainConfig, config_folder, preset_shape

if TYPE_CHECKING:
    from cdgen.cli.recipe import Recipe, Stage, Table

TABLES = ("prepare", "tokenizer", "train", "good", "bad", "generate", "mixed")
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


def check_stages(
    planned: Sequence["Stage"], recipe: "Recipe", name: str, parse: Callable[[Sequence[str]], argparse.Namespace]
) -> None:
    """Check the options of every stage, and whether later stages find the checkpoints that they need.

    Args:
        planned: all stages.
        recipe: the tables that they were planned from.
        name: the recipe's name for messages.
        parse: parses a command line of `cdgen`.
    Raises:
        InputError: the message names the stage or the key.
    """
    configs: dict[str, TrainConfig] = {}
    for stage in planned:
        try:
            args = parse(stage.argv)
            checked = args.check(args) if args.check else None
        except InputError as error:
            raise InputError(f"{name}: stage {stage.name}: {error}") from error
        if isinstance(checked, TrainConfig):
            configs[stage.name] = checked
            _check_model(f"{name}: stage {stage.name}", checked)
        if isinstance(checked, Request):
            _check_positions(f"{name}: stage {stage.name}", checked, configs["good"])
        if stage.argv[0] == "prepare" and not args.seeds:
            raise InputError(f"{name}: [prepare] seeds = {args.seeds:g}: leaves no seeds to continue; use more than 0")
    _check_checkpoint(f"{name}: [good] checkpoint", recipe.get("good", {}).get("checkpoint"), configs["good"])
    _check_checkpoint(f"{name}: [bad] step", recipe["bad"].get("step"), configs["good"])
    if "step" in recipe["bad"] and recipe["bad"]["step"] == recipe.get("good", {}).get("checkpoint"):
        raise InputError(f"{name}: [bad] step = {recipe['bad']['step']}: is GOOD itself; choose an earlier checkpoint")
    if not recipe.get("mixed", {}).get("ratio", 0.3):
        raise InputError(f"{name}: [mixed] ratio = 0: no model would be trained on a synthetic corpus")
    layers = recipe["bad"].get("layers")
    available = _model_value(configs["good"], "num_hidden_layers", f"{name}: stage good")
    if layers is not None and available is not None and layers >= available:
        raise InputError(f"{name}: [bad] layers = {layers}: must be less than the {available} layers of GOOD")


def _check_checkpoint(where: str, step: Any, config: TrainConfig) -> None:
    """Raise InputError if `step` is a number but training does not save a checkpoint there."""
    if not isinstance(step, int | float):
        return
    if type(step) is not int or not 0 < step <= config.steps or (step % config.save_every and step != config.steps):
        raise InputError(
            f"{where} = {step}: GOOD saves no such checkpoint; it saves one every {config.save_every} steps "
            f"(save_every) up to step {config.steps}"
        )


def _check_model(where: str, config: TrainConfig) -> None:
    """Raise InputError if there is no such model or test text, or if the model has fewer positions than a block."""
    positions = _model_value(config, "max_position_embeddings", where)
    if positions is not None and positions < config.block_size:
        raise InputError(f"{where}: block_size = {config.block_size}: the model has {positions} positions")
    if config.test is not None and not Path(config.test).expanduser().exists():
        raise InputError(f"{where}: test = {config.test}: no such file or folder")


def _check_positions(where: str, request: Request, config: TrainConfig) -> None:
    """Raise InputError if a continuation would be longer than GOOD allows."""
    limit = _model_value(config, "max_position_embeddings", where)
    new = request.params.max_tokens
    if limit is not None and new and (request.reading["prefix_tokens"] or 1) + new > limit:
        raise InputError(f"{where}: max_tokens = {new} exceeds the {limit} positions of GOOD")


def _model_value(config: TrainConfig, key: str, where: str) -> int | None:
    """Return a number of a model's architecture, or None if its config does not state it."""
    if config.model in PRESETS:
        return preset_shape(config)[key]
    from cdgen.models.configs import load_config

    try:
        stated = getattr(load_config(config_folder(config.model)).get_text_config(), key, None)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return stated if type(stated) is int else None


def check_texts(planned: Sequence["Stage"], name: str, parse: Callable[[Sequence[str]], argparse.Namespace]) -> None:
    """Check what depends on the corpus and the tokenizer, once they are there and before a model is trained.

    Args:
        planned, name, parse: see :func:`check_stages`.
    Raises:
        InputError: no seed is left, a seed is too long for GOOD, or a model's vocabulary is too small.
    """
    from cdgen.corpus.seeds import encode_texts, read_texts
    from cdgen.engine.prompts import prompt_ids
    from cdgen.models.tokenizers import load_tokenizer
    from cdgen.models.vocabulary import vocabulary_size

    parsed = {stage.name: parse(stage.argv) for stage in planned}
    configs = {each: train_config(args) for each, args in parsed.items() if args.command == "train"}
    tokenizer = load_tokenizer(configs["good"].tokenizer)
    entries = vocabulary_size(tokenizer)
    for each, config in configs.items():
        size = None if config.model in PRESETS else _model_value(config, "vocab_size", each)
        if size is not None and size < entries:
            raise InputError(
                f"{name}: stage {each}: the model {config.model} has a vocabulary of {size}, but the tokenizer has "
                f"{entries} entries; raise vocab_size in its config.json, or lower [tokenizer] vocab_size"
            )
    args = next(args for args in parsed.values() if args.command == "generate")  # all methods continue the same seeds
    request = check_request(args)
    limit, new = _model_value(configs["good"], "max_position_embeddings", "good"), request.params.max_tokens
    reading = request.reading
    try:
        texts, _ = read_texts(args.seeds, field=reading["field"], chunk_words=reading["chunk_words"])
        encode_texts(
            texts,
            lambda text, seed: prompt_ids(
                tokenizer, tokenizer.bos_token_id, text, seed, parse_special=reading["parse_special"]
            ),
            prefix_tokens=reading["prefix_tokens"],
            longest=None if limit is None else limit - (new or 1),
        )
    except InputError as error:
        raise InputError(f"{name}: [generate]: {error}") from error
