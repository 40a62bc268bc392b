"""Limits on the compiled kernels: no spills, 16-byte loads, registers, shared memory, number of launches.

Nothing is run. Triton's specialisation depends on the dtype, so each kernel is listed once per element size.
"""

import os
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

import triton.language as tl  # noqa: E402

from benchmarks.aot import __main__ as aot  # noqa: E402
from benchmarks.aot.compiled import (  # noqa: E402
    TARGETS,
    Launch,
    Resources,
    Row,
    compile_all,
    compiled_anew,
    parse_amdgcn,
    parse_loads,
    parse_ptxas,
    record,
    resources,
)
from benchmarks.ops.cases import OPS, Case  # noqa: E402
from benchmarks.ops.prefill import PREFILL_OPS  # noqa: E402
from tools.ptx_sim.versions import bound  # noqa: E402

pytestmark = pytest.mark.slow

BY_NAME = {op.name: op for op in OPS}
CASES = [
    ("contrastive_sample, contrastive", torch.bfloat16),
    ("contrastive_sample, contrastive", torch.float32),
    ("select_candidates", torch.bfloat16),
    ("sample_candidates", torch.bfloat16),
    ("select_candidates_linear", torch.bfloat16),
    ("gather_logits", torch.bfloat16),
    ("softmax_gradient", torch.bfloat16),
    ("add_rms_norm", torch.bfloat16),
    ("silu_mul", torch.bfloat16),
    ("rope_and_store", torch.bfloat16),
    ("paged_attention, 12 heads", torch.bfloat16),
    ("paged_attention, 12 heads", torch.float32),
    ("paged_attention, 12 heads, dropout", torch.bfloat16),
    ("paged_attention, 32 heads, 8 KV heads", torch.bfloat16),
    ("paged_attention, shared prefixes, 12 heads", torch.bfloat16),
    ("paged_attention, shared prefixes, 32 heads, 8 KV heads", torch.bfloat16),
    ("paged_attention, prefill, 12 heads", torch.bfloat16),
    ("paged_attention, prefill, 32 heads, 8 KV heads", torch.bfloat16),
]
# Measured on Triton 3.9, plus some room; tools/ptx_sim/versions.py lists where other versions exceed these. A
# multiprocessor has 65,536 registers: at 128 per thread, four programs of four warps fit.
REGISTERS = {
    "contrastive_sample_kernel": 128,
    "select_candidates_kernel": 100,
    "sample_candidates_kernel": 100,
    "chunk_maxima_kernel": 192,
    "select_candidates_linear_kernel": 144,
    "gather_logits_kernel": 96,
    "softmax_gradient_kernel": 64,
    "add_rms_norm_kernel": 64,
    "silu_mul_kernel": 64,
    "rope_and_store_kernel": 96,
    "paged_attention_kernel": 200,  # groups of four heads of 128: up to 164, on gfx942 196
    "shared_attention_kernel": 255,  # heads of 128 on gfx942; up to 229 on others
    "prefill_attention_kernel": 255,  # heads of 128 on sm_80; up to 243 on others
}
KIB = 1024
SHARED = {
    "contrastive_sample_kernel": 8 * KIB,
    "select_candidates_kernel": 8 * KIB,
    "sample_candidates_kernel": KIB,
    "chunk_maxima_kernel": 99 * KIB,  # available to one program on every NVIDIA GPU since Ampere
    "select_candidates_linear_kernel": 36 * KIB,
    "gather_logits_kernel": 20 * KIB,
    "softmax_gradient_kernel": KIB,
    "add_rms_norm_kernel": KIB,
    "silu_mul_kernel": KIB,
    "rope_and_store_kernel": KIB,
    "paged_attention_kernel": 16 * KIB,  # with matrix units; 1 KiB without
    "shared_attention_kernel": 48 * KIB,
    "prefill_attention_kernel": 99 * KIB,
}
SHARED_ON_AMD = 64 * KIB


