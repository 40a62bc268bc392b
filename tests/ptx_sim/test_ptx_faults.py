"""Every check of the PTX interpreter fires: on hand-written PTX, on wrong kernels, on faults put into right ones."""

import numpy as np
import pytest
import torch
import triton

from tests.helpers import ptx_kernels as kernels
from tools.ptx_sim import compile_for, launch, run
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
from tools.ptx_sim.faults import (
    caught_by,
    guard,
    make_plain,
    mutants,
    remove,
    shift_address,
    substitute,
    unguard,
    widen_mask,
)
from tools.ptx_sim.snippet import execute
from tools.ptx_sim.versions import TRITON

NAN = float("nan")
if not isinstance(kernels.softmax, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET is set: kernels cannot be compiled", allow_module_level=True)
every_mode = pytest.mark.parametrize("by", ("cta", "warp"))


# ---- hand-written PTX: 64 threads, two warps, %r0 the thread and %r1 four times that

HEAD = "shl.b32 %r1, %r0, 2; mov.b32 %d0, 0; setp.lt.u32 %p1, %r0, 32; and.b32 %r2, %r0, 31; setp.lt.u32 %p2, %r2, 8;\n"
# Each thread updates its own element; then %q1 is the address of the other warp's.
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
    "generic address of nothing": (StrayAccess, "mov.b64 %q1, 64; ld.b32 %r3, [%q1];"),
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
def test_wrong_ptx(name, by):
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
def test_right_ptx(name, by):
    execute(HEAD + RIGHT[name], [np.arange(64, dtype=np.uint32)], [np.uint32], by=by)


# ---- launches that do not fit, and kernels that are wrong


def row_sum_case(storage_columns=1024, columns=1008):
    x = torch.randn(3, storage_columns)[:, :columns]
    return dict(x=x, out=torch.full((3,), NAN), stride=storage_columns, n=columns, BLOCK=512)


def launch_row_sum(kernel, case, grid=3, **changes):
    case = case | changes
    return launch(kernel, (grid,), *(case[name] for name in kernel.argument_names), uninitialised=["out"])


def test_wrong_launches():
    case = row_sum_case()
    kernel = compile_for(kernels.row_sum, case, 90)
    launch_row_sum(kernel, case)
    torch.testing.assert_close(case["out"], case["x"].sum(1), rtol=1e-5, atol=1e-4)
    with pytest.raises(StrayAccess):  # the padding between rows belongs to nobody
        launch_row_sum(kernel, case, n=1024)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, case, stride=1040)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, case, grid=4)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, case, out=case["out"][:2])
    with pytest.raises(Misaligned):  # compiled for a multiple of 16
        launch_row_sum(kernel, case, stride=1021)


def test_a_view_is_not_its_storage():
    storage = torch.randn(3, 3, 1008)
    case = row_sum_case()
    kernel = compile_for(kernels.row_sum, case, 90)
    middle = case | dict(x=storage[1], stride=1008)
    launch_row_sum(kernel, middle)
    with pytest.raises(StrayAccess):
        launch_row_sum(kernel, middle, x=storage[1, :2])


def test_arguments_are_checked():
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


def test_tensors_change_only_if_the_launch_ends_well():
    x, out = torch.ones(512 * 3), torch.full((512 * 3,), NAN)
    arguments = dict(x=x, out=out, stride=512, n=512, BLOCK=512)
    kernel = compile_for(kernels.scale_rows, arguments, 90)
    with pytest.raises(StrayAccess):
        launch(kernel, (4,), x, out, 512, 512)
    assert out.isnan().all()


@every_mode
def test_programs_that_overlap(by):
    x, out = torch.randn(1024), torch.full((1024,), NAN)
    with pytest.raises(WriteConflict):
        run(kernels.neighbours_overwrite, (2,), dict(x=x, out=out, N=512), 90, by=by)
    with pytest.raises(WriteConflict):
        run(kernels.reads_its_neighbour, (2,), dict(x=torch.randn(1536), N=512), 90, by=by)


def test_a_kernel_that_waits_for_nobody():
    with pytest.raises(Endless):
        run(kernels.endless, (1,), dict(flag=torch.zeros(1, dtype=torch.int32)), 90, max_blocks=500)


