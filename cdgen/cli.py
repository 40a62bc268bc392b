"""The command `cdgen`: generate, prepare, tokenizer, train, models, plan, demo, info."""

import logging
import sys

from cdgen import __version__
from cdgen.errors import CorpusError, InputError
from cdgen.options import Parser, add_generate, add_plan, add_sampling, sampling_params
from cdgen.prepare.options import add_prepare
from cdgen.recipe import add_run
from cdgen.tokenizer import add_tokenizer
from cdgen.training.options import add_models, add_train

PREFIX_TOKENS = 20  # of a chunk of a document: the paper's prefix


def build_parser():
    parser = Parser(prog="cdgen", description="Contrastive decoding with two language models, and corpora from them.")
    parser.add_argument("--version", action="version", version=f"cdgen {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    generate = commands.add_parser(
        "generate", help="write a corpus", description="Continue every seed and write a corpus."
    )
    add_generate(generate)
    add_sampling(generate)
    generate.set_defaults(run=run_generate)
    add_prepare(commands)
    add_tokenizer(commands)
    add_train(commands)
    add_models(commands)
    add_run(commands)
    plan = commands.add_parser(
        "plan",
        help="what fits, and how long it takes at best",
        description="The batch that fits, memory by part, and the time of a step and of a corpus from the roofline.",
    )
    add_plan(plan)
    plan.set_defaults(run=run_plan)
    demo = commands.add_parser("demo", help="write two small corpora with SmolLM2-135M and compare them")
    demo.add_argument(
        "--out", default="demo-corpus", metavar="FOLDER", help="where the corpora go (default: demo-corpus)"
    )
    demo.add_argument("--max-tokens", type=int, default=60, metavar="N", help="new tokens of each text (default: 60)")
    demo.add_argument("--show", type=int, default=4, metavar="N", help="documents to print (default: 4)")
    demo.set_defaults(run=run_demo)
    commands.add_parser("info", help="what would run here, and why").set_defaults(run=run_info)
    return parser


def main(argv=None):
    """Run the command line; returns the exit code: 0, 1 (folder or disk), 2 (what was asked for), 130 (Ctrl-C)."""
    logging.basicConfig(format="cdgen: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        args = build_parser().parse_args(argv)
        return args.run(args)
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


def _load_ops():
    """Import the ops, slow as torch is; what they find wrong with CDGEN_IMPL is the user's to mend."""
    try:
        import cdgen_kernels.ops  # noqa: F401
    except ValueError as error:
        raise InputError(str(error)) from error


def run_generate(args):
    """Load models and seeds, write the corpus, say where it is."""
    params = sampling_params(args)
    _load_ops()
    from cdgen.bad import parse_bad
    from cdgen.corpus import write_corpus
    from cdgen.folder import OutputFolder
    from cdgen.llm import ContrastiveLM
    from cdgen.progress import choose
    from cdgen.seeds import read_seeds

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


def run_plan(args):
    """Print what fits and how long it takes."""
    _load_ops()
    from cdgen.plan import plan

    for line in plan(args):
        print(line)
    return 0


def run_demo(args):
    """Two corpora of the built-in prompts, side by side."""
    _load_ops()
    from cdgen.demo import demo

    return demo(args.out, args.max_tokens, args.show)


def run_info(args):
    """What would run here, and why."""
    _load_ops()
    from cdgen.info import report

    print(report())
    return 0
