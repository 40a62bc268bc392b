"""The stages of an experiment: commands with the options from a recipe's tables."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cdgen.cli.experiment.stage import Stage
from cdgen.cli.experiment.variants import REAL, Recipe, Table, as_list

TASKS = ("held_out", "entity_tracking", "perplexity")  # default of [evaluate] tasks
TEXT_TASKS = ("held_out", "perplexity")  # tasks that read the test text of the recipe's corpus if they have no path
# Options that are repeated if they have several values.
_REPEATED_OPTIONS = ("stop", "stop_token_ids", "logit_bias", "bad_words")
SWITCHES = ("compile", "tensorboard", "quiet", "overwrite", "split_documents", "parse_special")  # they have no --no-X


def text_stages(tables: Recipe, out: Path) -> Iterator[Stage]:
    """Yield the stages that write the corpus and the tokenizer."""
    corpus = str(out / "corpus")
    prepare = dict(tables["prepare"])
    sources = as_list(prepare.pop("sources", []))
    yield Stage("corpus", ("prepare", *sources, *_options(prepare), "--out", corpus), always=True)
    argv = ("tokenizer", corpus, *_options(tables["tokenizer"]), "--out", str(out / "tokenizer"))
    yield Stage("tokenizer", argv, ("corpus",))


def training(name: str, options: Table, out: Path, mixture: tuple[str, float] | None = None) -> Stage:
    """Return the stage that trains a model.

    Args:
        name: name of the stage.
        options: options of cdgen train.
        out: the folder of the experiment.
        mixture: name of the stage whose corpus is mixed with real text, and its share of each batch.
    """
    mixed = {"synthetic": str(out / mixture[0]), "ratio": mixture[1]} if mixture else {}
    fixed = ("--corpus", str(out / "corpus"), "--tokenizer", str(out / "tokenizer"))
    argv = ("train", *fixed, *_options(options | mixed), "--out", str(out / name))
    inputs = dict.fromkeys(["corpus", "tokenizer", *([mixture[0]] if mixture else [])])
    return Stage(name, argv, tuple(inputs))


def generation(
    name: str, method: str, options: Table, out: Path, models: Sequence[str], inputs: Iterable[str]
) -> Stage:
    """Return the stage that writes a synthetic corpus.

    Args:
        name: name of the stage.
        method: name of the method.
        options: options of cdgen generate.
        out: the folder of the experiment.
        models: GOOD, and BAD if the method contrasts with one, as the command takes them.
        inputs: names of the stages that the models come from.
    """
    good, *bad = models
    fixed = ("generate", "--good", good, *(["--bad", *bad] if bad else []))
    argv = (*fixed, "--seeds", str(out / "corpus" / "seeds.parquet"), "--method", method, *_options(options))
    return Stage(name, (*argv, "--out", str(out / name)), tuple(inputs))


def evaluation(name: str, options: Table, out: Path, models: Sequence[tuple[str, str]]) -> Stage:
    """Return the stage that evaluates models, given as pairs of a label and the name of a stage."""
    options = dict(options)
    tasks, checkpoint = as_list(options.pop("tasks", [*TASKS])), options.pop("checkpoint", "best")
    named = [f"{label}={out / model}@{checkpoint}" for label, model in models]
    found = [f"{task}={out / 'corpus'}" if task in TEXT_TASKS else task for task in tasks]
    argv = ("evaluate", *named, "--tasks", *found, *_options(options), "--out", str(out / name))
    return Stage(name, argv, ("corpus", *(model for _, model in models)), always=not {*tasks} <= {*TASKS})


def comparison(options: Table, out: Path, evaluations: Sequence[str]) -> Stage:
    """Return the stage that compares the results of evaluations, given as the names of their stages."""
    results = [str(out / name) for name in evaluations]
    argv = ("compare", *results, *_options({"baseline": REAL} | options), "--out", str(out / "comparison"))
    return Stage("comparison", argv, tuple(evaluations), always=True)


def _options(table: Table) -> list[str]:
    """Return a table as options: `warmup_steps = 10` is `--warmup-steps 10`; a list gives an option several values."""
    argv = []
    for key, value in table.items():
        flag, values = f"--{key.replace('_', '-')}", [str(each) for each in as_list(value)]
        if value is False and key in SWITCHES:
            continue
        if isinstance(value, bool):
            argv.append(flag if value else flag.replace("--", "--no-", 1))
        elif key in _REPEATED_OPTIONS or any(each.startswith("-") for each in values):
            argv += [f"{flag}={each}" for each in values]
        else:
            argv += [flag, *values]
    return argv