def test_what_was_never_written_is_seen():
    x, out = torch.randn(2, 512), torch.full((3, 512), NAN)
    report = run(kernels.scale_rows, (2,), dict(x=x, out=out, stride=512, n=512, BLOCK=512), 90)
    assert report.writes("out")[:2].min() == 1 and report.writes("out")[2].max() == 0


# ---- faults injected into right kernels


class Subject:
    """A kernel, its arguments, and whether its results are right."""

    def __init__(self, function, grid, arguments, outputs, is_right, sm=90):
        self.kernel = compile_for(function, arguments, sm)
        self.grid = grid
        self.arguments = arguments
        self.outputs = outputs
        self.is_right = is_right

    def caught_by(self, ptx, by="cta"):
        """What notices that this PTX is wrong: a Fault, "result", or None."""
        fresh = {
            name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in self.arguments.items()
        }
        values = [fresh[name] for name in self.kernel.argument_names]

        def attempt():
            kernel = self.kernel.with_ptx(ptx)
            launch(kernel, self.grid, *values, by=by, uninitialised=self.outputs, max_blocks=5000)
            return self.is_right(fresh)

        return caught_by(attempt)


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def softmax():
    x, out = torch.randn(3, 1008), torch.full((3, 1008), NAN)
    arguments = dict(x=x, out=out, x_stride=1008, out_stride=1008, n=1008, BLOCK=1024)
    return Subject(kernels.softmax, (3,), arguments, ["out"], lambda a: close(a["out"], x.softmax(1)))


def scratch():
    x = torch.randn(3, 4992)
    arguments = dict(x=x, blocks=torch.full((3, 64), NAN), out=torch.full((3,), NAN), n=4992, BLOCK=512)
    right = lambda a: torch.equal(a["out"], x.amax(1))  # noqa: E731
    return Subject(kernels.row_maximum_twice, (3,), arguments, ["blocks", "out"], right)


def compact():
    x = torch.randn(3, 3000)
    counter, kept = torch.zeros(3, dtype=torch.int32), torch.full((3, 64), -1, dtype=torch.int32)
    arguments = dict(x=x, threshold=2.5, counter=counter, kept=kept, n=3000, BLOCK=512, CAPACITY=64)

    def right(a):
        above = [row.nonzero().flatten().tolist() for row in x > 2.5]
        return all(
            sorted(row.tolist()) == [-1] * (64 - len(wanted)) + wanted
            for row, wanted in zip(a["kept"], above, strict=True)
        )

    return Subject(kernels.compact, (3,), arguments, ["kept"], right)


def last_one_sums():
    x = torch.randn(8, 256)
    arguments = dict(
        x=x,
        partial=torch.full((8,), NAN),
        ticket=torch.zeros(1, dtype=torch.int32),
        out=torch.full((1,), NAN),
        N=256,
        PROGRAMS=8,
    )
    right = lambda a: close(a["out"][0], x.sum())  # noqa: E731
    return Subject(kernels.last_one_sums, (8,), arguments, ["partial", "out"], right)


def product():
    a, b = torch.randn(32, 96).bfloat16(), torch.randn(96, 32).bfloat16()
    arguments = dict(a=a, b=b, out=torch.full((32, 32), NAN), K=96, M=32, N=32, BK=32, PRECISION="tf32")
    right = lambda args: torch.allclose(args["out"], a.float() @ b.float(), atol=1e-4)  # noqa: E731
    return Subject(kernels.product, (1,), arguments, ["out"], right, sm=80)


