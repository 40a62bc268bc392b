"""cdgen plan: model shapes, memory compared with the cache's own, the largest batch, and the roofline of a step."""

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.cli import main
from cdgen.engine import corpus_size
from cdgen.engine.engine import Engine
from cdgen.engine.estimates import Job, Storage, largest_batch, parts_of_memory, parts_of_step
from cdgen.engine.model_sizes import PairShapes, Shape, shapes
from cdgen.engine.page_store import CacheShape
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.paged_prompts import PREFILL_TOKENS
from cdgen.engine.plan import measured_rate
from cdgen.errors import InputError
from cdgen.hardware import GPUS, Machine
from cdgen.models import products
from tests.helpers.families import family
from tests.helpers.tiny_models import make_llama

JOB = Job(1e6, prompt_tokens=20, max_tokens=60, n=4)
FLOAT32 = Storage(torch.float32, torch.float32)


def test_shapes_are_the_models(folders, good, bad) -> None:
    for model in (good, make_llama(0, tie_word_embeddings=True), family("qwen2")):
        shape = Shape.of(model.config)
        assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
        linears = [part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear)]
        norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
        assert shape.products == sum(linears) - model.lm_head.weight.numel() + norms
        assert shape.output == model.lm_head.weight.numel()
    two = shapes(folders["good"], str(folders["bad"]))
    assert two == PairShapes(Shape.of(good.config), Shape.of(bad.config))
    assert two.weights == two.good.parameters + two.bad.parameters
    first_layers = shapes(folders["good"], "layers:1")
    one, other = first_layers.good, first_layers.bad
    assert (
        first_layers.weights == one.parameters
        and other.products < one.products
        and 2 * other.cache_bytes(torch.float16) == one.cache_bytes(torch.float16)
    )
    assert shapes(folders["good"], "dropout:0.3") == (one, one, True)
    assert shapes(folders["good"], None) == (one, None, False)
    assert shapes(folders["good"], None).weights == one.parameters


def test_the_cache_takes_what_is_stated(good, bad) -> None:
    """Pages of prompts are shared, and sequences take whole pages."""
    lm = ContrastiveLM(good, bad)
    paged = PagedBackend(lm.pair, SamplingParams(max_tokens=60), 8, 80)
    memory = parts_of_memory(PairShapes(Shape.of(good.config), Shape.of(bad.config)), 8, JOB, FLOAT32)
    stated = memory["cache"]
    assert memory["activations"] == 2 * 20 * 4 * (3 * 128 + 6 * 64) + 8 * 8 * 300, (
        "two prompts, and logits of 8 sequences"
    )
    pages = 8 * (5 - 1) + 2 * 1  # a sequence has 5 pages and shares the first with its prompt; two prompts
    assert stated == pages * paged.cache.page_bytes


@pytest.mark.parametrize(
    ("prompt_tokens", "together"), [(1000, PREFILL_TOKENS), (3 * PREFILL_TOKENS, 3 * PREFILL_TOKENS)]
)
def test_activations_are_those_of_the_prompts_that_are_computed_at_once(good, prompt_tokens, together) -> None:
    """A prompt is never split, however long it is."""
    pair = PairShapes(Shape.of(good.config))
    memory = parts_of_memory(pair, 8, Job(1e6, prompt_tokens, max_tokens=60, n=1), FLOAT32)
    assert memory["activations"] == together * 4 * pair.good.activation + 8 * 8 * 300


