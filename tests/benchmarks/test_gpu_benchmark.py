"""The GPU run, as far as it works without a GPU: every job on the CPU, its checks and its times."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from accelerate.state import AcceleratorState

from benchmarks.gpu import check_jobs, records, sweep, timing
from benchmarks.gpu.check import ROUNDING, Checked, check, greatest_error
from benchmarks.gpu.context import Context
from benchmarks.gpu.noise import check_noise
from benchmarks.gpu.parts import PARTS, Job
from benchmarks.ops.cases import OPS, Case
from benchmarks.ops.op import Outputs
from cdgen.bench.timing import quartiles
from tools.ptx_sim import Device

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BY_NAME = {op.name: op for op in OPS}
SMALL = (3, 500)  # batch and vocabulary
CPU = torch.device("cpu")

# ---------------------------------------------------------------------------------------------------------- the jobs


def test_every_job_of_the_table_exists() -> None:
    for part, jobs in PARTS.items():
        by_module: dict[str, set[str]] = {}
        for job in jobs:
            assert job.part == part and 0 < job.expected < job.limit
            by_module.setdefault(job.module, set()).add(job.name)
        for module, names in by_module.items():
            assert importlib.import_module(module).JOBS.keys() == names


IN_PROCESS = [
    job
    for jobs in PARTS.values()
    for job in jobs
    if not (job.skipped_in_dry_run or job.compiles or job.part == "end_to_end" or job.name == "edges")
]


@pytest.mark.parametrize("job", IN_PROCESS, ids=lambda job: f"{job.part}-{job.name}")
def test_every_job_runs_on_the_cpu(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    importlib.import_module(job.module).JOBS[job.name](Context(job.part, job.name, out, 100, CPU))
    AcceleratorState._reset_state()
    found = list(records.read(out))
    planned = {name for record in found if record["kind"] == "planned" for name in record["names"]}
    assert planned == {record["name"] for record in found if record["kind"] == "result"} != set()
    assert not [record for record in found if record.get("status", "ok") != "ok"]


# -------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", BY_NAME)
def test_eager_code_and_rivals_run(name: str) -> None:
    op = BY_NAME[name]
    case = Case(op, torch.float32, *SMALL)
    op.eager(*case.make(CPU))
    for rival, call in op.rivals.items():
        if rival not in ("FlashInfer", "Liger"):
            call(*case.make(CPU))
    assert op.bytes(*case.make(CPU)) > 0


@pytest.mark.parametrize(
    "name",
    [
        "contrastive_sample, contrastive",
        "select_candidates",
        "gather_logits",
        "softmax_gradient",
        "add_rms_norm",
        "silu_mul",
        "rope_and_store",
        "paged_attention, 12 heads, dropout",
        "paged_attention, 32 heads, 8 KV heads",
        "paged_attention, shared prefixes, 12 heads",
    ],
)
def test_compiled_code_passes_the_check(name: str) -> None:
    with Device(90):
        checked = check(Case(BY_NAME[name], torch.bfloat16, *SMALL), CPU, BY_NAME[name].fused)
    assert checked.ok, checked


@pytest.mark.parametrize("group", range(len(check_jobs.GROUPS["edges"])))
def test_edge_cases_of_the_reference_pass(group: int) -> None:
    for case in check_jobs.GROUPS["edges"][group].cases(dry=True).values():
        assert check(case, CPU).ok, case


def test_wrong_tokens_fail_the_check() -> None:
    op = OPS[0]

    def wrong(*inputs: Any) -> Outputs:
        outputs = op.reference(*inputs)
        return outputs | {"token": (outputs["token"] + 1) % SMALL[1]}

    checked = check(Case(op, torch.float32, *SMALL), CPU, wrong)
    assert not checked.ok and checked.mismatches == checked.rows
    assert checked.as_result()["failure"] == f"{checked.rows} of {checked.rows} rows differ"


@pytest.mark.parametrize("scale", [1 + 1e-3, torch.nan])
def test_wrong_floats_fail_the_check(scale: float) -> None:
    op = BY_NAME["gather_logits"]
    checked = check(
        Case(op, torch.float32, *SMALL), CPU, lambda *inputs: {"score": op.reference(*inputs)["score"] * scale}
    )
    assert not checked.ok and checked.mismatches == 0
    assert checked.as_result()["failure"].startswith("score off by ")


def test_a_few_mismatches_are_allowed() -> None:
    assert Checked("", 1024, 1).ok
    assert not Checked("", 1024, 2).ok
    assert not Checked("", 8, 1).ok


def test_greatest_error() -> None:
    x = torch.tensor([1.0, -torch.inf, torch.nan])
    assert greatest_error(x, x) == 0
    assert greatest_error(x, torch.tensor([1.5, -torch.inf, torch.nan])) == 0.5
    assert greatest_error(x, torch.tensor([1.0, torch.inf, torch.nan])) == torch.inf
    assert greatest_error(x, torch.tensor([1.0, -torch.inf, 0.0])) == torch.inf
    assert ROUNDING < 1e-5


def test_noise_of_compiled_code_equals_the_reference() -> None:
    with Device(80):
        checked = check_noise(CPU, tokens=2_003)
    assert checked.ok and checked.mismatches == 0


# --------------------------------------------------------------------------------------------------------- the times


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2, 3, 4)


@pytest.fixture
def bench(tmp_path: Path) -> timing.Bench:
    return timing.Bench(Context("kernels", "layers", tmp_path / "out.jsonl", 100, CPU))


def test_measuring_the_limits_keeps_the_precision_of_products(bench: timing.Bench) -> None:
    assert torch.backends.cuda.matmul.fp32_precision == "none" and torch.get_float32_matmul_precision() == "highest"
    assert bench.limits["tf32, FLOP/s"] > 0


def test_a_wrong_result_is_not_timed(bench: timing.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    op = BY_NAME["add_rms_norm"]
    wrong = replace(op, torch_floats=lambda outputs, *inputs: outputs)
    monkeypatch.setattr(
        "benchmarks.gpu.check.runnable", lambda op, device: lambda *inputs: shifted(op.reference(*inputs))
    )
    monkeypatch.setattr(bench.timer, "time", None)
    found = {"status": "ok"}
    bench.case(Case(wrong, torch.float32, 3, 64), found)
    assert found["status"] == "wrong" and "normed off by" in found["failure"]
    assert "seconds, quartiles" not in found


def shifted(outputs: Outputs) -> Outputs:
    return {name: x + 1 for name, x in outputs.items()}


def test_times_are_compared_with_the_limits(bench: timing.Bench) -> None:
    case = Case(BY_NAME["select_candidates_linear"], torch.bfloat16, 3, 300)
    bench.limits |= {"copy, bytes/s": 1e12, "bfloat16, FLOP/s": 1e13}
    times = {"fused": [1e-6, 2e-6, 3e-6], "torch eager": [4e-6, 6e-6, 8e-6]}
    found = bench.figures(case, times, case.make(CPU))
    assert found["seconds, quartiles"]["fused"][1] == 2e-6 and found["ratio to fused"] == {"torch eager": 3}
    assert found["share of copy"] == pytest.approx(found["bytes"] / 2e-6 / 1e12)
    assert found["share of matmul"] == pytest.approx(found["flops"] / 2e-6 / 1e13)
    assert (
        found["line"].startswith("select_candidates_linear [3, 300]: 2.0 us; ")
        and "torch eager takes 3.00x" in found["line"]
    )


def test_rivals_that_cannot_run_are_reported() -> None:
    def absent() -> None:
        raise ImportError("no such package")

    running, failed = timing.runnable_variants({"fused": int, "other": absent}, (), CPU)
    assert list(running) == ["fused"] and failed == {"other": "ImportError: no such package"}
    with pytest.raises(ImportError):
        timing.runnable_variants({"fused": absent}, (), CPU)


def test_a_sweep_changes_its_constants_and_restores_them() -> None:
    for one in sweep.SWEEPS:
        module = importlib.import_module(f"cdgen_kernels.{one.module}")
        before, seen = getattr(module, one.constant), []
        others = {name: getattr(module, name) for name, _ in one.fixed}

        def read(seen: list[Any] = seen, one: sweep.Sweep = one, module: ModuleType = module) -> None:
            seen.append((sweep.default(one), *(getattr(module, name) for name, _ in one.fixed)))

        sweep.with_setting(one, one.values[-1], read)()
        assert seen == [(one.values[-1], *dict(one.fixed).values())] and getattr(module, one.constant) is before
        assert all(getattr(module, name) is value for name, value in others.items())


PRECOMPILE = """
import torch
from benchmarks.ops.cases import OPS, Case
from benchmarks.gpu import precompile

