"""PTX instructions on warps and memory, and the errors for unknown instructions."""

import numpy as np
import pytest

from tests.helpers.awkward_operands import RANDOM, ints
from tools.ptx_sim.errors import Uninitialised, UnknownOpcode
from tools.ptx_sim.snippet import execute

pytestmark = pytest.mark.ptx

# ---- warps


@pytest.mark.parametrize("mode", ("up", "down", "bfly", "idx"))
@pytest.mark.parametrize("width", (32, 8))
def test_shuffles(mode: str, width: int) -> None:
    a, by = ints(32, 64), 3
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"shfl.sync.{mode}.b32 %d0|%p1, %a0, {by}, {clamp}, -1; selp.b32 %d1, 1, 0, %p1;"
    found, in_range = execute(body, [a], [np.uint32] * 2)
    for thread in range(64):
        warp, lane = divmod(thread, 32)
        first = lane // width * width
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first + by}[mode]
        inside = first <= source < first + width
        assert found[thread] == a[32 * warp + (source if inside else lane)] and in_range[thread] == inside


def test_votes_and_matches() -> None:
    a = RANDOM.integers(0, 4, 64).astype(np.uint32)
    body = """
    setp.eq.u32 %p1, %a0, 2;
    vote.sync.ballot.b32 %d0, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1; selp.b32 %d1, 1, 0, %p2;
    match.any.sync.b32 %d2, %a0, -1;
    activemask.b32 %d3;"""
    ballot, any_, match, active = execute(body, [a], [np.uint32] * 4)
    for thread in range(64):
        lanes = a[thread // 32 * 32 :][:32].tolist()
        assert ballot[thread] == sum((value == 2) << i for i, value in enumerate(lanes))
        assert any_[thread] == (2 in lanes) and active[thread] == 2**32 - 1
        assert match[thread] == sum((value == a[thread]) << i for i, value in enumerate(lanes))


def test_part_of_a_warp() -> None:
    """A branch divides the warp at lane 8. Each part sees only its own lanes."""
    a = ints(32, 64)
    body = """
    and.b32 %r1, %r0, 31;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra $few;
    activemask.b32 %d0; redux.sync.min.u32 %d1, %a0, 0xffffff00;
    bra.uni $together;
$few:
    activemask.b32 %d0; redux.sync.max.s32 %d1, %a0, 255;
$together:
    redux.sync.add.s32 %d2, %a0, -1;"""
    active, extreme, total = execute(body, [a], [np.uint32] * 3)
    for first in (0, 32):
        few, many = a[first : first + 8], a[first + 8 : first + 32]
        assert (active[first : first + 8] == 255).all() and (active[first + 8 : first + 32] == 0xFFFFFF00).all()
        assert (extreme[first : first + 8].view(np.int32) == few.view(np.int32).max()).all()
        assert (extreme[first + 8 : first + 32] == many.min()).all()
        assert (total[first : first + 32] == a[first : first + 32].sum() % 2**32).all()


# ---- memory


def test_cache_hints_and_vectors() -> None:
    a = ints(32, 64)
    body = """
    createpolicy.fractional.L2::evict_last.b64 %q1, 1.0;
    and.b32 %r1, %r0, 1; mul.wide.u32 %q2, %r1, 4; sub.u64 %q3, %qa0, %q2;
    ld.global.nc.L1::evict_last.L2::cache_hint.v2.b32 {%r2, %r3}, [%q3], %q1;
    mov.b64 %q4, {%r3, %r2};
    mov.b64 {%d0, _}, %q4;"""
    (found,) = execute(body, [a], [np.uint32])
    assert found.tolist() == a.reshape(-1, 2)[:, 1].repeat(2).tolist()


@pytest.mark.parametrize("by", ("cta", "warp"))
def test_shared_memory_by_both_addresses(by: str) -> None:
    """The threads reverse their values through shared memory; the second half reads by generic addresses."""
    a = ints(32, 64)
    body = """
    mov.b32 %r1, global_smem; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
    st.shared.b32 [%r3], %a0;
    bar.sync 0;
    sub.u32 %r4, 252, %r2;
    cvt.u64.u32 %q1, %r4; cvta.shared.u64 %q2, %q1;
    setp.lt.u32 %p1, %r0, 32;
    @%p1 ld.shared.b32 %d0, [%r4];
    @!%p1 ld.b32 %d0, [%q2];"""
    (found,) = execute(body, [a], [np.uint32], by=by)
    assert (found == a[::-1]).all()


def test_shared_atomics() -> None:
    a = ints(32, 64)
    body = """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 st.shared.v4.b32 [global_smem], {5, 0, 0, 7};
    bar.sync 0;
    atom.shared.inc.u32 %d0, [global_smem], 9;
    red.shared.max.u32 [global_smem+4], %a0;
    atom.shared.cas.b32 %d1, [global_smem+12], 7, %r0;
    bar.sync 0;
    ld.shared.b32 %d2, [global_smem+4];"""
    ticket, seen, most = execute(body, [a], [np.uint32] * 3)
    assert sorted(ticket.tolist()) == sorted((5 + i) % 10 for i in range(64))
    assert (seen == 7).sum() == 1 and len(set(seen.tolist())) == 2  # one wins, and the others see the winner
    assert (most == a.max()).all()


def test_asynchronous_copies_and_their_groups() -> None:
    a, b = ints(32, 64), ints(32, 64)
    body = """
    shl.b32 %r1, %r0, 2; add.u32 %r2, %r1, 256;
    cp.async.ca.shared.global [%r1], [%qa0], 4;
    cp.async.commit_group;
    and.b32 %r3, %r1, 4;
    cp.async.ca.shared.global [%r2], [%qa1], 4, %r3;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %d0, [%r1];
    cp.async.wait_group 0;
    ld.shared.b32 %d1, [%r2];"""
    first, second = execute(body, [a, b], [np.uint32] * 2)
    assert (first == a).all()
    assert (second == np.where(np.arange(64) % 2, b, 0)).all()  # a source size of zero fills with zeros


def test_stack() -> None:
    a = ints(32, 64)
    body = """
    .local .align 8 .b8 __local_depot0[16];
    mov.b64 %q1, __local_depot0; cvta.local.u64 %q2, %q1;
    st.local.b32 [%q1+8], %a0;
    ld.b32 %d0, [%q2+8];"""
    assert (execute(body, [a], [np.uint32])[0] == a).all()


# ---- unknown instructions


@pytest.mark.parametrize(
    "body",
    (
        "frobnicate.b32 %r1, %r0;",
        "add.sat.s32 %r1, %r0, %r0;",
        "cvt.rn.satfinite.e5m2x2.f32 %h1, %a0, %a0;",
        "wgmma.fence.sync.aligned;",
        "mov.u32 %r1, %clock;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1, %r2, %r3, %r4}, {%r1}, {%r1}, {%r1};",
        "bra $nowhere;",
        "barrier.cta.red.popc.aligned.u32 %r1, 0, %p1;",
    ),
)
def test_unknown_instructions_are_named(body: str) -> None:
    opcode = body.split()[0].rstrip(";")
    with pytest.raises(UnknownOpcode) as caught:
        execute(body + " mov.b32 %d0, 0;", [ints(32, 32)], [np.uint32])
    assert opcode in str(caught.value) and "PTX line" in str(caught.value)


def test_a_half_that_nothing_writes_is_nan() -> None:
    """On sm_100, float32 pairs of which one half is unused hold an undefined register. Writing it later is a fault."""
    pack = "mov.b64 %q1, {%a0, %r9}; add.rn.f32x2 %q1, %q1, %q1; "
    values = np.arange(40, dtype=np.float32)
    assert (execute(pack + "mov.b64 {%d0, _}, %q1;", [values], [np.float32])[0] == 2 * values).all()
    assert np.isnan(execute(pack + "mov.b64 {_, %d0}, %q1;", [values], [np.float32])[0]).all()
    with pytest.raises(Uninitialised):
        execute(pack + "mov.b32 %r9, 0; mov.b64 {%d0, _}, %q1;", [values], [np.float32])


def test_an_upper_e4m3_that_nothing_writes_is_nan() -> None:
    """A thread that holds one number converts a pair."""
    one, code = np.ones(4, dtype=np.float32), "cvt.rn.satfinite.e4m3x2.f32 %d0, %r9, %a0;"
    assert (execute(code, [one], [np.uint16])[0] == 0x7F38).all()
    with pytest.raises(Uninitialised):
        execute(code + " mov.b32 %r9, 0;", [one], [np.uint16])
