"""cdgen plan: model shapes, memory compared with the cache's own, the largest batch, and the roofline of a step."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.cli import main
from cdgen.engine.page_store import CacheShape
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.plan import Job, Shape, largest_batch, parts_of_memory, parts_of_step, shapes
from cdgen.errors import InputError
from cdgen.hardware import GPUS, Machine
from tests.helpers.families import family
from tests.helpers.tiny_models import make_llama

JOB = Job(1e6, prompt_tokens=20, max_tokens=60, n=4)


def test_shapes_are_the_models(folders, good, bad) -> None:
    for model in (good, make_llama(0, tie_word_embeddings=True), family("qwen2")):
        shape = Shape.of(model.config)
        assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
        linears = [part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear)]
        norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
        assert shape.products == sum(linears) - model.lm_head.weight.numel() + norms
        assert shape.output == model.lm_head.weight.numel()
    one, other, weights = shapes(folders["good"], str(folders["bad"]))
    assert weights == one.parameters + other.parameters and other == Shape.of(bad.config)
    one, other, weights = shapes(folders["good"], "layers:1")
    assert (
        weights == one.parameters
        and other.products < one.products
        and 2 * other.cache_bytes(torch.float16) == one.cache_bytes(torch.float16)
    )
    assert shapes(folders["good"], "dropout:0.3")[1] == one
    assert shapes(folders["good"], None)[1:] == (None, one.parameters)


def test_the_cache_takes_what_is_stated(good, bad) -> None:
    """Pages of prompts are shared, and sequences take whole pages."""
    lm = ContrastiveLM(good, bad)
    paged = PagedBackend(lm.pair, SamplingParams(max_tokens=60), 8, 80)
    shape = Shape.of(good.config)
    memory = parts_of_memory(shape, Shape.of(bad.config), 0, 8, JOB, 4, torch.float32)
    stated = memory["cache"]
    assert memory["activations"] == 2 * 20 * 4 * (3 * 128 + 6 * 64) + 8 * 8 * 300, (
        "two prompts, and logits of 8 sequences"
    )
    pages = 8 * (5 - 1) + 2 * 1  # a sequence has 5 pages and shares the first with its prompt; two prompts
    assert stated == pages * paged.cache.page_bytes


def test_the_largest_batch_fits_and_the_next_does_not(good, bad) -> None:
    given = Shape.of(good.config), Shape.of(bad.config), 10_000, JOB, 4, torch.float32

    def size(batch: int) -> int:
        return sum(parts_of_memory(*given[:3], batch, *given[3:]).values())

    for batch in (4, 40, 400):
        assert largest_batch(Machine(size(batch), 1, 1), *given, 1000) == batch
        assert largest_batch(Machine(size(batch) - 1, 1, 1), *given, 1000) == batch - 4
    assert largest_batch(Machine(1e15, 1, 1), *given, 1000) == 1000
    assert largest_batch(Machine(1e15, 1, 1), *given, 3) == 3
    assert largest_batch(Machine(10, 1, 1), *given, 1000) == 0


def test_a_step_is_bound_by_the_slower_of_bytes_and_operations() -> None:
    good = Shape(10_000, 8_000, 1_000, CacheShape(2, 1, 16, torch.float32), 1, vocab_size=100)
    few = parts_of_step(Machine(0, 1e3, 1e9), good, None, 1, JOB, 2, torch.bfloat16, stored_logits=True)
    assert few == {"GOOD's layers": 16, "cache": 50 * 64 * 2 / 1e3, "output layer": 2, "logits": 0.8}
    many = parts_of_step(Machine(0, 1e9, 1e3), good, good, 7, JOB, 2, torch.bfloat16, stored_logits=False)
    assert many["GOOD's layers"] == many["BAD's layers"] == 2 * 7 * 8_000 / 1e3
    assert many["output layer"] == 2 * 7 * 1_000 / 1e3 and many["logits"] == 0
    narrow = parts_of_step(Machine(0, 1e3, 1e9), good, None, 1, JOB, 2, torch.float8_e4m3fn, stored_logits=True)
    assert narrow == few | {"cache": 50 * (64 + 4 * 2) / 1e3}  # a scale of two bytes per head


def test_the_command(cdgen_command, folders) -> None:
    options = ("--good", folders["good"], "--bad", folders["bad"], "--tokens", "1e9", "--max-tokens", 60)
    code, printed = cdgen_command("plan", *options, "--gpu", "h100")
    assert code == 0 and "at best" in printed and "bound, not a measurement" in printed
    assert f"{GPUS['h100'].bandwidth / 1e9:.0f} GB/s" in printed
    code, printed = cdgen_command("plan", *options, "--gpu", "cpu", "--batch-size", 8)
    assert code == 0 and "measured here" in printed and "measured over a few steps:" in printed
    code, printed = cdgen_command("plan", *options, "--gpu", "h100", "--memory-gb", 1e-6)
    assert code == 2 and printed.startswith("cdgen: error: not one sequence fits: it needs 0.0")
    assert "1e-06 GB may be used" in printed
    code, printed = cdgen_command("plan", "--good", "/nowhere", "--gpu", "h100")
    assert (code, printed) == (2, "cdgen: error: /nowhere: no such folder or file\n")


def test_the_dtype_is_that_of_generate(cdgen_command, good, folders, tmp_path) -> None:
    """float32 on the CPU; on a GPU the checkpoint's dtype, but bfloat16 instead of float32."""
    copy.deepcopy(good).half().save_pretrained(tmp_path / "half")
    for model, machine, dtype in (
        (folders["good"], ["h100"], "bfloat16"),
        (tmp_path / "half", ["h100"], "float16"),
        (folders["good"], ["h100", "--dtype", "float32"], "float32"),
        (tmp_path / "half", ["cpu", "--batch-size", 8], "float32"),
    ):
        code, printed = cdgen_command("plan", "--good", model, "--gpu", *machine)
        assert code == 0 and f" tokens, {dtype}, cache {dtype}\n" in printed, printed


