"""The table at the end of a run. It is short, since only the end of a remote machine's output may be visible."""

from collections import Counter
from collections.abc import Iterable

from benchmarks.gpu.records import Record

WIDTH = 118  # most characters per line of figures
FAILURE_WIDTH = 150  # most characters per line of failures
FIGURES = 62  # most lines of figures
FAILURES = 25  # most lines of failures


def has_failed(found: Iterable[Record]) -> bool:
    """Return whether anything was wrong, failed, crashed, timed out or was not run, or there are no results."""
    found = list(found)
    failed = any(_failure(record) is not None or record["kind"] == "not_run" for record in found)
    return failed or not any(record["kind"] == "result" for record in found)


def _failure(record: Record) -> str | None:
    """Return what went wrong, in one line, or None."""
    kind = record["kind"]
    if kind == "result" and record["status"] in ("wrong", "failed"):
        return f"{record['status']}: {record['name']}: {record.get('failure', '')}"
    if kind == "timed_out":
        return f"timed out after {record['limit']:.0f} s: {_last_line(record)}"
    if kind == "ended" and record["exit"] != 0:
        return f"exit status {record['exit']}: {_last_line(record)}"
    return None


def _last_line(record: Record) -> str:
    return next(iter(record.get("output", "").strip().splitlines()[::-1]), "")


def _counts(records: list[Record]) -> str:
    results = Counter(record["status"] for record in records if record["kind"] == "result")
    kinds = Counter(record["kind"] for record in records)
    names = {
        "ok": results["ok"],
        "wrong": results["wrong"],
        "failed": results["failed"],
        "skipped": results["skipped"],
        "crashed": sum(record["kind"] == "ended" and record["exit"] != 0 for record in records),
        "timed out": kinds["timed_out"],
        "not run": sum(len(record["names"]) for record in records if record["kind"] == "not_run"),
        "dropped": kinds["dropped"],
    }
    return ", ".join(f"{count} {name}" for name, count in names.items() if count or name == "ok")


def summary(found: list[Record]) -> str:
    """Return the table for the records of one run."""
    figures, failures, lines = 0, [], ["", "part          results"]
    for part in dict.fromkeys(record["part"] for record in found if record["part"]):
        own = [record for record in found if record["part"] == part]
        seconds = sum(record.get("seconds", 0) for record in own if record["kind"] == "ended")
        lines.append(f"{part:<12}  {_counts(own)}; {seconds:.0f} s of jobs")
        for record in own:
            if "line" in record and figures < FIGURES:
                lines.append(f"    {record['line']}"[:WIDTH])
                figures += 1
            if (failure := _failure(record)) is not None:
                failures.append(f"{part} {record['job']}: {failure}"[:FAILURE_WIDTH])
    dropped = [f"{record['part']} {record['job']}" for record in found if record["kind"] == "dropped"]
    hidden = sum("line" in record for record in found) - figures
    if hidden:
        lines.append(f"... and {hidden} more lines, in the results file")
    if dropped:
        lines.append("INCOMPLETE, dropped for lack of time: " + ", ".join(dropped))
    lines += failures[:FAILURES]
    if len(failures) > FAILURES:
        lines.append(f"... and {len(failures) - FAILURES} more failures")
    return "\n".join(lines)
