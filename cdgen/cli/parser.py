"""The argument parser, and options that several commands share."""

import argparse
import logging
import os
import re
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from cdgen.errors import InputError

log = logging.getLogger("cdgen")
_MOST_THREADS = 1024  # the process aborts if it asks for far more

# What `add_subparsers` returns, and what a command adds itself to.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Align the help of every command at the same column, and keep the line breaks of descriptions and examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)
        self._action_max_length = 26

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap a help text, but neither inside an option's name nor between "(default:" and a one-word value."""
        joined = re.sub(r"\(default: (?=\S+\)$)", "(default:\xa0", " ".join(text.split()))
        return [line.replace("\xa0", " ") for line in textwrap.wrap(joined, width, break_on_hyphens=False)]


class Parser(argparse.ArgumentParser):
    """Raise InputError instead of printing the usage and exiting, so that every error is a single line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **options)
        # Before Python 3.14, argparse accepts -1 and -1.5 as values of an option, but takes -1e39 and -inf for options.
        self._negative_number_matcher = re.compile(
            r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-(inf|infinity|nan)$", re.IGNORECASE
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error of a bad command line.

        Raises:
            InputError: always.
        """
        if "expected one argument" in message:
            message += " (write OPTION=VALUE if the value starts with -)"
        raise InputError(f"{message}; see {self.prog} --help")


def add_command(
    commands: Commands,
    name: str,
    handler: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    check: Callable[[argparse.Namespace], object] | None = None,
    **options: Any,
) -> Parser:
    """Add a command to a parser.

    Args:
        commands: the subparsers that the command is added to.
        name: name of the command.
        handler: carries out the command with its parsed arguments and returns the exit code.
        summary: one line for the list of commands.
        check: checks the arguments without loading a model; raises InputError if the command cannot be carried out, and
            may return what they request, such as a TrainConfig.
        options: further arguments of :class:`Parser`.
    Returns:
        The command's own parser.
    """
    parser = commands.add_parser(name, help=summary, **options)
    add_debug(parser)
    parser.set_defaults(handler=handler, check=check)
    return parser


def add_model_options(
    parser: argparse.ArgumentParser, *, required: bool = True, with_cache: bool = True
) -> argparse._ArgumentGroup:
    """Add the options that choose GOOD, BAD and their dtypes; return their group.

    Args:
        parser: the parser of a command.
        required: whether the command requires GOOD.
        with_cache: add the option for the dtype of the KV cache.
    """
    models = parser.add_argument_group("models")
    models.add_argument(
        "--good",
        required=required,
        metavar="MODEL",
        help="a safetensors folder, a GGUF file, a hub name, or a checkpoint of a training run, such as run@best",
    )
    models.add_argument(
        "--bad",
        metavar="MODEL",
        help="like --good; or dropout:X for GOOD with attention dropout X, or layers:N for GOOD's first N layers; "
        "omit it for methods without contrast",
    )
    add_dtype(models)
    if with_cache:
        models.add_argument(
            "--kv-cache-dtype",
            metavar="DTYPE",
            help="dtype of the KV cache: float32, bfloat16, float16 or fp8 (default: same as --dtype)",
        )
    add_trust_remote_code(models)
    return models


def add_dtype(group: argparse._ActionsContainer) -> None:
    """Add `--dtype`, the dtype of the weights."""
    group.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: float32 on CPUs; on GPUs the checkpoint's 16-bit dtype, "
        "otherwise bfloat16)",
    )


def add_trust_remote_code(group: argparse._ActionsContainer) -> None:
    """Add `--trust-remote-code`."""
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint")


def add_device(group: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    group.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda if available, else cpu)"
    )


def add_switch(group: argparse._ActionsContainer, flag: str, *, help: str, default: bool | str = True) -> None:
    """Add `--flag` and `--no-flag`.

    The help text is set afterwards, because some Python versions append the default to one that is passed in.
    """
    group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default).help = help


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which may stand before or after the command's name."""
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="print the traceback of an error"
    )


def add_quiet(group: argparse._ActionsContainer) -> None:
    """Add `--quiet`."""
    group.add_argument("--quiet", action="store_true", help="print only warnings and errors")


def add_threads(group: argparse._ActionsContainer) -> None:
    """Add `--threads`."""
    group.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="CPU threads (default: one per core, or OMP_NUM_THREADS); fewer are faster if the machine is busy",
    )


def thread_count(text: str) -> int:
    """Return the value of `--threads`."""
    value = int(text)
    if not 1 <= value <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 to {_MOST_THREADS}")
    return value


thread_count.__name__ = "int"  # for argparse's message about a value that is no number


def import_ops() -> None:
    """Import the ops, which loads torch.

    Raises:
        InputError: CDGEN_IMPL has a bad value.
    """
    try:
        import cdgen_kernels  # noqa: F401
    except ValueError as error:
        raise InputError(str(error)) from error


def bytes_of(flag: str, gigabytes: float | None) -> int | None:
    """Return the value of an option that is given in 10^9 bytes, in bytes.

    Raises:
        InputError: it is not a positive number.
    """
    if gigabytes is None:
        return None
    if not 1e-9 <= gigabytes <= 1e9:  # false for NaN
        raise InputError(f"{flag} {gigabytes}: must be more than 0, and at most 1e9")
    return int(gigabytes * 1e9)


def load_ops(threads: int | None = None, device: str | None = None) -> None:
    """Import the ops, which loads torch, and warn if the device has only the slow implementation.

    Args:
        threads: number of CPU threads; default: torch's.
        device: the device that the command was asked to use; default: cuda if available.
    Raises:
        InputError: CDGEN_IMPL has a bad value.
    """
    import_ops()
    import torch

    from cdgen_kernels import implementation

    if threads is not None:
        torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available() and not (device or "").startswith("cpu")
    name, reason = implementation("cuda" if on_gpu else "cpu")
    if name == "reference" and "CDGEN_IMPL" not in os.environ:
        log.warning("the slow reference implementation is used, because %s", reason)
