"""The argument parser, and options that several commands share."""

import argparse

from cdgen.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage and exit, so that every error is one line alike."""

    def error(self, message):
        raise InputError(f"{message}; see {self.prog} --help")


def add_model_options(parser):
    models = parser.add_argument_group("models")
    models.add_argument("--good", required=True, help="a folder, a GGUF file, or a hub name")
    models.add_argument(
        "--bad", help="the same, or dropout:0.3, or layers:12 (GOOD itself, changed); none for plain sampling"
    )
    models.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 (default: float32 on the CPU; on a GPU the checkpoint's 16-bit dtype, "
        "otherwise bfloat16)",
    )
    models.add_argument("--kv-cache-dtype", metavar="DTYPE", help="dtype of the cache (default: that of the models)")
    models.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint")
    return models


def load_ops():
    """Import the ops, slow as torch is; what they find wrong with CDGEN_IMPL is the user's to mend."""
    try:
        import cdgen_kernels.ops  # noqa: F401
    except ValueError as error:
        raise InputError(str(error)) from error
