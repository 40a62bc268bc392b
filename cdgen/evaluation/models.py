"""The models of an evaluation, as users state them: MODEL or LABEL=MODEL."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cdgen.errors import InputError
from cdgen.evaluation import results
from cdgen.storage import runs
from cdgen.values import INT64_MAX, expanded

LABEL = re.compile(r"\w[\w.-]{0,99}")
_UNSAFE = re.compile(r"[^\w.-]+|^[.-]+")


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
        label: the name by which models are compared; models that differ only in seed and step share it.
        source: the model, as :func:`cdgen.models.loading.load` takes it.
        seed: seed of the training run, or None if the model is not a checkpoint of one.
        step: step of the checkpoint, or None.
    """

    label: str
    source: str
    seed: int | None = None
    step: int | None = None

    def entry(self, fingerprint: str) -> results.ModelEntry:
        """Return the model as results.json stores it."""
        return {
            "label": self.label,
            "seed": self.seed,
            "step": self.step,
            "name": self.source,
            "fingerprint": fingerprint,
        }


def parse_models(stated: Sequence[str | Model]) -> list[Model]:
    """Parse models that are stated as MODEL or LABEL=MODEL; those that are parsed already stay as they are.

    The default label is the name of the model's folder. `RUN@all` stands for all checkpoints of a training run.

    Raises:
        InputError: a run has no such checkpoint, or two models have the same label, seed and step.
    """
    found = [model for each in stated for model in ([each] if isinstance(each, Model) else _parse_model(each))]
    names: dict[str, Model] = {}
    for model in found:
        twin = names.setdefault(results.scores_name(model.entry(""), ""), model)
        if twin is not model:
            raise InputError(
                f"{model.source} and {twin.source} have the same label, {model.label}; write LABEL={model.source}"
            )
    return found


def _parse_model(stated: str) -> list[Model]:
    label, _, source = stated.partition("=")
    if not source or os.path.exists(stated) or os.path.exists(stated.rpartition("@")[0]):
        label, source = "", stated
    elif not LABEL.fullmatch(label):
        raise InputError(
            f"{stated}: no such folder or file, nor LABEL=MODEL: a label has at most 100 letters, digits and ._-, and "
            "begins with a letter or digit"
        )
    run, _, which = source.rpartition("@")
    run_json = runs.read(run) if run and not Path(source).exists() else None
    name = run if run_json else source
    label = label or _default_label(name)
    if run_json is None:
        return [Model(label, source)]
    seed, checkpoints = run_json["config"].get("seed"), run_json["checkpoints"]
    if which == "all":
        steps = [one["step"] for one in checkpoints]
    else:
        steps = [int(Path(runs.resolve(source)).name.removeprefix("step_"))]  # checks that there is such a checkpoint
    if not steps:
        raise InputError(f"{source}: the run has no checkpoint yet")
    known = seed if type(seed) is int and 0 <= seed <= INT64_MAX else None
    return [Model(label, f"{run}@{step}", known, step) for step in steps]


def _default_label(name: str) -> str:
    """Return the name of a model's folder as a label."""
    folder = Path(os.path.abspath(expanded(name))).name.removesuffix(".gguf")
    label = _UNSAFE.sub("-", folder).lstrip("-")
    if not LABEL.fullmatch(label):
        raise InputError(f"{name}: the name of this folder cannot be the model's label; write LABEL={name}")
    return label
