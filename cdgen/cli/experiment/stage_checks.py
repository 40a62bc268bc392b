"""Checks of the stages of a recipe before they run, so that no mistake surfaces after hours of training."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cdgen.cli.experiment.stage import Stage
from cdgen.cli.experiment.variants import FACTORS, Recipe, bads
from cdgen.cli.generate import Request, check_request
from cdgen.cli.train import train_config
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.training.config import PRESETS, TrainConfig, config_folder, preset_shape, split_batch
from cdgen.values import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cdgen.evaluation.tasks import Task
    from cdgen.prepare.sources import Source


_TABLES = {"train": ("mixed", "good", "bad", "train")}  # tables of a command that has several


def check_stages(
    planned: Sequence[Stage], recipe: Recipe, name: str, parse: Callable[[Sequence[str]], argparse.Namespace]
) -> None:
    """Check the options of every stage, the tasks, and whether later stages will find the checkpoints that they need.

    Args:
        planned: all stages.
        recipe: the tables that they were planned from.
        name: the recipe's name for messages.
        parse: parses a command line of `cdgen`.
    Raises:
        InputError: the message names the stage or the key.
    """
    configs: dict[str, TrainConfig] = {}
    labels: dict[str, None] = {}  # the evaluated models; they are the same for each seed
    if "evaluate" in recipe:
        _check_package(name)
    for stage in planned:
        try:
            args = parse(stage.argv)
            checked: Any = args.check(args) if args.check else None
        except InputError as error:
            reason = _wrong_key(recipe, stage.argv[0], str(error)) or f"stage {stage.name}: {error}"
            raise InputError(f"{name}: {reason}") from error
        if isinstance(checked, TrainConfig):
            configs[stage.name] = checked
            _check_model(f"{name}: stage {stage.name}", checked)
        if isinstance(checked, Request):
            _check_positions(f"{name}: stage {stage.name}", checked, _good(configs))
        if stage.argv[0] == "prepare":
            _check_sources(name, checked)
            if not args.seeds:
                raise InputError(
                    f"{name}: [prepare] seeds = {args.seeds:g}: leaves no seeds to continue; use more than 0"
                )
        if stage.argv[0] == "evaluate" and not labels:
            _check_tasks(name, checked, parse(planned[0].argv))
            labels = dict.fromkeys(model.partition("=")[0] for model in args.models)
        if stage.argv[0] == "compare":
            _check_comparison(name, args, list(labels))
    _check_good_and_bads(name, recipe, _good(configs))
    _check_mixtures(name, configs)


def _wrong_key(recipe: Recipe, command: str, message: str) -> str | None:
    """Return what is wrong with the key of a table that a command line rejects, or None if it is not about a key."""
    words = message.partition("unrecognized arguments: ")[2].partition(";")[0].split()
    tables = {table: recipe.get(table, {}) for table in _TABLES.get(command, (command,))}
    if "bad" in tables:
        tables |= {f"bad.{bad}" if bad else "bad": table for bad, table in bads(recipe).items()}
    for table, options in tables.items():
        for key, value in options.items():
            flag = f"--{key.replace('_', '-')}"
            if any(word.partition("=")[0] in (flag, flag.replace("--", "--no-", 1)) for word in words):
                return f"[{table}] {key}: is not an option of cdgen {command}"
            if isinstance(value, list) and words and words == [str(each) for each in value[-len(words) :]]:
                remedy = "; list several in [experiment]" if key in FACTORS else ""
                return f"[{table}] {key} = {value}: takes one value{remedy}"
    return None


def _good(configs: Mapping[str, TrainConfig]) -> TrainConfig:
    """Return the config of GOOD, or of one of several that differ only in the seed."""
    return next(config for stage, config in configs.items() if stage.partition("-")[0] == "good")


def _check_good_and_bads(name: str, recipe: Recipe, good: TrainConfig) -> None:
    """Check that GOOD saves the checkpoints, and has the layers, that the recipe asks for."""
    checkpoint = recipe.get("good", {}).get("checkpoint")
    _check_checkpoint(f"{name}: [good] checkpoint", checkpoint, good)
    available = _model_value(good, "num_hidden_layers", f"{name}: stage good")
    seen: list[tuple[str, Any]] = []
    for bad, table in bads(recipe).items():
        if twin := next((name for name, other in seen if other == table), None):
            raise InputError(f"{name}: [bad.{bad}] and [bad.{twin}] are the same BAD; remove one")
        seen.append((bad, table))
        where = f"{name}: [bad.{bad}]" if bad else f"{name}: [bad]"
        _check_checkpoint(f"{where} step", table.get("step"), good)
        last = good.steps if checkpoint is None or isinstance(checkpoint, str) else checkpoint
        if "step" in table and table["step"] >= last:
            raise InputError(f"{where} step = {table['step']}: is not earlier than GOOD; choose an earlier checkpoint")
        if "layers" in table and available is not None and table["layers"] >= available:
            raise InputError(f"{where} layers = {table['layers']}: must be less than the {available} layers of GOOD")


def _check_mixtures(name: str, configs: Mapping[str, TrainConfig]) -> None:
    """Check that no two ratios give the same number of synthetic rows: their models would be equal."""
    found: dict[tuple[Any, ...], TrainConfig] = {}
    for config in configs.values():
        if not config.synthetic or config.ratio is None:
            continue
        rows = split_batch(config.batch_size, config.ratio)[1]
        twin = found.setdefault((config.synthetic, config.seed, rows), config)
        if twin is not config:
            raise InputError(
                f"{name}: [experiment] ratio: with {twin.ratio:g} and with {config.ratio:g}, {rows} of the "
                f"{config.batch_size} rows of a batch are synthetic; choose other ratios, or raise batch_size"
            )


def _check_comparison(name: str, args: argparse.Namespace, labels: Sequence[str]) -> None:
    """Check that the baseline is one of the compared models, and that `resamples` suffices for their number."""
    from cdgen.evaluation.comparison.compare import check_resolution

    if args.baseline not in labels:
        raise InputError(f"{name}: [compare] baseline = {args.baseline!r}: use one of {', '.join(labels)}")
    try:
        check_resolution(len(labels) - 1, args.resamples, args.confidence)
    except InputError as error:
        raise InputError(f"{name}: [compare] {error}") from error


def _check_sources(name: str, sources: Sequence["Source"]) -> None:
    """Check that the files of the corpus exist."""
    from cdgen.prepare.sources import files

    try:
        for source in sources:
            files(source)
    except InputError as error:
        raise InputError(f"{name}: [prepare]: {error}") from error


def _check_package(name: str) -> None:
    """Raise InputError if the package of the extra `eval` is missing."""
    if find_spec("jinja2") is None:
        raise InputError(f'{name}: [evaluate] needs jinja2; in a clone of cdgen: pip install ".[eval]"')


def _check_tasks(name: str, tasks: Sequence["Task"], prepare: argparse.Namespace) -> None:
    """Check the items of tasks, or that there will be test text for those that read the recipe's corpus."""
    for task in tasks:
        if task.path != prepare.out:
            _check_items(name, task)
        elif not prepare.test:
            raise InputError(
                f"{name}: [prepare] test = 0: leaves no text for the task {task.name}; use more than 0, or name a text "
                f"with {task.name}=PATH"
            )


