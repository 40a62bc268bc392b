"""Checkpoints of a run: whole folders or none, with the state that training goes on from; run.json lists them.

A checkpoint is what transformers saves (config, safetensors, tokenizer). The last few also hold `state.safetensors`,
the optimiser's moments by parameter: with the step's number that is all, since rates, data and noise follow from it.
"""

import json
import os
import shutil

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from cdgen.errors import CorpusError
from cdgen.storage import runs
from cdgen.storage.folder import file_sha256

STATE = "state.safetensors"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # gathered onto the first process


def gather(model, optimizer):
    """Weights and the optimiser's state, whole, on the first process; every process calls.

    Args:
        model: of :class:`~cdgen.training.model.SummedLoss`, as accelerate prepared it, sharded or not.
    Returns:
        (tensors by transformers' names, tensors by "parameter moment")
    """
    weights = {_bare(name): x for name, x in get_model_state_dict(model, options=_WHOLE).items()}
    moments = get_optimizer_state_dict(model, optimizer, options=_WHOLE).get("state", {})
    return weights, {f"{_bare(name)} {kind}": x for name, of in moments.items() for kind, x in of.items()}


def restore(model, optimizer, tensors):
    """Put back what :func:`gather` gave of an optimiser; every process calls."""
    found = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    for name, moments in found["state"].items():
        found["state"][name] = {kind: tensors[f"{_bare(name)} {kind}"] for kind in moments}
    set_optimizer_state_dict(model, optimizer, found, options=StateDictOptions(full_state_dict=True))


def _bare(name):
    return name.removeprefix("lm.")


def save(folder, run, entry, lm, tokenizer, weights, state, keep_states):
    """Write a checkpoint, then run.json with it; both appear whole or not at all.

    Args:
        folder: an entered :class:`~cdgen.storage.folder.OutputFolder`. run: the content of run.json, changed here.
        entry: {"step", "loss", "perplexity"}. weights, state: as :func:`gather` gives them.
    Raises:
        CorpusError: the disk is full, or the like; nothing of the checkpoint is left.
    """
    name = runs.checkpoint_name(entry["step"])
    temporary = folder.path / f".tmp-{name}"
    try:
        temporary.mkdir()
        lm.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        save_file(state, temporary / STATE)
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        files = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
        shutil.rmtree(folder.path / name, ignore_errors=True)  # of a run that was killed before it was in run.json
        temporary.replace(folder.path / name)
    except (OSError, SafetensorError) as error:
        raise CorpusError(f"{folder.path / name}: cannot be written: {getattr(error, 'strerror', error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    run["checkpoints"].append(entry | {"files": files})
    write_run(folder, run)
    for old in run["checkpoints"][:-keep_states]:
        (folder.path / runs.checkpoint_name(old["step"]) / STATE).unlink(missing_ok=True)


def write_run(folder, run):
    folder.write(runs.NAME, (json.dumps(run, indent=1) + "\n").encode())


def drop(folder, run, entry):
    """Take a checkpoint out of run.json, then from the disk."""
    run["checkpoints"].remove(entry)
    write_run(folder, run)
    shutil.rmtree(folder.path / runs.checkpoint_name(entry["step"]), ignore_errors=True)


def checked(folder, run):
    """The folder and the state of the last checkpoint in run.json.

    Returns:
        (path, tensors as :func:`gather` gives them of the optimiser)
    Raises:
        CorpusError: a file is missing or altered; the message names it and the checkpoint before.
    """
    *before, entry = run["checkpoints"]
    path = folder / runs.checkpoint_name(entry["step"])
    for name, digest in entry["files"].items():
        if not (path / name).exists() or file_sha256(path / name) != digest:
            resumable = [one["step"] for one in before if (folder / runs.checkpoint_name(one["step"]) / STATE).exists()]
            then = f"goes on from step {resumable[-1]}" if resumable else "begins anew"
            raise CorpusError(
                f"{path / name}: is missing, cut short or altered; delete {path}, and the same command {then}"
            )
    return path, load_file(path / STATE)
