"""Recipes of `cdgen run`: an experiment as a sequence of cdgen's own commands, its stages.

A recipe is a TOML file. Each table holds options of a command, with `_` for `-`:

    [prepare]    options of cdgen prepare; sources = [...] are its arguments
    [tokenizer]  options of cdgen tokenizer
    [train]      options of cdgen train for every model
    [good]       more training options for GOOD; checkpoint = N generates with step N instead of the best checkpoint
    [bad]        step = N (an early checkpoint of GOOD), dropout = X, layers = N, or training options for its own run
    [generate]   options of cdgen generate; methods = [...] writes one corpus per method
    [mixed]      more training options for the models that are compared: one per synthetic corpus, and one on real text
                 alone. If the options of the latter equal GOOD's, GOOD takes its place.

A stage is skipped while its command and the checksums of what it reads are unchanged and its files are there. The first
stage reads files from outside the output folder, so it always runs and checks them itself.
"""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cdgen.cli.recipe_checks import DERIVED_BADS, TABLES, check_tables
from cdgen.errors import CorpusError, InputError, first_line
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder, file_sha256

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

RECIPES = Path(__file__).parents[1] / "recipes"
PRESETS = ("tiny", "small", "paper")
STAGES = "stages.json"  # digest of each finished stage by name
_REPEATED = ("stop", "stop_token_ids")  # options that are repeated if they have several values
SWITCHES = ("compile", "tensorboard", "quiet", "overwrite", "split_documents", "parse_special")  # they have no --no-X

Table: TypeAlias = dict[str, Any]
Recipe: TypeAlias = Mapping[str, Table]


@dataclass(frozen=True)
class Stage:
    """A command of an experiment.

    Args:
        name: name of the stage and of its folder.
        argv: arguments of `cdgen`, starting with the command's name.
        inputs: names of the stages that it reads from.
    """

    name: str
    argv: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line as one would type it."""
        return f"cdgen {shlex.join(self.argv)}"


def read_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe and return its tables by name.

    Args:
        name: one of :data:`PRESETS`, or the path of a TOML file.
    Raises:
        InputError: there is no such recipe, it is not TOML, or a table or key cannot be used.
    """
    path = RECIPES / f"{name}.toml" if name in PRESETS else Path(name)
    try:
        recipe: Recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such recipe; give a TOML file or one of {', '.join(PRESETS)}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{name or repr(name)}: cannot be read as TOML: {reason}") from error
    check_tables(recipe, str(name))
    return recipe


def stages(recipe: Recipe, out: str | os.PathLike[str]) -> list[Stage]:
    """Return the stages of a recipe in the order in which they run.

    Args:
        recipe: the tables, as :func:`read_recipe` returns them.
        out: the folder that holds one folder per stage.
    """
    out = Path(out)
    tables = {table: dict(recipe.get(table, {})) for table in TABLES}
    checkpoint = tables["good"].pop("checkpoint", "best")
    methods = _as_list(tables["generate"].pop("methods", ["ancestral", "contrastive"]))
    ratio = tables["mixed"].pop("ratio", 0.3)

    def training(name: str, options: Table, inputs: tuple[str, ...] = ()) -> Stage:
        fixed = ("--corpus", str(out / "corpus"), "--tokenizer", str(out / "tokenizer"))
        argv = ("train", *fixed, *_options(tables["train"] | options), "--out", str(out / name))
        return Stage(name, argv, ("corpus", "tokenizer", *inputs))

    found = [*_text_stages(tables, out), training("good", tables["good"])]
    bad = _derived_bad(tables["bad"], out)
    if bad is None:
        found.append(training("bad", tables["bad"]))
    for method in methods:
        found.append(_generation(method, tables["generate"], out, f"{out / 'good'}@{checkpoint}", bad))
    if tables["mixed"] != tables["good"]:
        found.append(training("model-real", tables["mixed"]))
    for method in methods:
        mixture = {"synthetic": [str(out / f"corpus-{method}")], "ratio": ratio}
        found.append(training(f"model-{method}", tables["mixed"] | mixture, (f"corpus-{method}",)))
    return found


def _text_stages(tables: Recipe, out: Path) -> Iterator[Stage]:
    """Yield the stages that write the corpus and the tokenizer."""
    corpus = str(out / "corpus")
    prepare = dict(tables["prepare"])
    sources = _as_list(prepare.pop("sources", []))
    yield Stage("corpus", ("prepare", *sources, *_options(prepare), "--out", corpus))
    argv = ("tokenizer", corpus, *_options(tables["tokenizer"]), "--out", str(out / "tokenizer"))
    yield Stage("tokenizer", argv, ("corpus",))


def _derived_bad(table: Table, out: Path) -> str | None:
    """Return the value of `--bad` for a BAD that is derived from GOOD, or None for one that is trained by itself."""
    if "step" in table:
        return f"{out / 'good'}@{table['step']}"
    return next((f"{kind}:{table[kind]}" for kind in DERIVED_BADS if kind in table), None)


