"""A pytest plugin that records each test as soon as it ends, so that a crash loses no earlier result."""

import os
from pathlib import Path

import pytest

from benchmarks.gpu import records
from benchmarks.gpu.processes import end_with_parent

# Names of environment variables: the results file, "part job", and "i n" to run every n-th test from number i.
OUT, JOB, SHARD = "CDGEN_GPU_RESULTS", "CDGEN_GPU_JOB", "CDGEN_GPU_SHARD"
_STATUS = {"passed": "ok", "failed": "failed", "skipped": "skipped"}


def _append(kind: str, **fields: object) -> None:
    part, job = os.environ[JOB].split()
    records.append(Path(os.environ[OUT]), {"part": part, "job": job, "kind": kind} | fields)


def pytest_configure() -> None:
    end_with_parent(os.getppid())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first, step = map(int, os.environ[SHARD].split())
    items[:] = items[first::step]


def pytest_collection_finish(session: pytest.Session) -> None:
    _append("planned", names=[item.nodeid for item in session.items])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record a report of a test. Of its up to three reports, those of setup and teardown count only if they failed."""
    if report.when != "call" and report.passed:
        return
    found = {"status": _STATUS[report.outcome], "took": round(report.duration, 3)}
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        found["failure"] = crash.message.splitlines()[0] if crash else report.when
        found["traceback"] = report.longreprtext[-2000:]
    _append("result", name=report.nodeid, **found)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        failure = next(iter(report.longreprtext.strip().splitlines()[::-1]), "")
        _append("result", name=report.nodeid, status="failed", failure=failure, traceback=report.longreprtext[-2000:])
