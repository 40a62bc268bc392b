"""The command `cdgen generate`. Imports torch only when it runs."""

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from cdgen.cli.parser import (
    Commands,
    add_command,
    add_device,
    add_model_options,
    add_quiet,
    add_switch,
    add_threads,
    bytes_of,
    import_ops,
    load_ops,
)
from cdgen.cli.sampling import add_sampling, sampling_params
from cdgen.cli.scale_out import Outcome, add_scale_out, check_scale_out, write_scaled_out
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import escaped
from cdgen.values import INT32_MAX, INT64_MAX, integer

if TYPE_CHECKING:
    from cdgen.corpus.job import CorpusJob

DESCRIPTION = """\
Continue every seed and write the documents to a corpus folder. Rerun the same
command after an interruption: it resumes, without duplicate or missing rows."""

EPILOG = """\
examples:
  cdgen generate --good run@best --bad run@500 --seeds prompts.txt --out early
  cdgen generate --good path/to/good --bad dropout:0.3 --seeds prompts.txt --out dropout --n 8
  cdgen generate --good path/to/good --method top_p --seeds book.txt --chunk-words 100 --out top_p"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "generate",
        run,
        summary="write a synthetic corpus by continuing seeds",
        check=check_request,
        usage="%(prog)s --good MODEL [--bad MODEL] --seeds PATH ... --out FOLDER [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    models = add_model_options(parser)
    add_device(models)
    models.add_argument(
        "--kv-cache-gb",
        type=float,
        metavar="X",
        help="memory for the KV caches of both models, in 10^9 bytes (default: enough for the batch, on a GPU at most "
        "90 %% of the free memory)",
    )
    add_threads(models)
    _add_seeds(parser)
    _add_output(parser)
    add_scale_out(parser)
    add_sampling(parser)


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    seeds = parser.add_argument_group("seeds")
    seeds.add_argument(
        "--seeds",
        required=True,
        nargs="+",
        metavar="PATH",
        help="texts to continue: .txt (one prompt per line), .jsonl, .jsonl.gz, .parquet, or a datasets folder",
    )
    seeds.add_argument(
        "--seed-field", default="text", metavar="NAME", help="field of each record that holds the text (default: text)"
    )
    seeds.add_argument(
        "--prefix-tokens",
        type=int,
        metavar="N",
        help="keep only the first N tokens of each seed (default: 20 with --chunk-words, otherwise all)",
    )
    seeds.add_argument(
        "--chunk-words",
        type=int,
        metavar="N",
        help="cut documents into chunks of at least N words, each of which is a seed; a .txt file is then one document",
    )
    seeds.add_argument(
        "--parse-special",
        action="store_true",
        help="read special tokens in the seeds, such as </s>, instead of taking them as text",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="FOLDER", help="folder of the corpus")
    output.add_argument("--shard-size", type=int, default=1000, metavar="N", help="documents per shard (default: 1000)")
    output.add_argument(
        "--format",
        choices=("parquet", "jsonl.gz"),
        default="parquet",
        help="file format of the shards (default: parquet)",
    )
    output.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="sequences decoded at the same time (default: 512 on a GPU, 64 on a CPU and in static batches)",
    )
    output.add_argument(
        "--split-documents",
        action="store_true",
        help="also cut the texts at their start-of-text and end-of-text tokens, and write the pieces to the folder "
        "_documents",
    )
    add_switch(
        output,
        "--resume",
        help="resume the corpus in the folder, or replace it as soon as a new shard is finished (default: --resume)",
    )
    add_quiet(output)


class Request(NamedTuple):
    """What the options ask for, checked."""

    params: SamplingParams
    bad: dict[str, Any]  # arguments of ContrastiveLM that choose BAD
    reading: dict[str, Any]  # how the seeds are read, as the manifest records it
    cache_bytes: int | None


def check_request(args: argparse.Namespace) -> Request:
    """Check all options and return what they ask for. Models and seeds are not read.

    Raises:
        InputError: a value cannot be used, options contradict each other, or the method needs a BAD.
    """
    params = sampling_params(args)
    reading, cache_bytes = _reading(args), bytes_of("--kv-cache-gb", args.kv_cache_gb)
    import_ops()
    from cdgen.corpus.writer import check_options
    from cdgen.models.bad import parse_bad
    from cdgen.models.dtypes import cache_dtype, float_dtype
    from cdgen.models.loading import usable_device

    bad = parse_bad(args.bad) if args.bad else {}
    check_options(args.shard_size, args.format)
    if args.batch_size is not None:
        integer("max_num_seqs", args.batch_size, 1, INT32_MAX)
    if args.slurm is None:  # the machine that submits jobs may have no GPU
        usable_device(args.device)
    if args.dtype is not None:
        float_dtype("dtype", args.dtype)
    if args.kv_cache_dtype is not None:
        cache_dtype(args.kv_cache_dtype)
    check_scale_out(args)
    return Request(params, bad, reading, cache_bytes)


def run(args: argparse.Namespace) -> int:
    """Load models and seeds, write the corpus, and print a summary; return the exit code."""
    request = check_request(args)
    if args.slurm is None:
        load_ops(args.threads, args.device)
    from cdgen.corpus.manifest import check_folder
    from cdgen.storage.folder import OutputFolder
    from cdgen.storage.progress import displayed

    # Models are loaded last, since that takes longest and everything else can be checked without them.
    job = _job(args, request)
    found = job.read()
    with OutputFolder(args.out) as folder, displayed(not args.quiet) as progress:
        check_folder(folder)
        if args.workers is None and args.slurm is None:
            outcome = Outcome(*job.write(folder, found, resume=args.resume, progress=progress))
        else:
            outcome = write_scaled_out(args, job, folder, found, progress)
    if outcome.manifest is None:
        print(outcome.message)
    elif not args.quiet:
        print(_summary(args.out, outcome.manifest["counts"], outcome.written))
    return 0


def _job(args: argparse.Namespace, request: Request) -> "CorpusJob":
    """Return the corpus that the options ask for."""
    from cdgen.corpus.job import CorpusJob

    models = {
        "good": args.good,
        **request.bad,
        "dtype": args.dtype,
        "device": args.device,
        "trust_remote_code": args.trust_remote_code,
        "max_num_seqs": args.batch_size,
        "kv_cache_dtype": args.kv_cache_dtype,
        "kv_cache_memory_bytes": request.cache_bytes,
    }
    own = {"shard_size": args.shard_size, "format": args.format, "split_documents": args.split_documents}
    return CorpusJob(args.out, models, args.seeds, request.reading, request.params, **own)


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    """Return how the seeds are read, as the manifest records it."""
    from cdgen.corpus.seeds import prefix_length

    prefix = prefix_length(args.prefix_tokens, args.chunk_words)
    if args.chunk_words is not None:
        integer("chunk_words", args.chunk_words, 1, INT64_MAX)
    return {
        "field": args.seed_field,
        "prefix_tokens": prefix,
        "chunk_words": args.chunk_words,
        "parse_special": args.parse_special,
    }


def _summary(out: str, counts: dict[str, int], written: int) -> str:
    state = f"wrote {written} of {counts['shards']} shards" if written else "already complete, nothing to do"
    return f"{escaped(out)}: {state}; {counts['documents']} documents, {counts['new_tokens']} new tokens"
