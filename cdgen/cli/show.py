"""The command `cdgen show`. Imports torch only when it runs."""

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

from cdgen.cli.output_file import HTML, check_output_file, write_output_file
from cdgen.cli.parser import Commands, add_command, add_device, add_model_options, add_threads, load_ops
from cdgen.cli.sampling import add_sampling, sampling_params
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError, escaped

if TYPE_CHECKING:
    from cdgen.viewer.explanation import Explanation

# Fields of SamplingParams that have no option: one continuation is shown, with all its probabilities and tokens.
_WITHOUT = ("n", "logprobs", "skip_special_tokens")
_ENDING = ("max_tokens", "stop", "stop_token_ids", "ignore_eos", "min_tokens")  # how a continuation ends

DESCRIPTION = """\
Show a text token by token: what GOOD and BAD predict at each position, the
contrast between them, and which other tokens could have been drawn. Write an
HTML page that needs no network, or print to the terminal."""

EPILOG = """\
examples:
  cdgen show --good run@best --bad run@500 "The sea was calm that night."
  cdgen show --good path/to/good --bad dropout:0.3 --generate "Once upon a time" --out story.html
  cdgen show --good path/to/good --method top_p --generate "Once upon a time" --terminal"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "show",
        run,
        summary="show the contrast at every token of a text",
        usage="%(prog)s --good MODEL [--bad MODEL] TEXT [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    text = parser.add_argument_group("text")
    text.add_argument("text", metavar="TEXT", help="the text; - reads it from standard input, as UTF-8")
    text.add_argument("--generate", action="store_true", help="continue the text, and show it with its continuation")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE", help="the page (default: show.html, or no page with --terminal); replaced if it exists"
    )
    output.add_argument(
        "--terminal", action="store_true", help="print the text in colours, and a table of the most affected tokens"
    )
    models = add_model_options(parser, with_cache=False)
    add_device(models)
    add_threads(models)
    add_sampling(parser, without=_WITHOUT)


def run(args: argparse.Namespace) -> int:
    """Explain the text, print it or write the page; return the exit code."""
    params = _params(args)
    out = args.out if args.out is not None or args.terminal else "show.html"
    if out is not None:
        check_output_file("--out", out, HTML)
    text = _text(args.text)
    explanation = _explanation(args, text, params)
    if out is not None:
        from cdgen.viewer.page import page

        title = textwrap.shorten(text, 60, placeholder=" …") or "A continuation"
        write_output_file(out, page(explanation, title).encode())
    if args.terminal:
        from rich.console import Console

        from cdgen.viewer.terminal import print_explanation

        console = Console()
        with console.capture() as captured:  # rich itself would exit with an error if the reader of a pipe stops early
            print_explanation(console, explanation)
        print(captured.get(), end="")
    if out is not None:
        print(f"{escaped(out)}: {_summary(explanation)}")
    return 0


def _params(args: argparse.Namespace) -> SamplingParams:
    """Return the sampling parameters.

    Raises:
        InputError: see :func:`sampling_params`; or an option is given that needs `--generate`.
    """
    for name in _ENDING:
        if name in args and not args.generate:
            raise InputError(f"--{name.replace('_', '-')}: needs --generate")
    return sampling_params(args)


def _text(given: str) -> str:
    """Return the text, which "-" reads from standard input, without the newline at its end.

    Raises:
        InputError: standard input is closed, or is not UTF-8.
    """
    if given != "-":
        return given
    if sys.stdin is None:
        raise InputError("standard input: is closed; give the text itself instead of -")
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: is not UTF-8 (byte {error.start})") from error


def _explanation(args: argparse.Namespace, text: str, params: SamplingParams) -> "Explanation":
    """Load the models and explain the text, or the text with a continuation.

    Raises:
        InputError: a model cannot be loaded, the text is too long, or it has only one token, which nothing predicts.
    """
    from cdgen.models.bad import parse_bad

    bad = parse_bad(args.bad) if args.bad else {}
    load_ops(args.threads, args.device)
    from cdgen.engine.llm import ContrastiveLM

    options = {"dtype": args.dtype, "device": args.device, "trust_remote_code": args.trust_remote_code}
    lm = ContrastiveLM(args.good, **bad, **options, max_num_seqs=1)
    if args.generate:
        [request] = lm.generate(text, params)
        prompt = request.prompt_token_ids
        explanation = lm.explain([*prompt, *request.outputs[0].token_ids], params, prompt_length=len(prompt))
    else:
        explanation = lm.explain(text, params)
    if len(explanation.tokens) < 2:
        raise InputError("TEXT: has a single token, which nothing predicts; give a longer text, or use --generate")
    return explanation


def _summary(explanation: "Explanation") -> str:
    """Return a line about the tokens after the prompt, such as "12 tokens; mean contrast +0.31 nats"."""
    after = explanation.tokens[explanation.prompt_length :]
    predicted = [(token.token_id, token.prediction) for token in after if token.prediction]
    contrasts = [one.contrast for _, one in predicted if one.contrast is not None]
    parts = [f"{len(after)} token{'' if len(after) == 1 else 's'}"]
    if explanation.prompt_length > 1:  # more than a start-of-text token
        parts[0] += " after the prompt"
    if contrasts:
        parts.append(f"mean contrast {sum(contrasts) / len(contrasts):+.2f} nats")
    greedy = sum(token == one.best_id for token, one in predicted)
    return "; ".join([*parts, f"greedy decoding would have taken {greedy} of {len(predicted)}"])
