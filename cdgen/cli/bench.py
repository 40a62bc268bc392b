"""The command `cdgen bench`. Imports torch only when it runs."""

import argparse

from cdgen.cli.output_file import check_output_file, json_object, write_json_file
from cdgen.cli.parser import Commands, add_command, add_device, add_threads, load_ops
from cdgen.errors import InputError, escaped

DESCRIPTION = """\
Time the sampling op on this machine, and compare it with other ways to sample,
if they are installed: PyTorch, torch.compile, the processors of transformers,
and FlashInfer on GPUs. The tokens of each variant are checked first; a variant
with wrong tokens is not timed. All variants run in turns, with cold caches."""

EPILOG = """\
The ratio is the median time divided by that of the op. "of copy" is the rate at
which a variant would have read GOOD's logits once, divided by the measured rate
of a copy, which counts reads and writes. docs/benchmarks.md has more benchmarks.

example:
  cdgen bench --vocab-size 32000 --batch-size 16 --json bench.json"""

_JSON = json_object("cdgen bench", "environment", "cases")
DTYPES = ("float32", "bfloat16", "float16")


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "bench",
        run,
        summary="time the sampling op, and compare it with other samplers",
        check=check,
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    sizes = parser.add_argument_group("logits")
    sizes.add_argument(
        "--vocab-size",
        type=int,
        nargs="+",
        default=[128_256],
        metavar="N",
        help="sizes of the vocabulary (default: 128256)",
    )
    sizes.add_argument(
        "--batch-size", type=int, nargs="+", default=[1, 64], metavar="N", help="rows of logits (default: 1 64)"
    )
    sizes.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: float32 on CPUs, bfloat16 on GPUs)",
    )
    machine = parser.add_argument_group("machine")
    add_device(machine)
    add_threads(machine)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", metavar="FILE", help="also write all figures to a JSON file; replaced if this command wrote it"
    )


def check(args: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        InputError: a size is out of range, or the file cannot be written.
        CorpusError: there is no permission to write to the folder.
    """
    for option, sizes, least in (("--vocab-size", args.vocab_size, 50), ("--batch-size", args.batch_size, 1)):
        for size in sizes:
            if not least <= size <= 10_000_000:
                raise InputError(f"{option} {size}: must be {least} to 10,000,000")
    if args.json is not None:
        check_output_file("--json", args.json, _JSON)


def run(args: argparse.Namespace) -> int:
    """Measure and print the table; return the exit code, 1 if the op drew wrong tokens."""
    check(args)
    load_ops(args.threads, args.device)
    import torch

    from cdgen.bench.methods import FUSED
    from cdgen.bench.sampling import Bench, as_json
    from cdgen.models.loading import usable_device

    device = usable_device(args.device)
    dtype = args.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    bench = Bench(device, getattr(torch, dtype))
    facts = bench.environment()
    print(escaped(f"{facts['device']}, {facts['threads']} threads, torch {facts['versions']['torch']}"))
    print(f"load average: {facts['load average']:.1f} (times on the CPU are only right on an idle machine)")
    print(f"cdgen_kernels: {facts['implementation']} ({facts['reason']})")
    print(f"copy: {bench.copy / 1e9:.1f} GB/s")
    print('ratio: time relative to cdgen_kernels; "of copy": rate of reading GOOD\'s logits once, relative to a copy')
    cases = []
    for case in bench.cases(args.batch_size, args.vocab_size):
        cases.append(case)
        print("\n" + "\n".join(map(escaped, case.lines())), flush=True)
    if args.json is not None:
        write_json_file(args.json, as_json(bench, cases))
        print(f"\n{escaped(args.json)}: all figures")
    return int(any(FUSED in case.absent for case in cases))