@pytest.mark.parametrize("kind", ["two models", "first layers", "no BAD"])
def test_the_packed_copy_takes_what_is_stated(kind, good, bad) -> None:
    """A generation packs the weights of all products. Vectors are counted, too, but not packed."""
    if not products.can_pack(torch.empty(0)):
        pytest.skip("oneDNN does not pack weights for this CPU")
    good, bad = copy.deepcopy(good), copy.deepcopy(bad)
    before = set(products._PACKED)
    lm = ContrastiveLM(good, **{"two models": {"bad": bad}, "first layers": {"layers": 1}, "no BAD": {}}[kind])
    lm.generate([[5], [6], [7]], SamplingParams(max_tokens=2, contrast_strength=float(kind != "no BAD")))
    packed = sum(entry.weight.numel() for key, entry in products._PACKED.items() if key not in before)
    kept = (good, bad) if kind == "two models" else (good,)
    vectors = sum(x.numel() for model in kept for x in model.parameters() if x.dim() == 1)
    pair = {
        "two models": PairShapes(Shape.of(good.config), Shape.of(bad.config)),
        "first layers": PairShapes(Shape.of(good.config), Shape.of(copy.deepcopy(good.config), layers=1), shared=True),
        "no BAD": PairShapes(Shape.of(good.config)),
    }[kind]
    memory = parts_of_memory(pair, 8, JOB, FLOAT32._replace(packed=True))
    assert memory["packed weights"] == 4 * (packed + vectors)
    assert parts_of_memory(pair, 8, JOB, FLOAT32) == {
        name: size for name, size in memory.items() if name != "packed weights"
    }


def test_the_largest_batch_fits_and_the_next_does_not(good, bad) -> None:
    pair = PairShapes(Shape.of(good.config), Shape.of(bad.config))
    given = pair, JOB, FLOAT32

    def size(batch: int) -> int:
        return sum(parts_of_memory(pair, batch, JOB, FLOAT32).values())

    for batch in (4, 40, 400):
        assert largest_batch(Machine(size(batch), 1, 1), *given, 1000) == batch
        assert largest_batch(Machine(size(batch) - 1, 1, 1), *given, 1000) == batch - 4
    assert largest_batch(Machine(1e15, 1, 1), *given, 1000) == 1000
    assert largest_batch(Machine(1e15, 1, 1), *given, 3) == 3
    assert largest_batch(Machine(10, 1, 1), *given, 1000) == 0


def test_a_step_is_bound_by_the_slower_of_bytes_and_operations() -> None:
    good = Shape(10_000, 8_000, 1_000, CacheShape(2, 1, 16, torch.float32), 1, vocab_size=100)
    stored = Storage(torch.bfloat16, torch.bfloat16)
    few = parts_of_step(Machine(0, 1e3, 1e9), PairShapes(good), 1, JOB, stored, stored_logits=True)
    assert few == {"GOOD's layers": 16, "cache": 50 * 64 * 2 / 1e3, "output layer": 2, "logits": 0.8}
    many = parts_of_step(Machine(0, 1e9, 1e3), PairShapes(good, good), 7, JOB, stored, stored_logits=False)
    assert many["GOOD's layers"] == many["BAD's layers"] == 2 * 7 * 8_000 / 1e3
    assert many["output layer"] == 2 * 7 * 1_000 / 1e3 and many["logits"] == 0
    stored = Storage(torch.bfloat16, torch.float8_e4m3fn)
    narrow = parts_of_step(Machine(0, 1e3, 1e9), PairShapes(good), 1, JOB, stored, stored_logits=True)
    assert narrow == few | {"cache": 50 * (64 + 4 * 2) / 1e3}  # a scale of two bytes per head


def test_the_command(cdgen_command, folders) -> None:
    options = ("--good", folders["good"], "--bad", folders["bad"], "--tokens", "1e9", "--max-tokens", 60)
    code, printed = cdgen_command("plan", *options, "--gpu", "h100")
    assert code == 0 and "at best" in printed and "bound, not a measurement" in printed and "packed" not in printed
    assert f"{GPUS['h100'].bandwidth / 1e9:.0f} GB/s" in printed
    code, printed = cdgen_command("plan", *options, "--gpu", "cpu", "--batch-size", 8)
    assert code == 0 and "measured here" in printed and "measured over a few steps:" in printed
    assert ("\nmemory, packed weights: " in printed) == products.can_pack(torch.empty(0))
    code, printed = cdgen_command("plan", *options, "--gpu", "h100", "--memory-gb", 1e-6)
    assert code == 2 and printed.startswith("cdgen: error: not one sequence fits: it needs 0.0")
    assert "1e-06 GB may be used" in printed
    code, printed = cdgen_command("plan", "--good", "/nowhere", "--gpu", "h100")
    assert (code, printed) == (2, "cdgen: error: /nowhere: no such folder or file\n")