def check_results(planned: Sequence[Stage], parse: Callable[[Sequence[str]], argparse.Namespace]) -> None:
    """Check that the results hold no scores that the recipe does not ask for: they would be compared, too.

    Args:
        planned, parse: see :func:`check_stages`.
    Raises:
        InputError: it does, for example because a seed or a task was removed from the recipe.
    """
    from cdgen.evaluation import results
    from cdgen.evaluation.models import parse_models

    for args in (parse(stage.argv) for stage in planned if stage.argv[0] == "evaluate"):
        tasks, models = args.check(args), parse_models(args.models)
        expected = {results.scores_name(model.entry(""), task.name) for model in models for task in tasks}
        # Scores of all checkpoints of a run stay valid if some of the checkpoints are deleted.
        whole_runs = parse_models([model for model in args.models if model.endswith("@all")])
        any_step = {(model.label, model.seed, task.name) for model in whole_runs for task in tasks}
        for entry in results.read(args.out):
            if entry.name not in expected and (entry.label, entry.seed, entry.task["name"]) not in any_step:
                raise InputError(
                    f"{args.out}: holds {entry.name}, which the recipe does not ask for; delete this folder and rerun"
                )


def _check_items(name: str, task: "Task") -> None:
    """Raise InputError if the items of a task cannot be read or made."""
    from cdgen.evaluation.forms import form

    try:
        form(task.form).items(task)
    except InputError as error:
        raise InputError(f"{name}: [evaluate] tasks: {error}") from error


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
    if config.test is not None and not expanded(config.test).exists():
        raise InputError(f"{where}: test = {config.test}: no such file or folder")


