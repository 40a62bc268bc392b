"""The GPU benchmark as far as it runs without a GPU: its checks, on plain implementations and on executed PTX."""

import json
import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from ptx import Device

from benchmarks import aot, gpu
from benchmarks.cases import OPS, Case
from benchmarks.check import ROUNDING, Checked, check, check_noise, greatest_error
from benchmarks.cold import quartiles

BY_NAME = {op.name: op for op in OPS}
SMALL = (3, 500)  # batch and vocabulary


@pytest.mark.parametrize("name", BY_NAME)
def test_every_check_passes_the_definition(name):
    op = BY_NAME[name]
    checked = check(Case(op, torch.float32, *SMALL), "cpu", fused=op.plain)
    assert checked.ok and checked.mismatches == 0
    assert checked.rows >= SMALL[0]


@pytest.mark.parametrize("name", BY_NAME)
def test_what_it_is_compared_with_runs(name):
    op = BY_NAME[name]
    case = Case(op, torch.float32, *SMALL)
    op.eager(*case.make("cpu"))
    for rival, call in op.rivals.items():
        if rival not in ("FlashInfer", "Liger"):
            call(*case.make("cpu"))
    assert op.bytes(*case.make("cpu")) > 0


@pytest.mark.parametrize(
    "name",
    [
        "sample, contrastive",
        "head",
        "gathered_scores",
        "softmax_gradient",
        "add_rms_norm",
        "rope_and_store",
        "paged_attention, 12 heads, dropout",
        "paged_attention, 32 heads on 8",
    ],
)
def test_compiled_code_passes_the_check(name, monkeypatch):
    monkeypatch.setattr("benchmarks.check.CALLS", 1)
    with Device(90):
        checked = check(Case(BY_NAME[name], torch.bfloat16, *SMALL), "cpu")
    assert checked.ok, checked


def test_wrong_tokens_fail_the_check():
    op = OPS[0]

    def wrong(*inputs):
        outputs = op.plain(*inputs)
        return outputs | {"token": (outputs["token"] + 1) % SMALL[1]}

    checked = check(Case(op, torch.float32, *SMALL), "cpu", fused=wrong)
    assert not checked.ok and checked.mismatches == checked.rows


@pytest.mark.parametrize("scale", [1 + 1e-3, torch.nan])
def test_wrong_floats_fail_the_check(scale):
    op = BY_NAME["gathered_scores"]
    checked = check(
        Case(op, torch.float32, *SMALL), "cpu", fused=lambda *inputs: {"score": op.plain(*inputs)["score"] * scale}
    )
    assert not checked.ok and checked.mismatches == 0


def test_a_few_mismatches_are_allowed_and_counted():
    assert Checked("", 1024, 1, {}).ok
    assert not Checked("", 1024, 2, {}).ok
    assert not Checked("", 8, 1, {}).ok


def test_greatest_error():
    x = torch.tensor([1.0, -torch.inf, torch.nan])
    assert greatest_error(x, x) == 0
    assert greatest_error(x, torch.tensor([1.5, -torch.inf, torch.nan])) == 0.5
    assert greatest_error(x, torch.tensor([1.0, torch.inf, torch.nan])) == torch.inf
    assert greatest_error(x, torch.tensor([1.0, -torch.inf, 0.0])) == torch.inf
    assert ROUNDING < 1e-5


def test_noise_of_compiled_code_is_the_references():
    with Device(80):
        checked = check_noise("cpu", tokens=2_003)
    assert checked.ok and checked.mismatches == 0


def test_quartiles():
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2, 3, 4)


def test_rivals_that_cannot_run_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def absent():
        raise ImportError("no such package")

    running, failed = gpu.able({"fused": int, "other": absent}, ())
    assert list(running) == ["fused"] and failed == {"other": "ImportError: no such package"}
    with pytest.raises(ImportError):
        gpu.able({"fused": absent}, ())


def test_compiles_at_the_main_size_only():
    op = OPS[0]
    assert "torch.compile" in gpu.variants(Case(op, op.dtypes[0], op.batches[0], 500))
    assert list(gpu.variants(Case(op, op.dtypes[0], 1, 500))) == ["fused", "torch eager", *op.rivals]


