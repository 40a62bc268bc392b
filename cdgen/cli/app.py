"""The command `cdgen`: the parser with all commands, and the exit codes of errors."""

import logging
import sys
from collections.abc import Sequence

from cdgen import __version__
from cdgen.cli import demo, generate, info, models, plan, prepare, run, tokenizer, train
from cdgen.cli.parser import Parser
from cdgen.errors import CorpusError, InputError, printable

COMMANDS = (generate, prepare, tokenizer, train, models, run, plan, demo, info)
DESCRIPTION = """\
Fast contrastive decoding with two language models, and a pipeline that turns it
into synthetic training corpora."""
# Library arguments that messages recommend, and the command-line options that replace them in the message.
OPTIONS = {
    "resume=False": "--no-resume",
    "overwrite=True": "--overwrite",
    "data=FOLDER": "--data FOLDER",
    "read_seeds(field=NAME)": "--seed-field NAME",
    "split_documents=True": "--split-documents",
    "dtype='float32'": "--dtype float32",
    "kv_cache_memory_bytes": "--kv-cache-gb",
    "max_num_seqs": "--batch-size",
}


def build_parser() -> Parser:
    """Return the parser of the whole command line; parsed arguments hold it as `parser`."""
    parser = Parser(
        prog="cdgen", description=DESCRIPTION, epilog="Run 'cdgen COMMAND --help' for the options of a command."
    )
    version = f"cdgen {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
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
        The exit code: 0 for success, 1 for a folder or disk that cannot be used, 2 for a request that cannot be
        carried out, 130 after Ctrl-C. `cdgen train` returns 128 + the number of the signal that stopped it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("cdgen: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        args = build_parser().parse_args(argv)
        return int(args.handler(args))
    except InputError as error:
        return _fail(str(error), 2)
    except CorpusError as error:
        return _fail(str(error), 1)
    except OSError as error:  # a file that exists but cannot be read or written
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        print("cdgen: interrupted; finished work is kept, rerun the same command to resume", file=sys.stderr)
        return 130


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(_with_options(super().format(record)))


def _with_options(message: str) -> str:
    """Return a message of the library in the words of the command line."""
    for argument, option in OPTIONS.items():
        message = message.replace(argument, option)
    return message


def _fail(message: str, code: int) -> int:
    print(f"cdgen: error: {printable(_with_options(message))}", file=sys.stderr)
    return code
