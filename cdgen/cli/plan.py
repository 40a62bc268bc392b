"""The command `cdgen plan`. Imports no torch until it runs."""

import argparse

from cdgen.cli.parser import add_model_options, load_ops


def add(commands):
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser(
        "plan",
        help="what fits, and how long it takes at best",
        description="The batch that fits, memory by part, and the time of a step and of a corpus from the roofline.",
    )
    add_model_options(parser)
    job = parser.add_argument_group("what is to be written, and where")
    job.add_argument("--gpu", required=True, choices=("a100", "h100", "h200", "b200", "cpu"), help="cpu: this one")
    job.add_argument("--tokens", type=float, default=100e6, metavar="N", help="new tokens in all (default: 100e6)")
    job.add_argument("--prompt-tokens", type=int, default=20, metavar="N", help="of a prompt (default: 20)")
    job.add_argument("--max-tokens", type=int, default=400, metavar="N", help="new tokens of a text (default: 400)")
    job.add_argument("--n", type=int, default=8, metavar="N", help="texts of each prompt (default: 8)")
    job.add_argument("--batch-size", type=int, default=512, metavar="N", help="texts at most at once (default: 512)")
    job.add_argument("--memory-gb", type=float, metavar="X", help="to use, 10^9 bytes (default: 90 %% of all)")
    job.add_argument(
        "--run", action=argparse.BooleanOptionalAction, default=True, help="with --gpu cpu: a short real run beside it"
    )
    parser.set_defaults(handler=run)


def run(args):
    """Print what fits and how long it takes."""
    load_ops()
    from cdgen.engine.plan import plan

    for line in plan(args):
        print(line)
    return 0
