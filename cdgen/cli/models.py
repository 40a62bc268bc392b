"""The command `cdgen models`. Imports no torch."""


def add(commands):
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("models", help="the checkpoints of a training run")
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=type(parser))
    ls = actions.add_parser("ls", help="steps, losses and perplexities, and which is best and latest")
    ls.add_argument("folder", metavar="RUN", help="the folder of a run")
    ls.set_defaults(handler=run_ls)


def run_ls(args):
    """Print a line for every checkpoint."""
    from cdgen.storage import runs

    for line in runs.table(args.folder):
        print(line)
    return 0
