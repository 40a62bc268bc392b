"""The recipe of a whole experiment with tiny models."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.experiment import write_recipe


@pytest.fixture
def recipe(tmp_path: Path, bad: Any) -> Path:
    return write_recipe(tmp_path, bad)
