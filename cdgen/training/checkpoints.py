"""Checkpoints of a run, each complete or absent, and the optimizer state that training resumes from.

A checkpoint is a transformers model (config, safetensors, tokenizer). The last few also hold `state.safetensors`, the
optimizer's moments of each parameter. Nothing else is needed to resume: learning rate, data and dropout follow from
the step's number.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cdgen.errors import CorpusError, first_line
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder, file_sha256
from cdgen.wording import joined

STATE = "state.safetensors"
_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)  # unsharded, on the first process


class Snapshot(NamedTuple):
    """The tensors of a checkpoint, on the CPU of the first process.

    Attributes:
        weights: by transformers' parameter names.
        moments: the optimizer's moments, by parameter and kind, such as "lm_head.weight exp_avg".
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


class Last(NamedTuple):
    """The last checkpoint of a run: its folder and the optimizer's moments."""

    folder: Path
    moments: dict[str, Tensor]


def gather(model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """Gather weights and optimizer state on the first process; all processes call it together.

    Args:
        model: a :class:`~cdgen.training.model.SummedLoss`, as accelerate prepared it, sharded or not.
        optimizer: the optimizer of its parameters, as torch defines it.
    """
    model_state: dict[str, Any] = get_model_state_dict(model, options=_GATHERED)
    weights = {_parameter_name(name): x for name, x in model_state.items()}
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_GATHERED)
    moments = {
        f"{_parameter_name(name)} {kind}": x
        for name, values in state.get("state", {}).items()
        for kind, x in values.items()
    }
    return Snapshot(weights, moments)


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Put the moments of a :class:`Snapshot` back into the optimizer; all processes call it together.

    Raises:
        CorpusError: they are those of another model.
    """
    options = StateDictOptions(full_state_dict=True)
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)
    for name, values in state["state"].items():
        keys = {kind: f"{_parameter_name(name)} {kind}" for kind in values}
        wrong = [key for kind, key in keys.items() if key not in moments or moments[key].shape != values[kind].shape]
        if wrong:
            raise CorpusError(f"{STATE}: does not fit the model: {wrong[0]} is missing, or has another shape")
        state["state"][name] = {kind: moments[key] for kind, key in keys.items()}
    set_optimizer_state_dict(model, optimizer, state, options=options)


def _parameter_name(name: str) -> str:
    """Return transformers' name of a parameter of SummedLoss."""
    return name.removeprefix("lm.")


def save(
    folder: OutputFolder,
    run: runs.Run,
    entry: runs.Checkpoint,
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    snapshot: Snapshot,
) -> None:
    """Write a checkpoint and run.json with it; each of them appears completely or not at all.

    Args:
        folder: the run's folder, entered.
        run: the content of run.json; the checkpoint is added to it.
        entry: the checkpoint's entry in run.json; its `files` are filled in here.
        lm: the model, whose config and format are saved with the weights of the snapshot.
        tokenizer: the tokenizer to save with the model.
        snapshot: the tensors to write.
    Raises:
        CorpusError: the checkpoint cannot be written, for example because the disk is full. No part of it remains.
    """
    name = runs.checkpoint_name(entry["step"])
    manifests.check_free(folder.path, [name])
    temporary = folder.temporary(name)
    try:
        temporary.mkdir()
        lm.save_pretrained(temporary, state_dict=snapshot.weights)
        tokenizer.save_pretrained(temporary)
        save_file(snapshot.moments, temporary / STATE)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())  # named chat templates have a folder
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        entry["files"] = {path.relative_to(temporary).as_posix(): file_sha256(path) for path in files}
        runs.add_checkpoint(folder, run, entry)
        temporary.replace(folder.path / name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CorpusError(f"{folder.path / name}: cannot be written: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_old_states(folder: Path, run: runs.Run, keep_states: int) -> None:
    """Delete the optimizer states of all checkpoints but the latest `keep_states`, which is 1 or more."""
    for old in run["checkpoints"][:-keep_states]:
        (folder / runs.checkpoint_name(old["step"]) / STATE).unlink(missing_ok=True)


def load_last(folder: Path, run: runs.Run) -> Last:
    """Check the files of the last checkpoint in run.json, and load its optimizer state.

    Raises:
        CorpusError: a file is missing or altered. The message names it, what to delete, and the step that a rerun then
            resumes from.
    """
    *before, entry = run["checkpoints"]
    path = folder / runs.checkpoint_name(entry["step"])
    for name, digest in ({STATE: ""} | entry["files"]).items():
        if not (path / name).is_file() or file_sha256(path / name) != digest:
            folders = [folder / runs.checkpoint_name(one["step"]) for one in run["checkpoints"]]
            last = next((at for at in reversed(range(len(before))) if (folders[at] / STATE).exists()), None)
            delete, remedy = str(folder), "start from the beginning"
            if last is not None:
                delete, remedy = joined([*map(str, folders[last + 1 :])]), f"resume from step {before[last]['step']}"
            raise CorpusError(f"{path / name}: is missing, truncated or altered; delete {delete} and rerun to {remedy}")
    return Last(path, load_file(path / STATE))