def test_gpus_share_the_time_and_not_the_gpu_hours(folders, capsys) -> None:
    argv = ["plan", "--good", str(folders["good"]), "--gpu", "h100", "--tokens", "1e15"]

    def numbers(*more: str) -> list[float]:
        assert main([*argv, *more]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("at best: ")]
        assert line.endswith(" for 1,000,000,000,000,000 tokens (bound, not a measurement)")
        return [float(number.replace(",", "")) for number in re.findall(r"[\d,.]*\d", line)[:-1]]

    rate, hours = numbers()
    assert numbers("--gpus", "8") == pytest.approx([8 * rate, hours / 8, 8, hours], rel=1e-4)
    assert main([*argv[:3], "--gpu", "cpu", "--gpus", "2"]) == 2
    assert "--gpus = 2: a job on the CPU is planned for this machine alone" in capsys.readouterr().err


def test_seeds_and_disk_of_a_corpus() -> None:
    """10 texts of 60 new tokens need 3 seeds with 4 continuations each."""
    seeds, disk = corpus_size.lines(Job(541, prompt_tokens=20, max_tokens=60, n=4))
    assert seeds.startswith("seeds: 3 for 10 texts; ")
    low, high = (bound * 10 * 80 for bound in corpus_size.ROWS)
    assert disk.startswith(f"disk: {low / 1e9:.3g} to {high / 1e9:.3g} GB, documents +")
    seeds, disk = corpus_size.lines(Job(1e11, prompt_tokens=20, max_tokens=400, n=8))
    assert seeds == "seeds: 31,250,000 for 250,000,000 texts; as chunks of 100 words: 3.12 billion words"
    assert f"disk: {corpus_size.ROWS[0] * 105:.0f} to {corpus_size.ROWS[1] * 105:.0f} GB, " in disk
    assert " to 1,050 GB (" in disk


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


def test_no_sequence_ends_while_the_rate_is_measured(good, bad, monkeypatch) -> None:
    monkeypatch.setattr(Engine, "_finish", lambda *_: pytest.fail("a sequence ended"))
    closed, close = [], PagedBackend.close
    monkeypatch.setattr(PagedBackend, "close", lambda self: closed.append(close(self)))
    assert measured_rate(ContrastiveLM(good, bad), 4, JOB) > 0 and len(closed) == 1


def test_a_bad_with_layers_that_good_does_not_have_is_refused(folders) -> None:
    for layers in (0, 2, 9):
        with pytest.raises(InputError, match=f"layers = {layers}: must be 1 to 1; GOOD has 2 layers"):
            shapes(str(folders["good"]), f"layers:{layers}")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tokens", "nan"), ("--tokens", "-1"), ("--tokens", "inf"), ("--prompt-tokens", "0"), ("--max-tokens", "-1"),
     ("--n", "0"), ("--n", "1" + 20 * "0"), ("--batch-size", "0"), ("--batch-size", "1" + 12 * "0"),
     ("--gpus", "0"), ("--gpus", "-1"), ("--memory-gb", "nan"), ("--memory-gb", "0"), ("--memory-gb", "-1"),
     ("--memory-gb", "inf")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(folders, option, value, capsys) -> None:
    assert main(["plan", "--good", str(folders["good"]), "--gpu", "h100", option, value]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cdgen: error: {option} ") and error.count("\n") == 1, error


def test_the_largest_batch_is_found_at_once(good) -> None:
    pair = PairShapes(Shape.of(good.config))
    huge = Job(1e6, prompt_tokens=20, max_tokens=60, n=1)
    assert largest_batch(Machine(1e30, 1, 1), pair, huge, FLOAT32, 2**31 - 1) == 2**31 - 1
