"""The command `cdgen`: the parser with all commands, and the exit codes of errors."""

import argparse
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from cdgen import __version__
from cdgen.cli import (
    bench,
    compare,
    corpus,
    corpus_stats,
    demo,
    evaluate,
    generate,
    info,
    models,
    plan,
    prepare,
    report,
    run,
    show,
    tokenizer,
    train,
)
from cdgen.cli.parser import Parser, add_debug
from cdgen.errors import CorpusError, InputError, first_line, printable
from cdgen.training.signals import Interrupted

COMMANDS = (
    generate, show, prepare, tokenizer, train, models, evaluate, compare, corpus, corpus_stats, run, report, plan,
    bench, demo, info,
)  # fmt: skip
# Commands that only print, or print last: it is no error if the reader of a pipe stops early.
_REPORTS = ("info", "models", "plan", "compare", "corpus-stats", "report", "show")
_RESUMABLE = ("generate", "train", "evaluate", "run", "demo")  # a rerun keeps what an interrupted one has finished
DESCRIPTION = """\
Fast contrastive decoding with two language models, and a pipeline that turns it
into synthetic training corpora."""
# Library arguments that messages recommend, and the command-line options that replace them in the message.
OPTIONS = {
    "resume=False": "--no-resume",
    "overwrite=True": "--overwrite",
    "data=FOLDER": "--data FOLDER",
    "split_by='document'": "--split-by document",
    "generate_corpus(field=NAME)": "--seed-field NAME",
    "split_documents=True": "--split-documents",
    "prefix_tokens": "--prefix-tokens",
    "stop_token_ids": "--stop-token-ids",
    "logit_bias: ": "--logit-bias: ",
    "bad_words: ": "--bad-words: ",
    "shard_size": "--shard-size",
    "batch_tokens": "--batch-tokens",
    "baseline=LABEL": "--baseline LABEL",
    "chunk_words": "--chunk-words",
    "gpus = ": "--gpus = ",
    "dtype='float32'": "--dtype float32",
    "convention='babylm'": "--convention babylm",
    "kv_cache_memory_bytes": "--kv-cache-gb",
    "max_num_seqs": "--batch-size",
    "trust_remote_code=True": "--trust-remote-code",
    "another checkpoint or layers=": "another checkpoint or --bad layers:N",
    "beside GOOD, or pass tokenizer=": "beside GOOD",
    "if the difference is padding, pass tokenizer=": "if the difference is padding, put their tokenizer beside GOOD",
    "pass tokenizer=, or token ids": "put one beside GOOD",
    "pass tokenizer=": "put one beside GOOD",
}


def build_parser() -> Parser:
    """Return the parser of the whole command line; parsed arguments hold it as `parser`."""
    parser = Parser(
        prog="cdgen", description=DESCRIPTION, epilog="Run 'cdgen COMMAND --help' for the options of a command."
    )
    version = f"cdgen {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    add_debug(parser)
    commands = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND", parser_class=Parser
    )
    for command in COMMANDS:
        command.add(commands)
    parser.set_defaults(parser=parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; None for those of this process.
    Returns:
        The exit code: 0 for success, 1 for a folder or disk that cannot be used or an error that cdgen did not expect,
        2 for a request that cannot be carried out, 130 after Ctrl-C, 143 after SIGTERM, 141 if the reader of the output
        closes the pipe before the work is done.
    """
    _set_up_output()
    args: argparse.Namespace | None = None
    signals = _Signals()
    try:
        with signals:
            args = build_parser().parse_args(argv)
            signals.command = args.command
            return _flushed(int(args.handler(args)))
    except BrokenPipeError:
        _discard_output()
        return 0 if args is not None and args.command in _REPORTS else 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        return _interrupted(number, signals.command)
    except Exception as error:
        if signals.number:
            return _interrupted(signals.number, signals.command)
        if os.environ.get("CDGEN_DEBUG") or getattr(args, "debug", False):
            traceback.print_exc()
        message, code = _message_and_code(error)
        print(f"cdgen: error: {printable(_with_options(message))}", file=sys.stderr)
        return code


class _Signals:
    """Context in which SIGINT and SIGTERM raise Interrupted, unless the caller handles or ignores them.

    Attributes:
        number: the last signal that arrived, or 0. The code that it interrupts may raise another error instead.
        command: name of the command that runs, or "" while its arguments are parsed.
    """

    def __init__(self) -> None:
        self.number, self.command = 0, ""
        self._replaced: dict[signal.Signals, Any] = {}  # handlers to restore

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # only that thread may set handlers
            return
        for one, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(one) == default:
                self._replaced[one] = signal.signal(one, self._interrupt)

    def __exit__(self, *error: object) -> None:
        for one, handler in self._replaced.items():
            signal.signal(one, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        self.number = number
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                # torch aborts if an exception is raised while it is imported.
                os._exit(_interrupted(number, self.command))
            frame = frame.f_back
        raise Interrupted(number, "finished checkpoints are kept")


def _interrupted(number: int, command: str) -> int:
    """Report that a signal ended a command; return the exit code."""
    kept = "; finished work is kept, rerun the same command to resume" if command in _RESUMABLE else ""
    print(f"cdgen: interrupted{kept}", file=sys.stderr)
    return 128 + number


def _message_and_code(error: Exception) -> tuple[str, int]:
    """Return what to print for an error, and the exit code."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, CorpusError):
        return str(error), 1
    if isinstance(error, OSError) and error.strerror:  # a file that exists but cannot be read or written
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return f"{name or 'input or output'}: {error.strerror}", 1
    if isinstance(error, MemoryError):
        return "out of memory", 1
    return f"unexpected {type(error).__name__}: {first_line(error)}; add --debug for the traceback", 1


def _set_up_output() -> None:
    """Print warnings as single lines, and escape characters that the encoding of a stream lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter("cdgen: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _flushed(code: int) -> int:
    """Flush the output of a finished command, and return its exit code even if the pipe is closed (`... | head`)."""
    try:
        if sys.stdout is not None:  # it is None if the process was started without one
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    return code


def _discard_output() -> None:
    """Redirect standard output to the null device, because the interpreter flushes it again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Handler(logging.StreamHandler):
    """Write to the current sys.stderr, which a progress bar replaces so that lines appear above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(_with_options(super().format(record)))


def _with_options(message: str) -> str:
    """Return a message of the library in the words of the command line."""
    for argument, option in OPTIONS.items():
        message = message.replace(argument, option)
    return message