def _generation(method: str, options: Table, out: Path, good: str, bad: str | None) -> Stage:
    """Return the stage that writes the synthetic corpus of a method; `bad` is None if BAD has a stage of its own."""
    contrast = ("--bad", bad or f"{out / 'bad'}@best") if method.startswith("contrastive") else ()
    seeds = ("--seeds", str(out / "corpus" / "seeds.parquet"))
    fixed = ("generate", "--good", good, *contrast, *seeds, "--method", method)
    name = f"corpus-{method}"
    argv = (*fixed, *_options(options), "--out", str(out / name))
    return Stage(name, argv, ("good",) if bad else ("good", "bad"))


def _options(table: Table) -> list[str]:
    """Return a table as options: `warmup_steps = 10` is `--warmup-steps 10`; a list gives an option several values."""
    argv = []
    for key, value in table.items():
        flag, values = f"--{key.replace('_', '-')}", [str(each) for each in _as_list(value)]
        if value is False and key in SWITCHES:
            continue
        if isinstance(value, bool):
            argv.append(flag if value else flag.replace("--", "--no-", 1))
        elif key in _REPEATED or any(each.startswith("-") for each in values):
            argv += [f"{flag}={each}" for each in values]
        else:
            argv += [flag, *values]
    return argv


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def run_stages(
    planned: Sequence[Stage],
    out: str | os.PathLike[str],
    execute: Callable[[list[str]], int],
    report: Callable[[str], None],
) -> int:
    """Carry out the stages that are not finished, one after another, and report the perplexities.

    Args:
        planned: the stages, as :func:`stages` returns them.
        out: the folder that they were planned for.
        execute: carries out a command line of `cdgen` and returns its exit code.
        report: prints a line.
    Returns:
        The exit code of the first stage that fails, otherwise 0.
    Raises:
        InputError: a stage cannot be carried out.
        CorpusError: a stage's folder or `stages.json` cannot be used.
    """
    out = Path(out)
    finished = _read_finished(out)
    for stage in planned:
        content = json.dumps([stage.argv, [_fingerprint(out / name) for name in stage.inputs]])
        digest = hashlib.sha256(content.encode()).hexdigest()
        if stage.inputs and finished.get(stage.name) == digest and manifests.is_whole(out / stage.name):
            report(f"{stage.name}: already complete, skipped")
            continue
        report(f"{stage.name}: {stage.command}")
        if code := execute(list(stage.argv)):
            return code
        if finished.get(stage.name) != digest:
            finished[stage.name] = digest
            _write_finished(out, finished)
    for line in results(out, [stage.name for stage in planned if stage.argv[0] == "train"]):
        report(line)
    return 0


def results(out: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table with each model's best checkpoint and its perplexity on the test text.

    Raises:
        CorpusError: a model has no checkpoint.
    """
    best = {}
    for name in names:
        run = runs.read(out / name)
        if run is None or not run["checkpoints"]:
            raise CorpusError(f"{out / name}: has no checkpoint; delete this folder and rerun the command")
        best[name] = runs.best(run["checkpoints"])
    baseline = "model-real" if "model-real" in best else "good"
    reference = best[baseline]["perplexity"]
    yield ""
    yield f"{'model':<28} {'best step':>9} {'perplexity':>11} {'difference':>11}"
    for name, checkpoint in best.items():
        perplexity = checkpoint["perplexity"]
        rating = "-" if perplexity is None else f"{perplexity:.3f}"
        difference = "baseline" if name == baseline else "-"
        if name != baseline and perplexity is not None and reference is not None:
            difference = f"{perplexity / reference - 1:+.1%}"
        yield f"{name:<28} {checkpoint['step']:>9} {rating:>11} {difference:>11}"
    yield ""
    yield "Perplexity is that of the test text; lower is better. The baseline was trained on real text alone."
    yield "Each model was trained once, and the random seed alone can make a difference of several percent: repeat the"
    yield "experiment with other seeds ([train] seed = N) before you draw a conclusion."


def _fingerprint(folder: Path) -> str | None:
    """Return the sha256 of a stage's manifest, which holds the checksums of its files, or None if it has none."""
    found = [folder / name for name in sorted({*manifests.FILE_NAMES.values()}) if (folder / name).exists()]
    return file_sha256(found[0]) if found else None


def _read_finished(out: Path) -> dict[str, str]:
    try:
        finished = json.loads((out / STAGES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        finished = None
    if not isinstance(finished, dict) or not all(isinstance(digest, str) for digest in finished.values()):
        raise CorpusError(f"{out / STAGES}: is damaged; delete it and rerun: every stage then checks its own folder")
    return finished


def _write_finished(out: Path, finished: Mapping[str, str]) -> None:
    OutputFolder(out).write(STAGES, json.dumps(finished, indent=1).encode())
