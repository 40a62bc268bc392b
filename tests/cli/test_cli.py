"""The command line: its help, its exit codes, and errors that are a single line and never a traceback."""

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.sampling import PYTHON_ONLY, sampling_params
from cdgen.engine.sampling_params import FIELDS
from cdgen.errors import InputError
from cdgen.hardware import GPUS
from cdgen.training.config import FIELDS as TRAIN_FIELDS

Outcome = tuple[int, str]  # exit code, and what was printed
HELP = [("--help",), *((*command, "--help") for command in (
    ("generate",), ("prepare",), ("tokenizer",), ("train",), ("models",), ("models", "ls"), ("run",), ("plan",),
    ("demo",), ("info",), ("show",), ("report",), ("evaluate",), ("compare",), ("corpus-stats",), ("corpus", "verify"),
    ("bench",),
))]  # fmt: skip


def cdgen(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m cdgen` in a separate process."""
    return subprocess.run([sys.executable, "-m", "cdgen", *map(str, argv)], capture_output=True, text=True, **options)


class Generate:
    """Runs `cdgen generate` with small settings, which options of a call replace or follow."""

    def __init__(self, command: Callable[..., Outcome], options: dict[str, object], out: Path) -> None:
        self._command, self._options, self.out = command, options | {"--out": out}, out

    def __call__(self, *extra: object, drop: tuple[str, ...] = (), **options: Any) -> Outcome:
        kept = {flag: value for flag, value in self._options.items() if flag not in (*extra, *drop)}
        return self._command("generate", *(part for pair in kept.items() for part in pair), *extra, **options)

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.out / "_manifest.json").read_text())


@pytest.fixture
def generate(
    cdgen_command: Callable[..., Outcome], folders: dict[str, Path], seeds_file: Path, tmp_path: Path
) -> Generate:
    options = {
        "--good": folders["good"], "--bad": folders["bad"], "--seeds": seeds_file,
        "--n": 2, "--max-tokens": 5, "--shard-size": 40, "--batch-size": 20,
    }  # fmt: skip
    return Generate(cdgen_command, options, tmp_path / "out")


def assert_one_line(code: int, output: str, expected_code: int, *parts: object) -> None:
    """Check that a command failed with a one-line error that contains all parts."""
    assert code == expected_code, output
    assert output.startswith("cdgen: error: ") and output.count("\n") == 1, output
    for part in parts:
        assert str(part) in output


# ------------------------------------------------------------------------------------------------ help


def test_help_loads_no_torch() -> None:
    code = "\n".join([
        "import sys, cdgen.cli",
        "for line in sys.argv[1:]:",
        "    try: cdgen.cli.main(line.split())",
        "    except SystemExit as stop: assert stop.code == 0, line",
        "    else: raise AssertionError(line)",
        "    assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules), line",
    ])  # fmt: skip
    lines = [" ".join(argv) for argv in [*HELP, ("--version",)]]
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_option() -> None:
    help_of = {name: cdgen(name, "--help").stdout for name in ("generate", "train")}
    options = [
        *("good", "bad", "dtype", "device", "kv-cache-dtype", "kv-cache-gb", "trust-remote-code"),
        *("seeds", "seed-field", "prefix-tokens", "chunk-words"),
        *("out", "shard-size", "format", "batch-size", "split-documents", "resume", "no-resume", "quiet"),
        *("method", "min-p", *(name.replace("_", "-") for name in FIELDS if name not in PYTHON_ONLY)),
    ]
    assert [option for option in options if f"--{option} " not in help_of["generate"].replace(",", " ")] == []
    options = [field.name.replace("_", "-") for field in TRAIN_FIELDS]
    assert [option for option in options if f"--{option} " not in help_of["train"]] == []
    assert all(f"    {argv[0]} " in cdgen("--help").stdout for argv in HELP[1:])


def test_plan_offers_every_data_sheet() -> None:
    """The command line repeats the names, because it does not import torch and the data sheets' module does."""
    with pytest.raises(InputError) as caught:
        build_parser().parse_args(["plan", "--good", "g", "--gpu", "abacus"])
    offered = str(caught.value).partition("choose from")[2].partition(")")[0]
    assert re.findall(r"\w+", offered) == [*GPUS, "cpu"]


@pytest.mark.parametrize(
    "argv, alpha, contrast",
    [
        ((), 0.1, 1.0),
        (("--min-p", "0.05"), 0.05, 0.0),
        (("--min-p", "0.05", "--contrast-strength", "0.5"), 0.05, 0.5),
        (("--contrast-strength", "0.5", "--min-p", "0.05"), 0.05, 0.5),
        (("--method", "head", "--min-p", "0.05"), 0.05, 0.0),
    ],
)
def test_min_p_is_alpha_without_contrast(argv: tuple[str, ...], alpha: float, contrast: float) -> None:
    args = build_parser().parse_args(["generate", "--good", "g", "--bad", "b", "--seeds", "s", "--out", "o", *argv])
    params = sampling_params(args)
    assert (params.alpha, params.contrast_strength) == (alpha, contrast)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("lower max_num_seqs or kv_cache_memory_bytes", "lower --batch-size or --kv-cache-gb"),
        ("generate it with split_documents=True", "generate it with --split-documents"),
        ("use dtype='float32' for full precision", "use --dtype float32 for full precision"),
        ("choose another folder, or use resume=False", "choose another folder, or use --no-resume"),
    ],
)
def test_messages_recommend_options_of_the_command_line(
    message: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Library messages name arguments; errors and warnings that the command line prints name its options."""

    def run(args: object) -> int:
        logging.getLogger("cdgen").warning(message)
        raise InputError(message)

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("cdgen.cli.info.run", run)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == f"cdgen: {shown}\ncdgen: error: {shown}\n"


def test_an_unknown_implementation_is_reported_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = ("train", "--corpus", tmp_path, "--tokenizer", tmp_path, "--out", tmp_path / "run")
    done = cdgen(*command, env=os.environ | {"CDGEN_IMPL": "magic"})
    assert_one_line(done.returncode, done.stderr, 2, "CDGEN_IMPL=magic")


@pytest.mark.slow
def test_info(cdgen_command: Any) -> None:
    code, output = cdgen_command("info", CDGEN_CACHE="/some/cache")
    assert code == 0
    for part in (
        "cdgen 0.1.0",
        "torch ",
        "transformers ",
        "python ",
        "threads",
        "ops for cpu: ",
        "triton: ",
        "cache folder: /some/cache",
    ):
        assert part in output
    done = cdgen("info", env=os.environ | {"CDGEN_IMPL": "reference"})
    assert "ops for cpu: reference (CDGEN_IMPL is set)" in done.stdout
    if importlib.util.find_spec("triton"):
        done = cdgen("info", env=os.environ | {"CDGEN_IMPL": "triton"})
        assert "CDGEN_IMPL=triton does not apply to the CPU" in done.stdout
    done = cdgen("info", env=os.environ | {"CDGEN_IMPL": "magic"})
    assert_one_line(done.returncode, done.stderr, 2, "CDGEN_IMPL=magic")


# ------------------------------------------------------------------------------------------------ corpora


def test_progress_and_summary_and_a_second_command_with_nothing_to_do(generate: Generate) -> None:
    code, output = generate()
    assert code == 0
    assert "100 documents to write, 0 already done" in output and "data/train-00002.parquet: 20 documents" in output
    assert "tokens/s" in output and "wrote 3 of 3 shards; 100 documents" in output
    manifest = generate.manifest()
    assert manifest["complete"] and manifest["counts"]["documents"] == 100
    code, output = generate()
    assert code == 0 and "already complete, nothing to do; 100 documents" in output
    assert generate("--quiet") == (0, "")
    assert_one_line(*generate("--max-tokens", 6), 2, "max_tokens = 5, but now max_tokens = 6")
    code, output = generate("--max-tokens", 6, "--no-resume")
    assert code == 0 and "wrote 3 of 3 shards" in output


def test_options_reach_the_corpus(generate: Generate) -> None:
    code, output = generate(
        "--method", "contrastive_top_k", "--top-k", 7, "--temperature", 0.9, "--outside-head", -20, "--stop", "zz",
        "--stop", "yy", "--stop-token-ids", 9, "--ignore-eos", "--no-skip-special-tokens", "--format", "jsonl.gz",
        "--split-documents", "--prefix-tokens", 2, "--logprobs", "--quiet", "--seed", 12, "--dtype", "bfloat16",
    )  # fmt: skip
    assert (code, output) == (0, "")
    settings = generate.manifest()["settings"]
    wanted = {
        "top_k": 7, "temperature": 0.9, "outside_head": -20.0, "stop": ["zz", "yy"], "stop_token_ids": [9],
        "ignore_eos": True, "skip_special_tokens": False, "format": "jsonl.gz", "split_documents": True,
        "logprobs": True, "seed": 12, "alpha": 0.1, "dtype": "bfloat16",
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    assert (generate.out / "_documents/00000.jsonl.gz").exists()


def test_the_cache_has_a_dtype_and_a_budget(generate: Generate) -> None:
    code, output = generate("--kv-cache-dtype", "bfloat16", "--kv-cache-gb", 0.001)
    assert code == 0, output
    assert generate.manifest()["settings"]["kv_cache_dtype"] == "bfloat16"
    assert_one_line(*generate("--kv-cache-dtype", "float16"), 2, "kv_cache_dtype")  # another corpus
    assert_one_line(
        *generate("--kv-cache-gb", 1e-6, "--no-resume", "--quiet"), 2, "tokens needs", "raise --kv-cache-gb"
    )
    assert_one_line(*generate("--kv-cache-dtype", "int8", "--no-resume"), 2, "use float32, bfloat16, float16 or fp8")


def test_bad_derived_from_good(generate: Generate, cdgen_command: Any) -> None:
    for index, bad in enumerate(("dropout:0.3", "layers:1")):
        out = generate.out.with_name(f"out{index}")
        assert generate("--bad", bad, "--out", out)[0] == 0
        manifest = json.loads((out / "_manifest.json").read_text())
        assert manifest["models"]["bad"]["fingerprint"] == f"{manifest['models']['good']['fingerprint']}+{bad}"


def test_plain_sampling_needs_no_bad(generate: Generate) -> None:
    for values in (("--method", "ancestral"), ("--alpha", 0, "--contrast-strength", 0)):
        assert generate(*values, drop=("--bad",))[0] == 0  # the second finds the corpus of the first
    assert generate.manifest()["models"]["bad"] is None


# ------------------------------------------------------------------------------------------------ errors


def test_bad_requests_print_one_line_and_exit_with_2(
    generate: Generate, folders: dict[str, Path], tmp_path: Path, seeds_file: Path
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for argv, part in (
        (["--good", tmp_path / "none"], "none: no such folder or file"),
        (["--bad", folders["other"]], "do not share a vocabulary: id "),
        (["--bad", "dropout:2"], "dropout = 2.0: must be between 0 and 1"),
        (["--bad", "dropout:x"], "use dropout:0.3, layers:12"),
        (["--bad", "layers:2"], "layers = 2: must be 1 to 1"),
        (["--seeds", tmp_path / "none.txt"], "no such seeds file"),
        (["--seeds", tmp_path / "latin.txt"], "byte 3 is not UTF-8"),
        (["--alpha", 2], "--alpha 2.0: must be 0 to 1"),
        (["--alpha", 0.1, "--min-p", 0.1], "give only one of them"),
        (["--alpha", "much"], "argument --alpha: invalid float value: 'much'; see cdgen generate --help"),
        (["--method", "ancestral", "--alpha", 0.1], "this is 'head'"),
        (["--batch-size", 0], "--batch-size = 0"),
        (["--max-tokens", 1000], "max_tokens = 1000: leaves no room for a prompt in the models' 256 positions"),
        (["--max-tokens", 255], "positions leave for a prompt; shorten it, or lower max_tokens"),
        (["--dtype", "int8"], "dtype = 'int8'"),
        (["--device", "nowhere"], "device = 'nowhere': cannot be used here"),
        (["--device", "cuda:99"], "device = 'cuda:99': cannot be used here"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ):
        code, output = generate(*argv)
        assert_one_line(code, output, 2, part)
    assert_one_line(*generate(drop=("--bad",)), 2, "--bad is required for the method contrastive")
    assert_one_line(*generate(drop=("--good",)), 2, "--good")


@pytest.mark.slow
def test_errors_go_to_standard_error(tmp_path: Path) -> None:
    done = cdgen(
        "generate", "--good", tmp_path / "none", "--seeds", "s.txt", "--out", tmp_path / "o", "--method", "ancestral"
    )
    assert_one_line(done.returncode, done.stderr, 2, "s.txt: no such seeds file")
    assert done.stdout == ""


def test_an_altered_shard_exits_with_1(generate: Generate) -> None:
    assert generate()[0] == 0
    path = generate.out / "data/train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert_one_line(*generate(), 1, "train-00001.parquet: is truncated or altered", "delete it and rerun")
    path.unlink()
    code, output = generate()
    assert code == 0 and "wrote 1 of 3 shards" in output


@pytest.mark.parametrize("place", ["file", "below a file", "/proc/corpus"])
def test_folders_that_cannot_be_written_exit_with_1(generate: Generate, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("I am not a folder")
    out = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "corpus"}.get(place, place)
    assert_one_line(*generate("--out", out), 1, out, "cannot create this folder")
    assert (tmp_path / "file").read_text() == "I am not a folder"


def test_full_disk(generate: Generate) -> None:
    """Files are limited to 6,000 bytes, in which some documents fit. They are not decoded again."""
    code, output = generate("--shard-size", 100, "--max-tokens", 40, limit=6000)
    last = output.splitlines()[-1]
    assert code == 1 and "Traceback" not in output
    assert last.startswith("cdgen: error: ") and ".jsonl: cannot be written: File too large" in last
    assert [path.name[:15] for path in generate.out.iterdir()] == [".cdgen-journal-"]
    code, output = generate("--shard-size", 100, "--max-tokens", 40)
    assert code == 0 and re.search(r"100 documents to write, [1-9]\d* already done", output)


def test_full_file_system(generate: Generate, tmp_path: Path) -> None:
    """The first shards fit into a file system of 48 KiB, a later one does not; with more space, generation resumes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        options = ("--out", disk / "out", "--shard-size", 20, "--max-tokens", 120)
        code, output = generate(*options)
        assert code == 1 and "Traceback" not in output
        assert "cannot be written: No space left on device" in output.splitlines()[-1]
        manifest = json.loads((disk / "out" / "_manifest.json").read_text())
        assert 0 < len(manifest["shards"]) < 5
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        code, output = generate(*options)
        assert code == 0 and f"wrote {5 - len(manifest['shards'])} of 5 shards" in output
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_ctrl_c(generate: Generate, cdgen_command: Any, folders: dict[str, Path], seeds_file: Path) -> None:
    argv = ("--good", folders["good"], "--bad", folders["bad"], "--seeds", seeds_file, "--out", generate.out)
    child = cdgen_command.start("generate", *argv, "--shard-size", 10, "--max-tokens", 100, "--n", 8)
    deadline = time.monotonic() + 60
    while not (generate.out / "data/train-00000.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    code, output = cdgen_command.wait()
    assert code == 130 and "Traceback" not in output
    assert output.splitlines()[-1].startswith("cdgen: interrupted")
    assert (generate.out / "data/train-00000.parquet").exists()
