"""Hostile input from hypothesis: numbers for the command line and damaged JSON; and what every answer must be like.

Whatever the input, a command ends with an exit code that means something, an error is one line, and no other file
changes. Each example runs in a process of its own, so that a crash is seen as well. The examples are the same in every
run; `CDGEN_FUZZ=1000` tries that many random ones per test.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("CDGEN_FUZZ", "0"))

Command = Callable[..., tuple[int, str]]


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Return the settings of a test that tries `examples` examples."""
    unchecked = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=unchecked,
    )


def files_below(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def assert_answer(code: int, output: str) -> None:
    """Check that a command's exit code and messages are ones that a user can act on."""
    assert code in (0, 1, 2, 130), (code, output)
    assert "Traceback" not in output and "--debug" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("cdgen: error: ")]
    assert len(errors) == (code in (1, 2)), output
    others = [line for line in output.splitlines() if not line.startswith("cdgen: ")]
    assert code == 0 or not others, output
    assert all(len(line) < 1200 for line in output.splitlines())
    assert not any(ord(character) < 32 for line in output.splitlines() for character in line), output


NUMBERS = st.one_of(
    st.sampled_from(["0", "-1", "1", "-0.0", "nan", "inf", "-inf", "1e-50", "1e-46", "1e39", "-1e39", "1e300", "0.5"]),
    st.sampled_from([str(2**31), str(2**32 + 5), str(2**63), str(-(2**63) - 1), "9" * 400, "1" * 5000, "1_0", "٣", ""]),
    st.sampled_from(["true", "None", "1.0", "0x10", "1,5", " 2", "+3", "1e2", "\x1b[2J", "\ud800", "-"]),
    st.integers().map(str),
    st.floats().map(str),
)

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
        st.sampled_from([0, -1, 1, 2, 10**9, "two", "../x", "/etc/passwd", "\x1b[2J", "\ud800", "foo", math.nan]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value within a JSON value; only the first two entries of a long list count."""
    found = [path]
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items[:40] if isinstance(value, dict) else items[:2]:
        found += places(inner, (*path, key))
    return found


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a damaged version of a JSON file: another value, a missing one, or damaged bytes."""
    kind = draw(st.sampled_from(["value", "value", "value", "remove", "add", "bytes", "truncate", "replace"]))
    if kind == "truncate":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "replace":
        return draw(
            st.sampled_from([b"", b"{}", b"[]", b"null", b"\0" * 100, b"[" * 10_000, b"\xff\xfe{}", b'{"a": 1'])
        )
    if kind == "bytes":
        at = draw(st.integers(0, len(content) - 1))
        return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    value = copy.deepcopy(json.loads(content))
    path = draw(st.sampled_from(places(value)[1:]))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if kind == "remove":
        del parent[path[-1]]
    elif kind == "add" and isinstance(parent, dict):
        parent[draw(st.text(max_size=6))] = draw(VALUES)
    else:
        parent[path[-1]] = draw(VALUES)
    return json.dumps(value).encode()


def train(command: Command, training: dict[str, Path], out: Path, **options: str) -> tuple[int, str]:
    """Run `cdgen train` for two steps."""
    small = {"steps": "2", "block_size": "16", "batch_size": "4", "warmup_steps": "0", "save_every": "1"}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in (small | options).items()]
    paths = [part for pair in training.items() for part in pair]
    return command("train", *paths, *argv, "--out", out, "--quiet", ACCELERATE_USE_CPU="true")