@pytest.mark.parametrize("option", ["--kv-cache-dtype", "--dtype"])
def test_an_unknown_dtype_is_refused(cdgen_command, folders, option) -> None:
    code, printed = cdgen_command("plan", "--good", folders["good"], "--gpu", "h100", option, "int3")
    assert code == 2 and "= 'int3': use float32, bfloat16" in printed
    assert ("or fp8" in printed) == (option == "--kv-cache-dtype")


def test_fp8_pages_take_fewer_bytes_and_need_a_recent_gpu(cdgen_command, folders) -> None:
    options = ("plan", "--good", folders["good"], "--kv-cache-dtype", "fp8")
    code, printed = cdgen_command(*options, "--gpu", "h100")
    assert code == 0 and ", cache fp8\n" in printed
    code, printed = cdgen_command(*options, "--gpu", "a100")
    assert code == 2 and printed.startswith("cdgen: error: kv_cache_dtype = 'fp8': an A100 has no fp8")


def test_the_short_run_trusts_code_exactly_as_the_estimate_does(folders, monkeypatch, capsys) -> None:
    asked = []

    def record(*_: Any, trust_remote_code: bool, **__: Any) -> Any:
        asked.append(trust_remote_code)
        return SimpleNamespace(lines=lambda: [], batch=1, job=JOB, rate=1.0)

    monkeypatch.setattr("cdgen.engine.plan.plan", record)
    monkeypatch.setattr("cdgen.engine.llm.ContrastiveLM", record)
    monkeypatch.setattr("cdgen.engine.plan.measured_rate", lambda *_: 1.0)
    for flag in ([], ["--trust-remote-code"]):
        assert main(["plan", "--good", str(folders["good"]), "--gpu", "cpu", *flag]) == 0
    assert asked == [False, False, True, True]


def test_a_bad_with_layers_that_good_does_not_have_is_refused(folders) -> None:
    for layers in (0, 2, 9):
        with pytest.raises(InputError, match=f"layers = {layers}: must be 1 to 1; GOOD has 2 layers"):
            shapes(str(folders["good"]), f"layers:{layers}")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tokens", "nan"), ("--tokens", "-1"), ("--tokens", "inf"), ("--prompt-tokens", "0"), ("--max-tokens", "-1"),
     ("--n", "0"), ("--n", "1" + 20 * "0"), ("--batch-size", "0"), ("--batch-size", "1" + 12 * "0"),
     ("--memory-gb", "nan"), ("--memory-gb", "0"), ("--memory-gb", "-1"), ("--memory-gb", "inf")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(folders, option, value, capsys) -> None:
    assert main(["plan", "--good", str(folders["good"]), "--gpu", "h100", option, value]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cdgen: error: {option} ") and error.count("\n") == 1, error


def test_the_largest_batch_is_found_at_once(good) -> None:
    shape = Shape.of(good.config)
    huge = Job(1e6, prompt_tokens=20, max_tokens=60, n=1)
    assert largest_batch(Machine(1e30, 1, 1), shape, None, 0, huge, 4, torch.float32, 2**31 - 1) == 2**31 - 1
