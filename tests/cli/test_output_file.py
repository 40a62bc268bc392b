"""Files that commands write besides their folders: what they may replace, and `~` in names of files and folders."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams, evaluate, generate_corpus, prepare_corpus, train_tokenizer
from cdgen.cli import main
from cdgen.cli.output_file import HTML, check_output_file, json_object, write_json_file, write_output_file
from cdgen.errors import InputError
from tests.helpers.tiny_models import SENTENCES

JSON = json_object("cdgen figures", "a", "b")
OTHERS: dict[str, bytes] = {
    "manifest.json": b'{"kind": "prepared", "a": 1, "b": 2}',
    "part.json": b'{"a": 1}',
    "list.json": b'["a", "b"]',
    "cut.json": b'{"a": 1, "b": ',
    "deep.json": b"[" * 100_000,
    "data.parquet": b"PAR1\0",
    "notes.txt": b"Dear diary",
    "blank.txt": b"\n",
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a text and files that no command may replace; the home folder is another one."""
    for folder in ("home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    for name, content in OTHERS.items():
        Path(name).write_bytes(content)
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    return tmp_path / "work"


@pytest.mark.parametrize("content", [HTML, JSON])
@pytest.mark.parametrize("name", [*OTHERS, "text.jsonl", "link", "pipe", "/dev/null"])
def test_no_other_file_is_replaced(name: str, content: Any) -> None:
    os.symlink("absent", "link")
    os.mkfifo("pipe")
    with pytest.raises(InputError, match=rf"^--json {name}: is (not |a symbolic link).*, and would be replaced; "):
        check_output_file("--json", name, content)


@pytest.mark.parametrize("name", ["", ".", "..", "folder", "folder/", "notes.txt/x"])
def test_names_of_no_file(name: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(InputError, match=r"^--out .*: (is not the name of a file|.*notes.txt is not a folder)$"):
        check_output_file("--out", name, HTML)


def test_a_file_of_the_same_kind_is_replaced() -> None:
    Path("empty").touch()
    check_output_file("--json", "empty", JSON)
    check_output_file("--json", "new/a.json", JSON)
    assert write_json_file("new/a.json", {"a": "é", "b": None}) == Path("new/a.json")
    assert json.loads(Path("new/a.json").read_bytes()) == {"a": "é", "b": None}
    check_output_file("--json", "new/a.json", JSON)
    with pytest.raises(InputError, match=r"new/a.json: is not an HTML page, and would be replaced"):
        check_output_file("--out", "new/a.json", HTML)


def test_commands_check_the_file_before_they_begin(capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in OTHERS.items():
        for command in (("corpus-stats", "text.jsonl"), ("bench", "--vocab-size", "60", "--batch-size", "1")):
            assert main([*command, "--json", name]) == 2
            printed, error = capsys.readouterr()
            assert printed == "" and f"--json {name}: is not the JSON of cdgen {command[0]}, and" in error
        assert Path(name).read_bytes() == content
    for _ in range(2):  # the second time, it replaces its own file
        assert main(["corpus-stats", "text.jsonl", "--json", "stats.json"]) == 0


def test_the_home_folder(folders: dict[str, Path], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`~` means the same in inputs and outputs, whether or not a shell has replaced it."""
    home = work.parent / "home"
    Path("text.jsonl").rename(home / "text.jsonl")
    assert prepare_corpus("~/text.jsonl", "~/corpus", test=0, seeds=0).folder == home / "corpus"
    assert main(["prepare", "~/text.*l", "--out", "~/corpus", "--test", "0", "--seeds", "0"]) == 0
    train_tokenizer("~/corpus", "~/tokenizer", vocab_size=300)
    lm = ContrastiveLM(folders["good"], folders["bad"])
    params = SamplingParams(max_tokens=2)
    assert generate_corpus(lm, Path("~/text.jsonl"), "~/synthetic", params).folder == home / "synthetic"
    sizes = ["--model", "tiny", "--steps", "1", "--block-size", "16", "--batch-size", "4"]
    training = ["train", "--corpus", "~/corpus", "--tokenizer", "~/tokenizer", "--out", "~/run", *sizes]
    assert main([*training, "--synthetic", "~/synthetic", "--quiet"]) == 0
    evaluate(["one=~/run@best"], ["perplexity=~/corpus/train.parquet"], "~/results")
    assert main(["compare", "~/results", "--baseline", "one", "--out", "~/comparison"]) == 0
    assert main(["corpus-stats", "~/corpus", "~/synthetic", "--json", "~/stats.json"]) == 0
    assert write_output_file("~/page.html", b"") == home / "page.html"
    made = {"corpus", "tokenizer", "synthetic", "run", "results", "comparison", "stats.json", "page.html", "text.jsonl"}
    assert made <= {path.name for path in home.iterdir()} and not Path("~").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["compare", "~nobody_x"],
        ["corpus-stats", "~nobody_x"],
        ["evaluate", "~nobody_x", "--tasks", "held_out=text.jsonl", "--out", "out"],
        ["evaluate", "nobody", "--tasks", "held_out=~nobody_x", "--out", "out"],
        ["train", "--corpus", "~nobody_x", "--tokenizer", "~nobody_x", "--out", "out"],
        ["tokenizer", "~nobody_x", "--out", "out"],
        ["prepare", "~nobody_x", "--out", "out"],
        ["corpus", "verify", "~nobody_x"],
    ],
)
def test_the_home_of_an_unknown_user(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) in (1, 2)
    error = capsys.readouterr().err
    assert "nobody_x: " in error or "nobody: " in error
    assert "unexpected" not in error and error.count("\n") == 1 and not Path("out").exists()
