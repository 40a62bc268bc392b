"""Names in manifests: the folders and models that they stand for, wherever these are now.

A manifest holds names as they were typed, perhaps on another machine. Models are also known by their fingerprints.
Names are not checked when a manifest is read, so only functions that take any name touch the disk: `os.path.exists`
is false for a name that no file can have, for which `Path.exists` may raise an error.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdgen.errors import InputError
from cdgen.report.experiment import Experiment
from cdgen.report.parts import Part, of_kind
from cdgen.storage import manifest as manifests
from cdgen.values import expanded

_STATE = "state.safetensors"  # the optimizer's state, which is no part of a model


@dataclass(frozen=True)
class Model:
    """A model that a manifest names.

    Attributes:
        name: how the report calls it, such as "good@150", or how it is made from GOOD.
        source: the value of `--good` or `--bad` that loads it.
        fingerprint: sha256 of its config and weights, and how it is made from GOOD.
        run: the training run that it is a checkpoint of, if that is a part of the report.
        step: the step of that checkpoint, if it is known.
    """

    name: str
    source: str
    fingerprint: str
    run: Part | None = None
    step: int | None = None

    @property
    def rule(self) -> str:
        """How a BAD is made from GOOD, such as "dropout:0.3"; "" for any other model."""
        return self.fingerprint.partition("+")[2]


class Names:
    """Finds what names in manifests stand for.

    Args:
        parts: the parts of the report.
        experiment: the experiment that some of them belong to, if any.
    """

    def __init__(self, parts: Sequence[Part], experiment: Experiment | None) -> None:
        self._parts, self._experiment = parts, experiment
        self._checkpoints = _checkpoints(of_kind(parts, manifests.RUN))

    def path(self, name: str) -> Path:
        """Return the path of a file or folder that a manifest names; it need not exist.

        If an experiment was moved or copied, this is the file in its present folder. A name that no longer exists is
        looked for by its last parts, in the folder of the experiment and beside the parts of the report.
        """
        stated = expanded(name)
        folders = [part.path.parent for part in self._parts]
        if self._experiment is not None:
            folders.insert(0, self._experiment.folder)
            for written in self._experiment.written:
                if stated.is_relative_to(written):
                    moved = self._experiment.folder / stated.relative_to(written)
                    if os.path.exists(moved):
                        return moved
        if os.path.exists(stated):
            return stated
        moved_ones = (folder.joinpath(*stated.parts[-count:]) for folder in dict.fromkeys(folders) for count in (2, 1))
        return next(filter(os.path.exists, moved_ones), stated)

    def existing_path(self, name: str) -> Path:
        """Return the path of a file or folder that a manifest names.

        Raises:
            InputError: it is gone.
        """
        path = self.path(name)
        if not os.path.exists(path):
            raise InputError(f"{name}: is gone")
        return path

    def part(self, name: str) -> Part | None:
        """Return the part of the report that a manifest names, if it is one."""
        path = os.path.abspath(self.path(name))
        return next((part for part in self._parts if os.path.abspath(part.path) == path), None)

    def short(self, name: str) -> str:
        """Return a name as the report shows it: that of a part, or else the name itself."""
        part = self.part(name)
        return part.name if part else name

    def model(self, entry: Mapping[str, str], good: Model | None = None) -> Model:
        """Return a model that a manifest names.

        Args:
            entry: its name and fingerprint.
            good: GOOD, for a BAD that is made from it.
        """
        name, fingerprint = entry["name"], entry["fingerprint"]
        rule = fingerprint.partition("+")[2]
        if rule:
            return Model(_in_words(rule, good.name if good else "GOOD"), rule, fingerprint)
        base, at, which = name.rpartition("@")
        run = self.part(base) if at else None
        equal = self._checkpoints.get(fingerprint, [])
        if equal:
            of_run, step = next((each for each in equal if each[0] is run), equal[0])
            return Model(f"{of_run.name}@{step}", f"{of_run.path}@{step}", fingerprint, of_run, step)
        source = f"{self.path(base)}@{which}" if at else str(self.path(name))
        if run is None or run.kind != manifests.RUN:
            return Model(name if source == name else Path(source).name, source, fingerprint)
        return Model(f"{run.name}@{which}", source, fingerprint, run, int(which) if which.isdecimal() else None)


def _checkpoints(found: Sequence[Part]) -> dict[str, list[tuple[Part, int]]]:
    """Return the checkpoints of training runs, with those that were deleted, by the fingerprints of their models."""
    checkpoints: dict[str, list[tuple[Part, int]]] = {}
    for run in found:
        for one in run.manifest["checkpoints"]:
            files = one["files"]
            weights = sorted(name for name in files if name.endswith(".safetensors") and name != _STATE)
            digest = hashlib.sha256()  # as :attr:`cdgen.models.language_model.LanguageModel.fingerprint` is computed
            for name in ("config.json", *weights):
                digest.update(files.get(name, "").encode(errors="replace"))
            checkpoints.setdefault(f"sha256:{digest.hexdigest()}", []).append((run, one["step"]))
    return checkpoints


def _in_words(rule: str, good: str) -> str:
    kind, _, value = rule.partition(":")
    if kind == "dropout":
        return f"{good} with attention dropout {float(value):g}"
    return f"the first {value} layers of {good}"
