"""Each check of the PTX interpreter fires: on hand-written PTX, on launches that do not fit, and on wrong kernels."""

from typing import Any

import numpy as np
import pytest
import torch
import triton

from tests.helpers import ptx_kernels as kernels
from tools.ptx_sim import Kernel, Report, compile_for, launch, run
from tools.ptx_sim.errors import (
    DivergentBarrier,
    Endless,
    InactiveLane,
    Misaligned,
    Race,
    StrayAccess,
    Uninitialised,
    WriteConflict,
)
from tools.ptx_sim.snippet import execute

pytestmark = pytest.mark.ptx
NAN = float("nan")
if not isinstance(kernels.softmax, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET is set: kernels cannot be compiled", allow_module_level=True)
every_mode = pytest.mark.parametrize("by", ("cta", "warp"))


# ---- hand-written PTX for 64 threads, two warps. %r0 is the thread's index, %r1 four times that.

HEAD = "shl.b32 %r1, %r0, 2; mov.b32 %d0, 0; setp.lt.u32 %p1, %r0, 32; and.b32 %r2, %r0, 31; setp.lt.u32 %p2, %r2, 8;\n"
# Each thread updates its own element. Then %q1 is the address of the corresponding element of the other warp.
AFTER_AN_ATOMIC = (
    "bar.sync 0; atom.relaxed.gpu.global.exch.b32 %r3, [%qa0], 7; mov.u64 %q1, %qa0;"
    "@%p1 add.u64 %q1, %q1, 128; @!%p1 sub.u64 %q1, %q1, 128;"
)
WRONG = {
    "load before the tensor": (StrayAccess, "ld.global.b32 %r3, [%qa0+-4];"),
    "load past the tensor": (StrayAccess, "ld.global.b32 %r3, [%qa0+4];"),
    "store past the tensor": (StrayAccess, "st.global.b32 [%qd0+4], %r0;"),
    "atomic past the tensor": (StrayAccess, "red.global.add.u32 [%qa0+256], 1;"),
    "null pointer": (StrayAccess, "mov.b64 %q1, 0; ld.global.b32 %r3, [%q1];"),
    "unused parameter": (StrayAccess, "ld.param.u64 %q1, [snippet_param_2]; st.global.b32 [%q1], %r0;"),
    "generic address outside all windows": (StrayAccess, "mov.b64 %q1, 64; ld.b32 %r3, [%q1];"),
    "beyond shared memory": (StrayAccess, "st.shared.b32 [%r1+4000], %r0;"),
    "beyond the stack": (StrayAccess, "st.local.b32 [%r1], %r0;"),
    "misaligned load": (Misaligned, "ld.global.b16 %h1, [%qa0+1];"),
    "misaligned vector": (Misaligned, "ld.global.v2.b32 {%r3, %r4}, [%qa0];"),
    "misaligned shared vector": (Misaligned, "st.shared.v2.b32 [%r1], {%r0, %r0};"),
    "misaligned atomic": (Misaligned, "red.global.add.u32 [%qd0+2], 1;"),
    "shared read before any write": (Uninitialised, "ld.shared.b32 %d0, [%r1];"),
    "shared atomic before any write": (Uninitialised, "red.shared.add.u32 [%r1], 1;"),
    "output read before any write": (Uninitialised, "ld.global.b32 %d0, [%qd0];"),
    "output updated before any write": (Uninitialised, "red.global.add.u32 [%qd0], 1;"),
    "register read before any write": (Uninitialised, "add.u32 %d0, %r9, 1;"),
    "copy not awaited": (
        Uninitialised,
        "cp.async.ca.shared.global [%r1], [%qa0], 4; cp.async.commit_group; cp.async.wait_group 1;"
        "ld.shared.b32 %d0, [%r1];",
    ),
    "copy not committed": (
        Uninitialised,
        "cp.async.ca.shared.global [%r1], [%qa0], 4; cp.async.wait_group 0; ld.shared.b32 %d0, [%r1];",
    ),
    "copy not awaited, over older data": (
        Uninitialised,
        "st.shared.b32 [%r1], 5; cp.async.ca.shared.global [%r1], [%qa0], 4; ld.shared.b32 %d0, [%r1];",
    ),
    "copy over what another warp still reads": (
        Race,
        "st.shared.b32 [%r1], 5; bar.sync 0; ld.shared.b32 %r3, [%r1]; xor.b32 %r4, %r1, 128;"
        "cp.async.ca.shared.global [%r4], [%qa0], 4; cp.async.wait_all;",
    ),
    "two lanes store to one address": (Race, "shr.u32 %r3, %r1, 3; shl.b32 %r3, %r3, 2; st.shared.b32 [%r3], %r0;"),
    "two warps store to one address": (Race, "shl.b32 %r3, %r2, 2; st.shared.b32 [%r3], %r0;"),
    "two lanes store to one global address": (Race, "sub.u64 %q1, %qd0, 0; st.global.b32 [%q1], %r0;"
                                                    "and.b32 %r3, %r1, 4; cvt.u64.u32 %q2, %r3; sub.u64 %q1, %qd0, %q2;"
                                                    "st.global.b32 [%q1], %r0;"),
    "read of another warp's store": (
        Race,
        "st.shared.b32 [%r1], 1; xor.b32 %r3, %r1, 128; @!%p1 bra $other; bra $end;"
        "$other: ld.shared.b32 %d0, [%r3]; $end:",
    ),
    "store over another warp's read": (
        Race,
        "st.shared.b32 [%r1], 1; bar.sync 0; ld.shared.b32 %d0, [%r1]; xor.b32 %r3, %r1, 128; st.shared.b32 [%r3], 2;",
    ),
    "store over what several warps read": (
        Race,
        "@%p1 st.shared.b32 [%r1], 1; bar.sync 0; shl.b32 %r3, %r2, 2; ld.shared.b32 %d0, [%r3];"
        "@!%p1 st.shared.b32 [%r3], 2;",
    ),
    "read of another warp's atomic": (
        Race,
        "st.shared.b32 [%r1], 1; bar.sync 0; @%p1 red.shared.add.u32 [%r1], 1; shl.b32 %r3, %r2, 2;"
        "@!%p1 ld.shared.b32 %d0, [%r3];",
    ),
    "atomic over another warp's store": (
        Race,
        "st.shared.b32 [%r1], 1; bar.sync 0; @%p1 st.shared.b32 [%r1], 2; shl.b32 %r3, %r2, 2;"
        "@!%p1 red.shared.add.u32 [%r3], 1;",
    ),
    "plain load of a guess, and a swap elsewhere": (
        Race,
        AFTER_AN_ATOMIC + "ld.global.b32 %r3, [%q1]; atom.relaxed.gpu.global.cas.b32 %r4, [%qa0], %r3, 1;",
    ),
    "plain load after an atomic": (Race, AFTER_AN_ATOMIC + "ld.global.b32 %r3, [%q1];"),
    "half the threads skip a barrier": (DivergentBarrier, "@%p1 bar.sync 0;"),
    "two barriers": (DivergentBarrier, "@%p1 bra $one; bar.sync 0; bra $end; $one: bar.sync 0; $end:"),
    "a few lanes skip a barrier": (DivergentBarrier, "@%p2 bar.sync 0;"),
    "exit before a barrier": (DivergentBarrier, "@%p2 ret; bar.sync 0;"),
    "shuffle among a few lanes": (InactiveLane, "@%p2 bra $end; shfl.sync.bfly.b32 %d0, %r0, 1, 31, -1; $end:"),
    "predicated shuffle": (InactiveLane, "@%p2 shfl.sync.bfly.b32 %d0, %r0, 1, 31, -1;"),
    "shuffle from a lane not named": (InactiveLane, "@%p2 shfl.sync.bfly.b32 %d0, %r0, 16, 31, 255;"),
    "vote that names too few": (InactiveLane, "vote.sync.ballot.b32 %d0, %p1, 255;"),
    "redux that names too many": (InactiveLane, "@%p2 redux.sync.add.u32 %d0, %r0, -1;"),
    "ldmatrix by a few lanes": (
        InactiveLane,
        "shl.b32 %r3, %r0, 4; @%p2 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d0}, [%r3];",
    ),
    "no way out": (Endless, "$again: bra $again;"),
}  # fmt: skip


@every_mode
@pytest.mark.parametrize("name", WRONG)
def test_wrong_ptx(name: str, by: str) -> None:
    fault, body = WRONG[name]
    with pytest.raises(fault) as caught:
        execute(HEAD + body, [np.arange(64, dtype=np.uint32)], [np.uint32], by=by, max_blocks=100)
    if fault not in (DivergentBarrier, Endless):
        assert "PTX line" in str(caught.value) and "thread" in str(caught.value)


RIGHT = {
    "warps store one value to one address": "shl.b32 %r3, %r2, 2; st.shared.b32 [%r3], 7;",
    "a lane reads its own store": "st.shared.b32 [%r1], 7; ld.shared.b32 %d0, [%r1];",
    "lanes of a warp read each other": "st.shared.b32 [%r1], 7; xor.b32 %r3, %r1, 4; ld.shared.b32 %d0, [%r3];",
    "stores after a barrier": "st.shared.b32 [%r1], 7; bar.sync 0; xor.b32 %r3, %r1, 128; st.shared.b32 [%r3], %r0;",
    "strong load after an atomic": AFTER_AN_ATOMIC + "ld.relaxed.gpu.global.b32 %r3, [%q1];",
    "plain load of a guess that a swap checks": AFTER_AN_ATOMIC + "ld.global.b32 %r3, [%q1];"
    "$again: add.u32 %r4, %r3, 1; atom.relaxed.gpu.global.cas.b32 %r5, [%q1], %r3, %r4;"
    "setp.ne.b32 %p3, %r5, %r3; mov.b32 %r3, %r5; @%p3 bra $again;",
    "shuffle among the named": "@%p2 shfl.sync.bfly.b32 %d0, %r0, 1, 31, 255;",
    "early exit of whole warps, no barrier after": "@%p1 ret;",
}


@every_mode
@pytest.mark.parametrize("name", RIGHT)
def test_right_ptx(name: str, by: str) -> None:
    execute(HEAD + RIGHT[name], [np.arange(64, dtype=np.uint32)], [np.uint32], by=by)


# ---- launches that do not fit their kernel, and wrong kernels


def row_sum_case() -> dict[str, Any]:
    x = torch.randn(3, 1024)[:, :1008]
    return dict(x=x, out=torch.full((3,), NAN), stride=1024, n=1008, BLOCK=512)


def launch_row_sum(kernel: Kernel, case: dict[str, Any], grid: int = 3, **changes: Any) -> Report:
    case = case | changes
    return launch(kernel, (grid,), *(case[name] for name in kernel.argument_names), uninitialised=["out"])


def test_wrong_launches() -> None:
    case = row_sum_case()
    kernel = compile_for(kernels.row_sum, case, 90)
    launch_row_sum(kernel, case)
    torch.testing.assert_close(case["out"], case["x"].sum(1), rtol=1e-5, atol=1e-4)
    with pytest.raises(StrayAccess):  # the padding between rows is not part of the tensor
        launch_row_sum(kernel, case, n=1024)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, case, stride=1040)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, case, grid=4)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, case, out=case["out"][:2])
    with pytest.raises(Misaligned):  # compiled for a multiple of 16
        launch_row_sum(kernel, case, stride=1021)


