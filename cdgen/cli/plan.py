"""The command `cdgen plan`. Imports torch only when it runs."""

import argparse
import re

from cdgen.cli.parser import Commands, add_command, add_model_options, add_switch, bytes_of, load_ops
from cdgen.errors import InputError

DESCRIPTION = """\
Before generating a corpus, estimate the largest batch that fits, the memory it
takes, the shortest possible time of a decoding step and of the whole corpus, the
number of seeds, and the disk space. The times are lower bounds from memory
bandwidth and arithmetic (the roofline model), not measurements."""

EPILOG = """\
examples:
  cdgen plan --good path/to/good --bad path/to/bad --gpu h100 --tokens 100e6
  cdgen plan --good path/to/good --bad path/to/bad --gpu h100 --gpus 8 --tokens 100e9"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "plan",
        run,
        summary="estimate memory and time before generating",
        usage="%(prog)s --good MODEL [--bad MODEL] --gpu NAME [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_model_options(parser)
    machine = parser.add_argument_group("machine")
    gpus = ("a100", "h100", "h200", "b200", "cpu")
    machine.add_argument(
        "--gpu",
        required=True,
        choices=gpus,
        metavar="NAME",
        help=f"{', '.join(gpus[:-1])}, or cpu for this machine's CPU",
    )
    machine.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="number of such GPUs that share the corpus (default: 1)"
    )
    machine.add_argument(
        "--memory-gb",
        type=float,
        metavar="X",
        help="memory to use on each, in 10^9 bytes (default: 90 %% of the machine's)",
    )
    add_switch(
        machine, "--run", help="with --gpu cpu, also time a few real decoding steps and compare (default: --run)"
    )
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument("--tokens", type=float, default=100e6, metavar="N", help="total new tokens (default: 100e6)")
    corpus.add_argument("--prompt-tokens", type=int, default=20, metavar="N", help="tokens per prompt (default: 20)")
    corpus.add_argument(
        "--max-tokens", type=int, default=400, metavar="N", help="new tokens per continuation (default: 400)"
    )
    corpus.add_argument("--n", type=int, default=8, metavar="N", help="continuations per prompt (default: 8)")
    corpus.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="largest number of sequences decoded at the same time (default: that of cdgen generate)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the estimate; return the exit code."""
    memory = bytes_of("--memory-gb", args.memory_gb)
    load_ops()
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.engine.plan import Job, measured_rate, plan
    from cdgen.models.bad import parse_bad

    try:
        job = Job(args.tokens, args.prompt_tokens, args.max_tokens, args.n)
    except InputError as error:
        raise InputError(re.sub(r"^\w+", lambda found: f"--{found[0].replace('_', '-')}", str(error))) from error
    estimate = plan(
        args.good,
        args.bad,
        job,
        args.gpu,
        gpus=args.gpus,
        max_num_seqs=args.batch_size,
        memory_bytes=memory,
        dtype=args.dtype,
        kv_cache_dtype=args.kv_cache_dtype,
        trust_remote_code=args.trust_remote_code,
    )
    for line in estimate.lines():
        print(line)
    if args.gpu == "cpu" and args.run:
        bad = parse_bad(args.bad) if args.bad else {}
        lm = ContrastiveLM(
            args.good,
            **bad,
            dtype=args.dtype,
            kv_cache_dtype=args.kv_cache_dtype,
            device="cpu",
            trust_remote_code=args.trust_remote_code,
        )
        rate = measured_rate(lm, estimate.batch, estimate.job)
        print(f"measured over a few steps: {rate:,.0f} tokens/s, {rate / estimate.rate:.0%} of the bound")
    return 0