def faults(row: Row) -> list[str]:
    """Describe how a compiled kernel exceeds its limits."""
    found, taken = [], row.resources
    shared = SHARED[row.kernel] if row.target.startswith("cuda") else min(SHARED_ON_AMD, SHARED[row.kernel])
    if taken.spill or taken.stack:
        found.append(f"spills {taken.spill}, stack {taken.stack}")
    if taken.registers > bound(f"registers of {row.kernel} on {row.target}", REGISTERS[row.kernel]):
        found.append(f"{taken.registers} registers")
    if taken.shared > shared:
        found.append(f"{taken.shared} bytes of shared memory")
    if row.streams and taken.width(row.streams) != 16:
        found.append(f"loads { {name: taken.loads.get(name) for name in row.streams} }")
    return [f"{row.kernel} of {row.case} on {row.target}: {what}" for what in found]


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_stay_within_their_limits(target: str) -> None:
    wanted = [Case(BY_NAME[name], dtype, BY_NAME[name].batches[0], BY_NAME[name].sizes[-1]) for name, dtype in CASES]
    rows = compile_all(wanted, [target])
    assert {row.kernel for row in rows} == set(REGISTERS)
    assert [fault for row in rows for fault in faults(row)] == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", BY_NAME["paged_attention, 12 heads"].batches)
