"""Generation that is killed at random moments and rerun ends with the bytes of an uninterrupted one."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from cdgen.corpus.manifest import NAME
from tests.conftest import CommandLine
from tests.helpers.corpora import bytes_of

KILLS = 10
SHARDS = 40  # with 5 documents each


def shards(out: Path) -> int:
    return len(list(out.glob("data/train-*")))


@pytest.mark.parametrize("kind", ["checkpoint", "dropout"])
@pytest.mark.slow
def test_killed_generation_resumes_to_the_same_bytes(
    kind: str, cdgen_command: CommandLine, folders: dict[str, Path], seeds_file: Path, tmp_path: Path
) -> None:
    """200 documents in 40 shards. Each process is killed a random moment after it has written a shard."""
    bad = {"checkpoint": folders["bad"], "dropout": "dropout:0.5"}[kind]
    argv = [
        "generate", "--good", folders["good"], "--bad", bad, "--seeds", seeds_file, "--n", 4, "--max-tokens", 24,
        "--alpha", 0.01, "--shard-size", 5, "--batch-size", 4, "--ignore-eos", "--split-documents", "--quiet",
    ]  # fmt: skip
    assert cdgen_command(*argv, "--out", tmp_path / "uninterrupted") == (0, "")
    written = sorted(path.stat().st_mtime for path in (tmp_path / "uninterrupted").glob("data/*"))
    interval = (written[-1] - written[0]) / (SHARDS - 1)  # seconds from shard to shard
    expected = bytes_of(tmp_path / "uninterrupted")
    assert len(expected) == 2 * SHARDS + 2  # shards, their documents, manifest and card

    out, dice, moments = tmp_path / "killed", random.Random(kind), []
    for _ in range(KILLS):
        before = shards(out)
        child = cdgen_command.start(*argv, "--out", out)
        deadline = time.monotonic() + 60
        while not shards(out) > before and time.monotonic() < deadline:  # until it has written a shard
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 1.5 * interval))
        os.kill(child, signal.SIGKILL)
        code, output = cdgen_command.wait()
        assert code == -signal.SIGKILL, f"ended by itself with {code}: {output}"
        moments.append((shards(out), len(list(out.glob(".cdgen-*"))), json.loads((out / NAME).read_text())["complete"]))
    assert not any(complete for *_, complete in moments) and len({count for count, *_ in moments}) > 3, moments
    assert cdgen_command(*argv, "--out", out) == (0, ""), "rerunning the same command must resume"
    assert bytes_of(out) == expected