def test_without_a_gpu_it_compiles_and_says_so(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(aot, "main", called.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json", "out.json"]) == 0
    assert called == [["--json", "out.json"]]
    assert capsys.readouterr().out.startswith("No CUDA GPU here")


class CpuTimer:
    """In the place of ColdTimer: calls everything once, and gives times of its own."""

    def time(self, variants, inputs):
        for call in variants.values():
            call(*inputs[-1])
        return {name: [1e-6, 2e-6, 3e-6] for name in variants}


@pytest.fixture
def pretended_gpu(monkeypatch):
    """main() with the CPU in the place of a GPU, and two small cases."""
    make = Case.make
    monkeypatch.setattr(Case, "make", lambda case, device, seed=0: make(case, "cpu", seed))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    wanted = [Case(BY_NAME[name], torch.float32, *SMALL) for name in ("sample, ancestral", "linear_cross_entropy")]
    monkeypatch.setattr(gpu, "cases", lambda: wanted)
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "none", "hip": None})
    monkeypatch.setattr(gpu, "check_noise", lambda device: Checked("noise", 1, 0, {}))
    monkeypatch.setattr(gpu, "check_graph", lambda: Checked("graph", 1, 0, {}))
    monkeypatch.setattr(gpu, "check", lambda case, device: check(case, "cpu", fused=case.op.plain))
    monkeypatch.setattr(gpu, "variants", lambda case: {"fused": case.op.plain, "eager": case.op.eager} | case.op.rivals)
    monkeypatch.setattr(gpu, "ColdTimer", CpuTimer)
    monkeypatch.setattr(gpu, "measure_limits", lambda timer: {"copy, bytes/s": 1e12, "float32, FLOP/s": 1e13})


def test_the_whole_run(pretended_gpu, tmp_path, capsys):
    assert gpu.main(["--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [timed["case"] for timed in found["timed"]] == [check["name"] for check in found["checks"][2:]]
    sampled, trained = found["timed"]
    assert sampled["of copy"] == pytest.approx(sampled["bytes"] / 2e-6 / 1e12) and "of matmul" not in sampled
    assert trained["of matmul"] == pytest.approx(trained["flops"] / 2e-6 / 1e13)
    assert list(sampled["seconds, quartiles"]) == ["fused", "eager"] and list(sampled["failed"]) == ["FlashInfer"]
    assert found["dropped"] == [] and "Dropped" not in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(pretended_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "check", lambda case, device: Checked(str(case), 100, 50, {}))
    assert gpu.main(["--json", str(tmp_path / "out.json")]) == 1
    assert json.loads((tmp_path / "out.json").read_text())["timed"] == []


def test_a_kernel_that_fails_does_not_end_the_run(pretended_gpu, monkeypatch, tmp_path):
    def fail(case, device):
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(gpu, "check", fail)
    assert gpu.main(["--json", str(tmp_path / "out.json")]) == 1
    checks = json.loads((tmp_path / "out.json").read_text())["checks"]
    assert [check["failure"] for check in checks[2:]] == 2 * ["RuntimeError: no such instruction"]


def test_what_does_not_fit_the_budget_is_named(pretended_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "BUDGET", 0)
    assert gpu.main([]) == 0
    assert (
        "Dropped, since 0 s were used up: sample, ancestral, float32 [3, 500]; linear_cross" in capsys.readouterr().out
    )


def test_what_is_printed_of_a_timed_case(capsys):
    times = {"fused": (1e-5, 1.1e-5, 1.2e-5), "torch eager": (1e-4, 1.1e-4, 2e-4)}
    result = {"case": "x", "seconds, quartiles": times, "failed": {"Liger": "ImportError: no"}, "bytes/s": 1e12}
    gpu.show_timed(result | {"of copy": 0.5, "FLOP/s": 1e14, "of matmul": 0.25})
    out = capsys.readouterr().out
    assert "1000 GB/s, 50% of the copy; 100 TFLOP/s, 25% of the matrix product" in out
    assert "110.0" in out and "10.00" in out and "Liger: ImportError: no" in out
