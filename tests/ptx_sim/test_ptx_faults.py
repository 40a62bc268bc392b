"""Faults injected into the PTX of correct kernels are detected by a check of the interpreter or by the result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton

from tests.helpers import ptx_kernels as kernels
from tools.ptx_sim import compile_for, launch
from tools.ptx_sim.errors import (
    DivergentBarrier,
    Fault,
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
from tools.ptx_sim.versions import TRITON

pytestmark = pytest.mark.ptx
NAN = float("nan")
if not isinstance(kernels.softmax, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET is set: kernels cannot be compiled", allow_module_level=True)
every_mode = pytest.mark.parametrize("by", ("cta", "warp"))


class Subject:
    """A kernel, its arguments, and a function that checks its results."""

    def __init__(
        self,
        function: triton.JITFunction,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        outputs: list[str],
        is_right: Callable[[dict[str, Any]], bool],
        sm: int = 90,
    ) -> None:
        self.kernel = compile_for(function, arguments, sm)
        self.grid = grid
        self.arguments = arguments
        self.outputs = outputs
        self.is_right = is_right

    def caught_by(self, ptx: str, by: str = "cta") -> type[Fault] | str | None:
        """Return what detects that this PTX is wrong: a type of Fault, "result", or None."""
        fresh = {
            name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in self.arguments.items()
        }
        values = [fresh[name] for name in self.kernel.argument_names]

        def attempt() -> bool:
            kernel = self.kernel.with_ptx(ptx)
            launch(kernel, self.grid, *values, by=by, uninitialised=self.outputs, max_blocks=5000)
            return self.is_right(fresh)

        return caught_by(attempt)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def softmax() -> Subject:
    x, out = torch.randn(3, 1008), torch.full((3, 1008), NAN)
    arguments = dict(x=x, out=out, x_stride=1008, out_stride=1008, n=1008, BLOCK=1024)
    return Subject(kernels.softmax, (3,), arguments, ["out"], lambda a: close(a["out"], x.softmax(1)))


def scratch() -> Subject:
    x = torch.randn(3, 4992)
    arguments = dict(x=x, blocks=torch.full((3, 64), NAN), out=torch.full((3,), NAN), n=4992, BLOCK=512)
    right = lambda a: torch.equal(a["out"], x.amax(1))  # noqa: E731
    return Subject(kernels.row_maximum_twice, (3,), arguments, ["blocks", "out"], right)


def compact() -> Subject:
    x = torch.randn(3, 3000)
    counter, kept = torch.zeros(3, dtype=torch.int32), torch.full((3, 64), -1, dtype=torch.int32)
    arguments = dict(x=x, threshold=2.5, counter=counter, kept=kept, n=3000, BLOCK=512, CAPACITY=64)

    def right(a: dict[str, Any]) -> bool:
        above = [row.nonzero().flatten().tolist() for row in x > 2.5]
        return all(
            sorted(row.tolist()) == [-1] * (64 - len(wanted)) + wanted
            for row, wanted in zip(a["kept"], above, strict=True)
        )

    return Subject(kernels.compact, (3,), arguments, ["kept"], right)


def last_one_sums() -> Subject:
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


def product() -> Subject:
    a, b = torch.randn(32, 96).bfloat16(), torch.randn(96, 32).bfloat16()
    arguments = dict(a=a, b=b, out=torch.full((32, 32), NAN), K=96, M=32, N=32, BK=32, PRECISION="tf32")
    right = lambda args: torch.allclose(args["out"], a.float() @ b.float(), atol=1e-4)  # noqa: E731
    return Subject(kernels.product, (1,), arguments, ["out"], right, sm=80)


# Per kernel and fault: the function that injects it, and what may catch it.
INJECTED: dict[Callable[[], Subject], dict[str, tuple[Any, ...]]] = {
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
def test_injected_faults(make: Callable[[], Subject], by: str) -> None:
    torch.manual_seed(0)
    subject = make()
    assert subject.caught_by(subject.kernel.ptx, by) is None
    for name, (inject, *expected) in INJECTED[make].items():
        assert subject.caught_by(inject(subject.kernel.ptx), by) in expected, name


# The systematic mutants that are not caught, and why none of them is a fault.
HARMLESS: dict[Callable[[], Subject], dict[str, str]] = {
    softmax: {
        "ld.global 0 without its mask": "n > 512: all threads are in bounds in the first half of a row",
        "st.global 0 without its mask": "n > 512: all threads are in bounds in the first half of a row",
        "comparison 0 off by one": "no index of the first half of a row equals n",
    },
    last_one_sums: {
        "st.global 0 without its mask": "every thread has the same sum",
        "st.global 1 without its mask": "every thread has the same sum",
    },
}
HARMLESS_IN: dict[tuple[int, ...], dict[Callable[[], Subject], dict[str, str]]] = {  # by Triton version
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
def test_systematic_mutants(make: Callable[[], Subject]) -> None:
    torch.manual_seed(0)
    subject = make()
    outcomes = {name: subject.caught_by(ptx) for name, ptx in mutants(subject.kernel.ptx)}
    survivors = {name for name, outcome in outcomes.items() if outcome is None}
    assert survivors == {*HARMLESS[make], *HARMLESS_IN[TRITON][make]}
    assert len(outcomes) > 30
