"""The commands `cdgen train`, with an option for every field of TrainConfig, and `cdgen models`. No torch here."""

import argparse
import os
import signal
import sys
from typing import get_args

from cdgen.errors import InputError
from cdgen.training.config import DTYPES, FIELDS, PRESETS, TrainConfig

_HELP = {
    "corpus": "real text: a prepared folder, one that cdgen generate wrote, or a file of texts",
    "tokenizer": "folder of the tokenizer",
    "out": "the run's folder; the same command again goes on where it stopped",
    "synthetic": "corpora joined into one pool and mixed into every batch",
    "ratio": "int(batch size * ratio) rows of every batch are synthetic (default: 0.3 with --synthetic, else 0)",
    "test": "text for perplexity (default: test.parquet beside train.parquet, if any)",
    "model": f"{', '.join(PRESETS)}, or a folder or config.json of transformers",
    "batch_size": "blocks of a step, over all processes",
    "micro_batch_size": "blocks that a process computes at once",
    "block_size": "tokens of a block",
    "steps": "to train",
    "warmup_steps": "of the learning rate; after them it goes to 0 along a cosine",
    "learning_rate": "of AdamW",
    "weight_decay": "of AdamW, on matrices",
    "save_every": "steps between checkpoints, each with an evaluation",
    "keep_states": "so many of the last checkpoints can be resumed from; a state is twice as large as the model",
    "eval_blocks": "blocks of the test text to evaluate on; 0: all",
    "dtype": "dtype of matrix products; weights are always float32 (default: bfloat16 on CUDA devices, else float32)",
    "seed": "of weights and data order",
    "compile": "run the model through torch.compile",
    "tensorboard": "also log for TensorBoard, into OUT/tensorboard",
}


def add(commands):
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser(
        "train",
        help="train a model on real and synthetic text",
        description="Train a model from scratch. Several processes: accelerate launch -m cdgen train ...",
    )
    for field in FIELDS:
        flag, required = f"--{field.name.replace('_', '-')}", field.name in ("corpus", "tokenizer", "out")
        shown = "" if required or field.default in (None, (), False) else f" (default: {field.default})"
        options = {"help": _HELP[field.name] + shown, "required": required, "default": argparse.SUPPRESS}
        if field.type is bool:
            parser.add_argument(flag, action="store_true", **options)
        else:
            kind = (*get_args(field.type), field.type)[0]
            options["nargs"] = "+" if field.default == () else None
            choices = DTYPES if field.name == "dtype" else None
            parser.add_argument(flag, type=kind, choices=choices, metavar=None if choices else "X", **options)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


def run(args):
    """Train, and say where the best checkpoint is."""
    config = TrainConfig(**{field.name: getattr(args, field.name) for field in FIELDS if field.name in args})
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun or accelerate started
    try:
        from cdgen.training.trainer import train
    except ImportError as error:
        raise InputError(f'{error}; training needs more packages: pip install "cdgen[train]"') from error
    from cdgen.storage import runs
    from cdgen.storage.progress import choose
    from cdgen.training.signals import Interrupted

    progress = choose(args.quiet or not first, "steps", "to train")
    try:
        trained = train(config, progress)
    except KeyboardInterrupt as error:
        if first:
            why = str(error) or "finished checkpoints are kept"
            print(f"cdgen: interrupted; {why}, and the same command goes on from there", file=sys.stderr)
        return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
    finally:
        progress.close()
    if first and not args.quiet:
        best = runs.best(trained["checkpoints"])
        rated = "" if best["perplexity"] is None else f", perplexity {best['perplexity']:.3f}"
        print(f"{config.out}: trained to step {config.steps}; {config.out}@best is step {best['step']}{rated}")
    return 0
