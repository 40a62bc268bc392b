"""The report of a small experiment."""

from pathlib import Path

import pytest

from cdgen.report.content import Report
from cdgen.report.find import read


@pytest.fixture(scope="session")
def report(experiment: Path) -> Report:
    """Return the report of a finished experiment."""
    return read([experiment], device="cpu")
