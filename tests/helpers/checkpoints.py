"""Checkpoints that a test damages, and the message with which they are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdgen.errors import InputError
from cdgen.models.loading import load


def edit(path: Path, **changes: Any) -> None:
    """Change values of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    removed = {name for name, value in changes.items() if value is None}
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in removed}))


def editor(name: str, **changes: Any) -> Callable[[Path], None]:
    """Return a function that changes values of this JSON file in a folder."""
    return lambda folder: edit(folder / name, **changes)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(source: Any, **options: Any) -> str:
    """Return the message with which a model is refused, which is one line that names the source."""
    with pytest.raises(InputError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert str(source) in message and "\n" not in message
    return message