def test_a_view_does_not_admit_the_rest_of_its_storage() -> None:
    storage = torch.randn(3, 3, 1008)
    case = row_sum_case()
    kernel = compile_for(kernels.row_sum, case, 90)
    middle = case | dict(x=storage[1], stride=1008)
    launch_row_sum(kernel, middle)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, middle, x=storage[1, :2])


def test_arguments_are_checked() -> None:
    case = row_sum_case()
    kernel = compile_for(kernels.row_sum, case, 90)
    with pytest.raises(OverflowError):
        launch_row_sum(kernel, case, n=2**32)
    with pytest.raises(TypeError):
        launch_row_sum(kernel, case, n=1.5)
    with pytest.raises(TypeError):
        launch(kernel, (3,), case["x"])
    with pytest.raises(TypeError):
        launch(kernel, (3,), case["x"], case["out"], 1, 1, uninitialised=["result"])
    with pytest.raises(TypeError):
        compile_for(kernels.row_sum, {name: case[name] for name in ("x", "out", "n", "BLOCK")}, 90)


def test_tensors_change_only_if_the_launch_succeeds() -> None:
    x, out = torch.ones(512 * 3), torch.full((512 * 3,), NAN)
    arguments = dict(x=x, out=out, stride=512, n=512, BLOCK=512)
    kernel = compile_for(kernels.scale_rows, arguments, 90)
    with pytest.raises(StrayAccess):
        launch(kernel, (4,), x, out, 512, 512)
    assert out.isnan().all()


@every_mode
def test_overlapping_programs(by: str) -> None:
    x, out = torch.randn(1024), torch.full((1024,), NAN)
    with pytest.raises(WriteConflict):
        run(kernels.neighbours_overwrite, (2,), dict(x=x, out=out, N=512), 90, by=by)
    with pytest.raises(WriteConflict):
        run(kernels.reads_its_neighbour, (2,), dict(x=torch.randn(1536), N=512), 90, by=by)


def test_a_kernel_that_never_ends() -> None:
    with pytest.raises(Endless):
        run(kernels.endless, (1,), dict(flag=torch.zeros(1, dtype=torch.int32)), 90, max_blocks=500)


def test_unwritten_rows_have_no_writes() -> None:
    x, out = torch.randn(2, 512), torch.full((3, 512), NAN)
    report = run(kernels.scale_rows, (2,), dict(x=x, out=out, stride=512, n=512, BLOCK=512), 90)
    assert report.writes("out")[:2].min() == 1 and report.writes("out")[2].max() == 0