def test_attention_of_single_heads_leaves_room_for_ten_programs(batch: int, target: str) -> None:
    """Ten programs have 80 KiB of loads in flight per multiprocessor, with and without merging."""
    (row,) = compile_all([Case(BY_NAME["paged_attention, 12 heads"], torch.bfloat16, batch, 420)], [target])
    assert faults(row) == [] and row.resources.registers <= 96
    assert (row.launches, row.torch_ops) == (1, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_small_prefills(target: str) -> None:
    """Small prefills have smaller blocks."""
    wanted = [Case(op, torch.bfloat16, 160, 20) for op in PREFILL_OPS]
    assert [fault for row in compile_all(wanted, [target]) for fault in faults(row)] == []


@pytest.mark.parametrize("vocab_size", [32_000, 65_536])
@pytest.mark.parametrize("batch", [1, 128, 1024])
def test_contrastive_sample_is_one_launch(batch: int, vocab_size: int) -> None:
    op = BY_NAME["contrastive_sample, contrastive"]
    good, _, rows = Case(op, torch.bfloat16, batch, 8).make("cpu")
    wide = good.new_zeros(1, vocab_size).expand(batch, -1)  # only its shape matters
    assert len(record(op, (wide, wide, rows)).launches) == 1


# ---------------------------------------------------------------------------------------------- the checks themselves


@triton.jit
def many_values_kernel(logits_ptr, out_ptr, N: tl.constexpr):
    """Subtract the maximum, which keeps all of x in registers."""
    i = tl.arange(0, N)
    x = tl.load(logits_ptr + i)
    tl.store(out_ptr + i, x - tl.max(x, 0))


def compiled(divisible: tuple[str, ...], **options: int) -> Row:
    """Compile `many_values_kernel` for sm_90."""
    types = (("logits_ptr", "*fp32"), ("out_ptr", "*fp32"))
    launch = Launch(many_values_kernel, types, (("N", 1024),), divisible, tuple(options.items()), 1)
    with compiled_anew():
        found = resources(launch, "cuda:90")
    return Row("softmax_gradient_kernel", "", ("logits_ptr",), "cuda:90", 1, 0, found)


def test_spills_are_found() -> None:
    assert faults(compiled(("logits_ptr", "out_ptr"), num_warps=1)) == []
    (fault,) = faults(compiled(("logits_ptr", "out_ptr"), num_warps=1, maxnreg=24))
    assert "spills" in fault


def test_narrow_loads_are_found() -> None:
    (fault,) = faults(compiled((), num_warps=1))
    assert "loads {'logits_ptr': {4:" in fault


def test_limits_are_enforced() -> None:
    row = Row(
        "select_candidates_kernel",
        "",
        ("groups_ptr",),
        "cuda:80",
        1,
        0,
        Resources(100, 0, 0, 8 * KIB, {"groups_ptr": {16: 4, 2: 1}}),
    )
    assert faults(row) == []
    greedy = Resources(101, 8, 16, 8 * KIB + 1, {"groups_ptr": {8: 4}})
    assert len(faults(row._replace(resources=greedy))) == 4


def test_parse_ptxas() -> None:
    text = """
ptxas info    : Function properties for f
    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 113 registers, used 1 barriers, 568 bytes cmem[0]
"""
    assert parse_ptxas(text) == (113, 48, 24)


def test_parse_amdgcn() -> None:
    text = """
    .private_segment_fixed_size: 12
    .sgpr_count:     106
    .sgpr_spill_count: 63
    .vgpr_count:     65
    .vgpr_spill_count: 3
"""
    assert parse_amdgcn(text) == (65, 3, 12)


def test_parse_loads(tmp_path: Path) -> None:
    source = tmp_path / "kernel.py"
    lines = ["x = tl.load(a.row.logits_ptr + i)", "y = f(tl.load(", "  bad_ptr))", "z = tl.load(bad_ptr + i, mask=m)"]
    source.write_text("\n".join(lines) + "\n")
    ptx = f"""
	.loc	1 1 4
	// begin inline asm
	mov.u32 %r1, 0x0;
	.loc	1 2 4
	@%p1 ld.global.v4.b32 {{ %r1, %r2, %r3, %r4 }}, [ %rd1 + 0 ];
	// end inline asm
	.loc	1 4 4
	ld.global.L1::evict_first.b16 {{ %rs1 }}, [ %rd1 + 0 ];
	ld.global.v2.b64 {{ %rd3, %rd4 }}, [ %rd1 + 0 ];
	st.global.v4.b32 [ %rd1 + 0 ], {{ %r1, %r2, %r3, %r4 }};
	ld.shared.v4.b32 {{ %r1, %r2, %r3, %r4 }}, [ %r9 + 0 ];
	.loc	1 2 4
	cp.async.cg.shared.global [ %r4 + 0 ], [ %rd5 + 0 ], 0x10, %r6;
	.file	1 "{source}"
"""
    assert parse_loads(ptx) == {"logits_ptr": {16: 1}, "bad_ptr": {2: 1, 16: 1}, "?": {16: 1}}
    amd = f"""
	.file	3 "{tmp_path}" "kernel.py"
	.loc	3 1 4 is_stmt 1
	global_load_dwordx4 v[8:11], v7, s[18:19] offset:16
	buffer_load_dwordx2 v[8:9], v7, s[16:19], 0 offen
	.loc	3 4 4
	global_load_ushort v1, v[2:3], off
	global_store_dwordx4 v[0:1], v[2:5], off
	ds_read_b128 v[0:3], v4
"""
    assert parse_loads(amd) == {"logits_ptr": {16: 1, 8: 1}, "bad_ptr": {2: 1}}


def test_tables() -> None:
    row = Row("k", "x [1, 2]", ("groups_ptr",), "cuda:80", 1, 2, Resources(9, 0, 0, 64, {"groups_ptr": {16: 4}}))
    heading, line = aot.describe_kernels([row]).splitlines()
    assert heading.split()[-2:] == ["load", "launches"]
    assert line.split()[-6:] == ["16", "1", "+", "2", "of", "torch"]
    times = {name: {"memory": 1.25, "issue": None, "matmul": 2.0} for name in aot.PROCESSORS}
    found = [{"case": "x", "entries": 9, "bytes": 2e6, "flops": 0, "instructions": None, "us": times}]
    assert "1.2 / - / 2.0" in aot.describe_predictions(found)
