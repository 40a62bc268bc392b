"""Print the medians and ratios of a run, case by case, below pytest-benchmark's own table."""

import pytest

from benchmarks.cpu.harness import RESULTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for case, figures in RESULTS:
        terminalreporter.write_line(case)
        terminalreporter.write_line("    " + "; ".join(f"{name} {value}" for name, value in figures.items()))
