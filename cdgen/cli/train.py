"""The command `cdgen train`, with an option for every field of TrainConfig. Imports torch only when it runs."""

import argparse
import os
import signal
import sys
from dataclasses import Field
from typing import TYPE_CHECKING, Any, get_args

from cdgen.cli.parser import Commands, add_command, add_quiet, add_threads, load_ops
from cdgen.errors import InputError, escaped
from cdgen.training.config import DTYPES, FIELDS, PRESETS, TrainConfig

if TYPE_CHECKING:
    from cdgen.training.result import TrainingRun

DESCRIPTION = """\
Train a model from scratch on real text, or on a mixture of real and synthetic
text. Rerun the same command after an interruption to resume. To use several
processes: accelerate launch -m cdgen train ..."""

EPILOG = """\
examples:
  cdgen train --corpus corpus --tokenizer tokenizer --out run
  cdgen train --corpus corpus --tokenizer tokenizer --out small \\
      --model tiny --block-size 128 --batch-size 16 --steps 100
  cdgen train --corpus corpus --synthetic synthetic --tokenizer tokenizer --out mixed"""

_REQUIRED = ("corpus", "tokenizer", "out")

# Metavar and help of every field by group; a field that is True or False has no metavar.
_OPTIONS = {
    "data": {
        "corpus": ("PATH", "real text: a folder that cdgen prepare or cdgen generate wrote, or a file of texts"),
        "synthetic": ("PATH", "synthetic corpora, joined into one pool and mixed into every batch"),
        "ratio": (
            "X",
            "share of synthetic rows: int(batch size * X) rows of every batch (default: 0.3 with --synthetic, else 0)",
        ),
        "test": ("PATH", "text to compute perplexity on (default: test.parquet in the folder of --corpus, if any)"),
        "tokenizer": ("FOLDER", "folder of the tokenizer"),
    },
    "model": {
        "model": ("MODEL", f"{', '.join(PRESETS)}, or a transformers config.json or its folder"),
        "dtype": (
            "DTYPE",
            f"dtype of matrix products, {' or '.join(DTYPES)}; weights are always float32 (default: bfloat16 on CUDA "
            "devices, otherwise float32)",
        ),
        "compile": ("", "run the model through torch.compile"),
    },
    "training": {
        "steps": ("N", "number of training steps"),
        "batch_size": ("N", "blocks per step, over all processes"),
        "micro_batch_size": ("N", "blocks that one process computes at once"),
        "block_size": ("N", "tokens per block"),
        "learning_rate": ("X", "peak learning rate of AdamW"),
        "warmup_steps": (
            "N",
            "steps over which the learning rate rises linearly; it then follows a cosine down to 0 (default: 150, or a "
            "tenth of the steps if that is less)",
        ),
        "weight_decay": ("X", "weight decay of AdamW, applied to matrices only"),
        "seed": ("N", "random seed of the initial weights and the order of the data"),
    },
    "output": {
        "out": ("FOLDER", "folder of the run"),
        "save_every": ("N", "steps between checkpoints; each checkpoint is evaluated"),
        "keep_states": (
            "N",
            "number of latest checkpoints that keep the optimizer state, from which training can resume; a state is "
            "twice as large as the model",
        ),
        "eval_blocks": ("N", "number of blocks of the test text to evaluate on; 0 means all"),
        "tensorboard": ("", "also write logs for TensorBoard to the folder tensorboard in the run's folder"),
    },
}


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="train a model on real and synthetic text",
        check=train_config,
        usage="%(prog)s --corpus PATH --tokenizer FOLDER --out FOLDER [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    fields = {field.name: field for field in FIELDS}
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, (metavar, text) in options.items():
            _add_option(group, fields[name], metavar, text)
    add_quiet(group)
    add_threads(group)


def _add_option(group: argparse._ArgumentGroup, field: Field[Any], metavar: str, text: str) -> None:
    """Add the option of a field. If it is not given, the field is absent after parsing."""
    flag, required = f"--{field.name.replace('_', '-')}", field.name in _REQUIRED
    if field.type is bool:
        group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if not required and field.default not in (None, ()):
        text += f" (default: {field.default})"
    group.add_argument(
        flag,
        type=(*get_args(field.type), field.type)[0],
        nargs="+" if field.default == () else None,
        choices=DTYPES if field.name == "dtype" else None,
        required=required,
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=text,
    )


def train_config(args: argparse.Namespace) -> TrainConfig:
    """Return the TrainConfig of parsed options.

    Raises:
        InputError: a value is out of range.
    """
    return TrainConfig(**{field.name: getattr(args, field.name) for field in FIELDS if field.name in args})


def run(args: argparse.Namespace) -> int:
    """Train, and print which checkpoint is the best; return the exit code, 128 + the signal if interrupted."""
    config = train_config(args)
    load_ops(args.threads)
    prints = os.environ.get("RANK", "0") == "0"  # only the first of several processes prints
    try:
        from cdgen.training.trainer import train
    except ImportError as error:
        raise InputError(
            f'{error}; training needs more packages; in a clone of cdgen: pip install ".[train]"'
        ) from error
    from cdgen.training.signals import Interrupted

    try:
        trained = train(config, progress=not args.quiet)
    except KeyboardInterrupt as error:
        if prints:
            state = str(error) or "finished checkpoints are kept"
            print(f"cdgen: interrupted; {state}, rerun the same command to resume", file=sys.stderr)
        return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
    if prints and not args.quiet:
        print(_summary(config, trained))
    return 0


def _summary(config: TrainConfig, trained: "TrainingRun") -> str:
    best = trained.best
    rated = "" if best.perplexity is None else f", perplexity {best.perplexity:.3f}"
    out = escaped(config.out)
    return f"{out}: trained to step {config.steps}; {out}@best is step {best.step}{rated}"
