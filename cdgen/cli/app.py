"""The command `cdgen`: the parser of all commands, and what becomes of their errors."""

import logging
import sys

from cdgen import __version__
from cdgen.cli import demo, generate, info, models, plan, prepare, run, tokenizer, train
from cdgen.cli.parser import Parser
from cdgen.errors import CorpusError, InputError


def build_parser():
    parser = Parser(prog="cdgen", description="Contrastive decoding with two language models, and corpora from them.")
    parser.add_argument("--version", action="version", version=f"cdgen {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (generate, prepare, tokenizer, train, models):
        command.add(commands)
    run.add(commands, parser)
    for command in (plan, demo, info):
        command.add(commands)
    return parser


def main(argv=None):
    """Run the command line; returns the exit code: 0, 1 (folder or disk), 2 (what was asked for), 130 (Ctrl-C)."""
    logging.basicConfig(format="cdgen: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        args = build_parser().parse_args(argv)
        return args.handler(args)
    except InputError as error:
        return _fail(error, 2)
    except CorpusError as error:
        return _fail(error, 1)
    except OSError as error:  # a file that is there and cannot be read
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        print("cdgen: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _fail(error, code):
    print(f"cdgen: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