def _check_positions(where: str, request: Request, config: TrainConfig) -> None:
    """Raise InputError if a continuation would be longer than GOOD allows."""
    limit = _model_value(config, "max_position_embeddings", where)
    prefix, new = request.reading["prefix_tokens"], request.params.max_tokens
    if limit is not None and new and (prefix or 1) + new > limit:
        longer = f"{prefix} tokens of a seed and max_tokens = {new} exceed" if prefix else f"max_tokens = {new} exceeds"
        raise InputError(f"{where}: {longer} the {limit} positions of GOOD")


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


def check_texts(planned: Sequence[Stage], name: str, parse: Callable[[Sequence[str]], argparse.Namespace]) -> None:
    """Check what depends on the corpus and the tokenizer, once they exist and before a model is trained.

    Args:
        planned, name, parse: see :func:`check_stages`.
    Raises:
        InputError: a task gives no items, no seed is left, a seed is too long for GOOD, or a model's vocabulary is too
            small.
    """
    from cdgen.models.tokenizers import load_tokenizer
    from cdgen.models.vocabulary import vocabulary_size

    parsed = {stage.name: parse(stage.argv) for stage in planned}
    configs = {each: train_config(args) for each, args in parsed.items() if args.command == "train"}
    tokenizer = load_tokenizer(_good(configs).tokenizer)
    entries = vocabulary_size(tokenizer)
    for each, config in configs.items():
        size = None if config.model in PRESETS else _model_value(config, "vocab_size", each)
        if size is not None and size < entries:
            raise InputError(
                f"{name}: stage {each}: the model {config.model} has a vocabulary of {size}, but the tokenizer has "
                f"{entries} entries; raise vocab_size in its config.json, or lower [tokenizer] vocab_size"
            )
    evaluation = next((args for args in parsed.values() if args.command == "evaluate"), None)
    for task in evaluation.check(evaluation) if evaluation else ():
        if task.path == parsed["corpus"].out:
            _check_items(name, task)
    generation = next((args for args in parsed.values() if args.command == "generate"), None)
    if generation:  # all corpora continue the same seeds, with the same options
        request = check_request(generation)
        _check_token_ids(name, request.params, entries)
        _check_seeds(name, generation.seeds, request, tokenizer, _good(configs))


def _check_token_ids(name: str, params: SamplingParams, entries: int) -> None:
    """Raise InputError if an option of cdgen generate names a token that the tokenizer does not have."""
    for key, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", dict(params.logit_bias))):
        if wrong := [token for token in ids if token >= entries]:
            raise InputError(
                f"{name}: [generate] {key}: {wrong[0]} is out of range; the tokenizer has {entries} tokens"
            )


def _check_seeds(
    name: str, paths: list[str], request: Request, tokenizer: "PreTrainedTokenizerBase", good: TrainConfig
) -> None:
    """Raise InputError if there are no seeds to continue, or if one is too long for GOOD."""
    from cdgen.corpus.seeds import encode_texts, read_texts
    from cdgen.engine.prompts import prompt_ids

    limit, new = _model_value(good, "max_position_embeddings", "good"), request.params.max_tokens
    reading = request.reading
    try:
        texts, _ = read_texts(paths, field=reading["field"], chunk_words=reading["chunk_words"])
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
