"""The command `cdgen generate`. Imports no torch until it runs."""

import argparse
import logging

from cdgen.cli.parser import add_model_options, load_ops
from cdgen.cli.sampling import add_sampling, sampling_params
from cdgen.errors import InputError

PREFIX_TOKENS = 20  # of a chunk of a document: the paper's prefix


def add(commands):
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser(
        "generate", help="write a corpus", description="Continue every seed and write a corpus."
    )
    models = add_model_options(parser)
    models.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    models.add_argument(
        "--kv-cache-gb",
        type=float,
        metavar="X",
        help="cache budget of both models, in GB (default: enough for the batch, on a GPU at most 90 %% of the free "
        "memory)",
    )
    seeds = parser.add_argument_group("seeds")
    seeds.add_argument(
        "--seeds",
        required=True,
        nargs="+",
        metavar="PATH",
        help=".txt (a prompt a line), .jsonl, .jsonl.gz, .parquet, datasets folder",
    )
    seeds.add_argument(
        "--seed-field", default="text", metavar="NAME", help="of records: the field with the text (default: text)"
    )
    seeds.add_argument(
        "--prefix-tokens",
        type=int,
        metavar="N",
        help="keep a seed's first N tokens (default: 20 with --chunk-words, else all)",
    )
    seeds.add_argument(
        "--chunk-words",
        type=int,
        metavar="N",
        help="cut documents into chunks of N words or more; a .txt is one document",
    )
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument("--out", required=True, metavar="FOLDER", help="where the corpus goes")
    corpus.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="documents of a shard (default: 1000)"
    )
    corpus.add_argument(
        "--format", choices=("parquet", "jsonl.gz"), default="parquet", help="of the shards (default: parquet)"
    )
    corpus.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts decoded together (default: 64)")
    corpus.add_argument(
        "--split-documents", action="store_true", help="also write the texts cut at start and end of text"
    )
    corpus.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what is in the folder (default), or write it anew",
    )
    corpus.add_argument("--quiet", action="store_true", help="no progress")
    add_sampling(parser)
    parser.set_defaults(handler=run)


def run(args):
    """Load models and seeds, write the corpus, say where it is."""
    params = sampling_params(args)
    load_ops()
    from cdgen.corpus.seeds import read_seeds
    from cdgen.corpus.writer import write_corpus
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.models.bad import parse_bad
    from cdgen.storage.folder import OutputFolder
    from cdgen.storage.progress import choose

    bad = parse_bad(args.bad) if args.bad else {}
    if params.contrast_strength and not bad:
        raise InputError(
            f"--bad is missing: the method {params.method} contrasts GOOD with it; or use --method ancestral"
        )
    prefix = PREFIX_TOKENS if args.prefix_tokens is None and args.chunk_words is not None else args.prefix_tokens
    with OutputFolder(args.out) as folder:
        lm = ContrastiveLM(
            args.good,
            **bad,
            dtype=args.dtype,
            device=args.device,
            trust_remote_code=args.trust_remote_code,
            max_num_seqs=args.batch_size,
            kv_cache_dtype=args.kv_cache_dtype,
            kv_cache_memory_bytes=args.kv_cache_gb and int(args.kv_cache_gb * 1e9),
        )
        reading = {"field": args.seed_field, "prefix_tokens": prefix, "chunk_words": args.chunk_words}
        seeds, dropped = read_seeds(args.seeds, lm.prompt_ids, **reading)
        if dropped:
            logging.getLogger("cdgen").warning("%d empty or too short seeds left out", dropped)
        progress = choose(args.quiet)
        try:
            manifest, written = write_corpus(
                lm,
                seeds,
                folder,
                params,
                shard_size=args.shard_size,
                format=args.format,
                resume=args.resume,
                split_documents=args.split_documents,
                seeds_info={"paths": args.seeds, "dropped": dropped, **reading},
                progress=progress,
            )
        finally:
            progress.close()
    counts = manifest["counts"]
    if not args.quiet:
        state = f"{written} shards written" if written else "complete already, nothing to do"
        print(
            f"{args.out}: {state}; {counts['documents']} documents, {counts['new_tokens']} new tokens "
            f"in {counts['shards']} shards"
        )
    return 0
