"""Seeds on the command line: odd files end in one clear line, and what is left out or renamed is reported."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Outcome = tuple[int, str]  # exit code, and what was printed


@pytest.fixture
def generate(cdgen_command: Callable[..., Outcome], folders: dict[str, Path], tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that runs `cdgen generate` with these seeds."""
    fixed = ("--good", folders["good"], "--method", "ancestral", "--n", 1, "--max-tokens", 6, "--quiet")

    def run(*seeds_and_more: object) -> Outcome:
        return cdgen_command("generate", *fixed, "--out", tmp_path / "out", "--seeds", *seeds_and_more)

    return run


def test_a_huge_line_is_refused_or_cut_early(generate: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text("the quick brown fox " * 100_000)
    code, printed = generate(path)
    assert code == 2 and printed.count("\n") == 1
    assert "seed s.txt:1: has more tokens than the 250 that the models' positions leave for a prompt" in printed
    assert generate(path, "--prefix-tokens", 20) == (0, "")


def test_seeds_are_read_before_models_are_loaded(generate: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes("Njáll".encode("utf-16-le"))
    code, printed = generate(tmp_path / "s.txt", "--good", tmp_path / "nosuch")
    assert code == 2 and "if it is UTF-16 without a byte-order mark" in printed and printed.count("\n") == 1
    (tmp_path / "s.txt").write_text("fish")
    code, printed = generate(tmp_path / "s.txt", tmp_path / "s.txt", "--good", tmp_path / "nosuch")
    assert code == 2 and "s.txt: is given twice" in printed


def test_a_name_that_is_not_utf8_is_one_line(generate: Callable[..., Outcome], tmp_path: Path) -> None:
    name = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"))
    Path(name).write_text("fish")
    code, printed = generate(name)
    assert code == 2 and "caf\\udce9.txt: its name is not UTF-8; rename it" in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_or_renamed_is_reported(generate: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(
        '{"text": "a fish and a fox", "id": 1}\n{"text": "", "id": 2}\n{"text": "b", "id": 1}\n'
        '{"text": "in the house there", "id": 1}\n'
    )
    code, printed = generate(tmp_path / "s.jsonl", "--chunk-words", 2, "--prefix-tokens", 1)
    assert code == 0 and printed.splitlines() == [
        "cdgen: seeds: the ids of 3 of 4 records are not unique; they are named FILE:NUMBER, such as s.jsonl:1",
        "cdgen: seeds: 2 of 4 texts are left out: 1 shorter than --chunk-words = 2, 1 empty",
    ]
    [shard] = sorted((tmp_path / "out").rglob("*.parquet"))
    ids = pq.read_table(shard)["seed_id"].to_pylist()
    assert ids == ["s.jsonl:1#0", "s.jsonl:1#1", "s.jsonl:4#0", "s.jsonl:4#1"]


def test_other_seeds_are_refused_with_the_difference(generate: Callable[..., Outcome], tmp_path: Path) -> None:
    path, other = tmp_path / "s.txt", tmp_path / "other.txt"
    path.write_text("the fox\nthe dog\n")
    other.write_text("the cat\n")
    assert generate(path) == (0, "")
    path.write_text("the fox\nthe cat\n")
    for extra, reason in (
        ((path,), "the content of their files has changed"),
        ((path, "--prefix-tokens", 2), "prefix_tokens = None, but now --prefix-tokens = 2"),
        ((other,), f"paths = ['{path}'], but now paths = ['{other}']"),
    ):
        code, printed = generate(*extra)
        assert code == 2 and printed.count("\n") == 1 and "sha256" not in printed
        assert (
            "was started with other seeds: " in printed
            and reason.replace("prefix_tokens", "--prefix-tokens") in printed
        )
