"""Stages of `cdgen run`: commands that run one after another. A stage is skipped if nothing that it reads has changed.

The file `stages.json` in the output folder holds a digest of each finished stage. It covers the stage's command, and
the manifests of the stages that it reads from, which hold the checksums of their files.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdgen.errors import CorpusError
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder, file_sha256

FINISHED = "stages.json"  # digest of each finished stage by name


@dataclass(frozen=True)
class Stage:
    """A command of an experiment.

    Args:
        name: name of the stage and of its folder.
        argv: arguments of `cdgen`, starting with the command's name.
        inputs: names of the stages that it reads from.
        always: run the command each time, because it reads files from outside the output folder and checks them itself,
            or because it is quick and prints what the user wants to see.
    """

    name: str
    argv: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    always: bool = False

    @property
    def command(self) -> str:
        """The command line as one would type it."""
        return f"cdgen {shlex.join(self.argv)}"


def run_stages(
    planned: Sequence[Stage],
    out: str | os.PathLike[str],
    execute: Callable[[list[str]], int],
    report: Callable[[str], None],
) -> int:
    """Run the unfinished stages one after another; report perplexities once all models are trained.

    Args:
        planned: the stages, as :func:`cdgen.cli.recipe.stages` returns them.
        out: the folder that they were planned for.
        execute: runs a command line of `cdgen` and returns its exit code.
        report: prints a line.
    Returns:
        The exit code of the first stage that fails, otherwise 0.
    Raises:
        InputError: a stage cannot run.
        CorpusError: a stage's folder or `stages.json` cannot be used.
    """
    out = Path(out)
    finished = _read_finished(out)
    trained = [stage.name for stage in planned if stage.argv[0] == "train"]
    for stage in planned:
        content = json.dumps([stage.argv, [_fingerprint(out / name) for name in stage.inputs]])
        digest = hashlib.sha256(content.encode()).hexdigest()
        if not stage.always and finished.get(stage.name) == digest and manifests.is_whole(out / stage.name):
            report(f"{stage.name}: already complete, skipped")
        else:
            report(f"{stage.name}: {stage.command}")
            if code := execute(list(stage.argv)):
                return code
            if finished.get(stage.name) != digest:
                finished[stage.name] = digest
                OutputFolder(out).write(FINISHED, json.dumps(finished, indent=1).encode())
        if stage.name == trained[-1]:
            for line in perplexities(out, trained):
                report(line)
    return 0


def perplexities(out: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table with each model's best checkpoint and its perplexity on the test text.

    Args:
        out: the folder of the experiment.
        names: names of the training stages.
    Raises:
        CorpusError: a model has no checkpoint.
    """
    yield ""
    yield f"{'model':<32} {'best step':>9} {'perplexity':>11}"
    for name in names:
        run = runs.read(out / name)
        if run is None or not run["checkpoints"]:
            raise CorpusError(f"{out / name}: has no checkpoint; delete this folder and rerun the command")
        best = runs.best(run["checkpoints"])
        rating = "-" if best["perplexity"] is None else f"{best['perplexity']:.3f}"
        yield f"{name:<32} {best['step']:>9} {rating:>11}"
    yield ""
    yield "Perplexity is that of the test text; lower is better. The training seed alone can change it by several"
    yield "percent. GOOD was trained on real text alone."


def _fingerprint(folder: Path) -> str | None:
    """Return the sha256 of a stage's manifest, which holds the checksums of its files, or None if it has none."""
    found = [folder / name for name in sorted({*manifests.FILE_NAMES.values()}) if (folder / name).exists()]
    return file_sha256(found[0]) if found else None


def _read_finished(out: Path) -> dict[str, str]:
    try:
        finished = json.loads((out / FINISHED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        finished = None
    if not isinstance(finished, dict) or not all(isinstance(digest, str) for digest in finished.values()):
        raise CorpusError(f"{out / FINISHED}: is damaged; delete it and rerun: every stage then checks its own folder")
    return finished
