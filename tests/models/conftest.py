"""A model's folder that a test may damage."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of a model's folder that a test may damage."""
    return Path(shutil.copytree(folders["bad"], tmp_path / "model"))
