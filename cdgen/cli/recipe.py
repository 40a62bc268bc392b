"""`cdgen run`: a whole experiment as a sequence of cdgen's own commands, each of which can be killed and started again.

A recipe is TOML. Its tables are commands, their keys the commands' options:

    [prepare]    options of cdgen prepare
    [tokenizer]  options of cdgen tokenizer
    [train]      options of cdgen train, for every model
    [good]       more of them for GOOD, and checkpoint = N, which writes the corpora (default: the best by perplexity)
    [bad]        step = N (an early checkpoint of GOOD), or dropout = X, or layers = N, or options of cdgen train
    [generate]   options of cdgen generate, and methods = [...], a corpus each
    [mixed]      more options of cdgen train for the models compared: one a corpus, and one on real text alone, which is
                 GOOD's own run where both have the same options

A stage is not run again while its command, and what the stages it builds on have written, are what they were. The
first, which reads from outside the folder, always looks at its inputs itself.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import file_sha256

RECIPES = Path(__file__).parents[1] / "recipes"
PRESETS = ("tiny", "small", "paper")
STAGES = "stages.json"
_TABLES = ("prepare", "tokenizer", "train", "good", "bad", "generate", "mixed")


@dataclass(frozen=True)
class Stage:
    """One command: its name in the folder, its arguments, and the stages that it reads from."""

    name: str
    argv: tuple[str, ...]
    after: tuple[str, ...] = ()


def read_recipe(name):
    """The tables of a preset or of a TOML file.

    Raises:
        InputError: no such recipe, not TOML, a table that is unknown or missing.
    """
    try:
        import tomllib
    except ImportError:  # before Python 3.11
        import tomli as tomllib

    path = RECIPES / f"{name}.toml" if name in PRESETS else Path(name)
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such recipe; give a TOML file, or {', '.join(PRESETS)}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{name}: is not TOML: {error}") from error
    unknown = [table for table in recipe if table not in _TABLES or not isinstance(recipe[table], dict)]
    if unknown:
        raise InputError(f"{name}: [{unknown[0]}] is no table of a recipe; use {', '.join(_TABLES)}")
    for table in ("prepare", "generate", "bad"):
        if not recipe.get(table):
            raise InputError(f"{name}: the table [{table}] is missing or empty")
    return recipe


def stages(recipe, out):
    """The :class:`Stage` list of a recipe, into the folder `out`."""
    out = Path(out)
    tables = {table: dict(recipe.get(table, {})) for table in _TABLES}
    corpus, tokenizer, good = str(out / "corpus"), str(out / "tokenizer"), str(out / "good")
    sources = tables["prepare"].pop("sources", [])
    found = [
        Stage("corpus", ("prepare", *sources, *_options(tables["prepare"]), "--out", corpus)),
        Stage("tokenizer", ("tokenizer", corpus, *_options(tables["tokenizer"]), "--out", tokenizer), ("corpus",)),
    ]

    def training(name, options, after=()):
        given = tables["train"] | options
        argv = ("train", "--corpus", corpus, "--tokenizer", tokenizer, *_options(given), "--out", str(out / name))
        found.append(Stage(name, argv, ("corpus", "tokenizer", *after)))

    checkpoint = f"{good}@{tables['good'].pop('checkpoint', 'best')}"
    training("good", tables["good"])
    bad, reads = tables["bad"], ("good",)
    if "step" in bad:
        written_by = f"{good}@{bad['step']}"
    elif "dropout" in bad or "layers" in bad:
        written_by = next(f"{kind}:{bad[kind]}" for kind in ("dropout", "layers") if kind in bad)
    else:
        training("bad", bad)
        written_by, reads = f"{out / 'bad'}@best", ("good", "bad")
    methods = tables["generate"].pop("methods", ["ancestral", "contrastive"])
    for method in methods:
        contrast = ("--bad", written_by) if method.startswith("contrastive") else ()
        seeds = ("--seeds", str(out / "corpus" / "seeds.parquet"))
        argv = ("generate", "--good", checkpoint, *contrast, *seeds, "--method", method)
        argv = (*argv, *_options(tables["generate"]), "--out", str(out / f"corpus-{method}"))
        found.append(Stage(f"corpus-{method}", argv, reads))
    ratio = tables["mixed"].pop("ratio", 0.3)
    if tables["mixed"] != tables["good"]:
        training("model-real", tables["mixed"])
    for method in methods:
        synthetic = {"synthetic": [str(out / f"corpus-{method}")], "ratio": ratio}
        training(f"model-{method}", tables["mixed"] | synthetic, (f"corpus-{method}",))
    return found


def _options(table):
    """Command-line options of a table: `warmup_steps = 10` is `--warmup-steps 10`, a list several values."""
    argv = []
    for key, value in table.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            argv.append(flag)
        elif value is False:
            argv.append(flag.replace("--", "--no-", 1))
        else:
            argv += [flag, *map(str, value if isinstance(value, list) else [value])]
    return argv


def run_recipe(recipe, out, command, say=print):
    """Run the stages that are not done, one after another, and print the table.

    Args:
        recipe: of :func:`read_recipe`. out: the folder. say: prints a line.
        command: function of a command's arguments that runs it and returns its exit code.
    Returns:
        the exit code of the first stage that failed, or 0
    Raises:
        InputError, CorpusError: of a stage.
    """
    out = Path(out)
    done = _read_marks(out)
    for stage in (planned := stages(recipe, out)):
        content = json.dumps([stage.argv, [_fingerprint(out / name) for name in stage.after]])
        mark = hashlib.sha256(content.encode()).hexdigest()
        if stage.after and done.get(stage.name) == mark and (out / stage.name).is_dir():
            say(f"{stage.name}: done before")
            continue
        say(f"{stage.name}: cdgen {shlex.join(stage.argv)}")
        if code := command(list(stage.argv)):
            return code
        if done.get(stage.name) != mark:
            done[stage.name] = mark
            _write_marks(out, done)
    for line in table(out, [stage.name for stage in planned if stage.argv[0] == "train"]):
        say(line)
    return 0


def table(out, names):
    """Lines: each model's best checkpoint and its perplexity on the test text."""
    yield ""
    yield f"{'model':<28} {'best step':>9} {'perplexity':>11}"
    for name in names:
        best = runs.best(runs.read_run(Path(out) / name)["checkpoints"])
        rating = "-" if best["perplexity"] is None else f"{best['perplexity']:.3f}"
        yield f"{name:<28} {best['step']:>9} {rating:>11}"


def _fingerprint(folder):
    """sha256 of what a stage says of itself, with the checksums of all that it has written; None where that is gone."""
    about = [folder / name for name in (manifests.NAME, runs.NAME) if (folder / name).exists()]
    return file_sha256(about[0]) if about else None


def _read_marks(out):
    try:
        return json.loads((out / STAGES).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CorpusError(f"{out / STAGES}: is not JSON; delete it, and every stage looks for itself") from error


def _write_marks(out, done):
    temporary = out / f".tmp-{STAGES}"
    temporary.write_text(json.dumps(done, indent=1))
    temporary.replace(out / STAGES)