INJECTED = {
    softmax: {
        "no barrier between storing and loading the maxima": (lambda p: remove(p, "bar.sync", 0), Race, Uninitialised),
        "no barrier before the sums reuse the space": (lambda p: remove(p, "bar.sync", 1), Race),
        "some threads skip a barrier": (
            lambda p: guard(p, "bar.sync", "%p2", 0),
            DivergentBarrier,
            InactiveLane,
            Race,
            Uninitialised,
        ),
        "load without its mask": (lambda p: unguard(p, "ld.global", 1), StrayAccess),
        "store without its mask": (lambda p: unguard(p, "st.global", 1), StrayAccess, WriteConflict),
        "mask one too wide": (lambda p: substitute(p, "setp", ".lt.", ".le.", 1), StrayAccess, WriteConflict),
        "one store missing": (lambda p: remove(p, "st.global", 0), "result"),
        "vector load off by one element": (lambda p: shift_address(p, "ld.global", 4), Misaligned),
        "vector load off by one vector": (lambda p: shift_address(p, "ld.global", 16, 1), StrayAccess),
        "shuffle names half the warp": (lambda p: substitute(p, "shfl", "-1", "65535"), InactiveLane),
        "sum shuffled over a wrong distance": (lambda p: substitute(p, "shfl", " 16,", " 8,", 7), "result", Race),
        "shared store missing": (lambda p: remove(p, "st.shared"), Uninitialised),
        "exponent of the wrong sign": (lambda p: substitute(p, "sub.rn.f32", "sub", "add"), "result"),
    },
    scratch: {
        "no barrier before other warps read it": (lambda p: remove(p, "bar.sync", 2), Race, Uninitialised),
        "block maximum not stored": (lambda p: remove(p, "st.global", 0), Uninitialised),
        "reads one maximum too many": (lambda p: widen_mask(p, "ld.global", 1), Uninitialised),
    },
    compact: {
        "candidate not stored": (lambda p: remove(p, "st.global", 0), "result"),
        "counter that is not atomic": (lambda p: make_plain(p, 0), Race),
        "atomic without its mask": (lambda p: unguard(p, "atom", 0), "result"),
        "store without its mask": (lambda p: unguard(p, "st.global", 0), StrayAccess, Race),
    },
    last_one_sums: {
        "atomic that orders nothing": (lambda p: substitute(p, "atom", "acq_rel", "relaxed"), WriteConflict),
        "ticket drawn by every thread": (lambda p: unguard(p, "atom"), "result", Race),
        "partial sum not stored": (lambda p: remove(p, "st.global", 0), Uninitialised),
    },
    product: {
        "copies not awaited": (lambda p: remove(p, "cp.async.wait", 0), Uninitialised),
        "one copy missing": (lambda p: remove(p, "cp.async.cg", 0), Uninitialised),
        "copies into space still read": (lambda p: remove(p, "bar.sync", 2), Race, Uninitialised),
        "matrices from the wrong rows": (lambda p: shift_address(p, "ldmatrix", 128, 0), "result", Uninitialised),
    },
}


@every_mode
@pytest.mark.parametrize("make", INJECTED)
def test_injected_faults(make, by):
    torch.manual_seed(0)
    subject = make()
    assert subject.caught_by(subject.kernel.ptx, by) is None
    for name, (inject, *expected) in INJECTED[make].items():
        assert subject.caught_by(inject(subject.kernel.ptx), by) in expected, name


# What survives of the systematic mutants, and why none of it is a fault.
HARMLESS = {
    softmax: {
        "ld.global 0 without its mask": "n > 512: the first half of a row is inside for every thread",
        "st.global 0 without its mask": "n > 512: the first half of a row is inside for every thread",
        "comparison 0 off by one": "the first half of a row is never at n",
    },
    last_one_sums: {
        "st.global 0 without its mask": "every thread has the same sum",
        "st.global 1 without its mask": "every thread has the same sum",
    },
}
HARMLESS_IN = {
    (3, 6): {
        softmax: {
            "without st.shared 1": "any logit serves as the maximum, and thread 0 alone stores it",
            **{f"shuffle {i} from another lane": "any logit serves as the maximum" for i in range(7)},
        },
        last_one_sums: {},
    },
    (3, 9): {
        softmax: {},
        last_one_sums: {
            "without barrier 1": "two barriers follow each other",
            "without barrier 2": "two barriers follow each other",
        },
    },
}


@pytest.mark.skipif(
    TRITON not in HARMLESS_IN, reason=f"mutants of the PTX of Triton {triton.__version__} are not known"
)
@pytest.mark.parametrize("make", HARMLESS)
def test_systematic_mutants(make):
    torch.manual_seed(0)
    subject = make()
    outcomes = {name: subject.caught_by(ptx) for name, ptx in mutants(subject.kernel.ptx)}
    survivors = {name for name, outcome in outcomes.items() if outcome is None}
    assert survivors == {*HARMLESS[make], *HARMLESS_IN[TRITON][make]}
    assert len(outcomes) > 30