precompile.TOKENS = (8,)
with precompile.compiling_only(90) as compiled:
    case = Case(OPS[0], torch.bfloat16, 3, 500)
    case.op.fused(*case.make(precompile.CPU))
    print(len(compiled))
    library = precompile.use_triton_on_cpu_tensors()
    with torch.inference_mode():
        precompile.compile_engine(precompile.SMALL[1], precompile.SMALL[1], torch.bfloat16)
    print(len(compiled))
"""


def test_kernels_are_compiled_in_advance(tmp_path: Path) -> None:
    """Compile an op, and an engine's prefill and steps: the cache then has every kernel that they launch."""
    variables = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_STORE_BINARY_ONLY": "1"}
    command = [sys.executable, "-c", PRECOMPILE]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    once, all_kernels = map(int, done.stdout.split())
    assert once == 1 and all_kernels >= 10
    names = {file.stem for file in tmp_path.glob("*/*.cubin")}
    assert len(list(tmp_path.glob("*/*.cubin"))) == all_kernels
    wanted = [
        "paged_attention",
        "prefill_attention",
        "shared_attention",
        "select_candidates_linear",
        "sample_candidates",
        "gather_logits",
        "rope_and_store",
        "add_rms_norm",
        "silu_mul",
    ]
    assert {f"{name}_kernel" for name in wanted} <= names
