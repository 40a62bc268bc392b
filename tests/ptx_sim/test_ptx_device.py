"""Device: functions that launch Triton kernels run on CPU tensors, and faults across their launches are detected."""

import pytest
import torch
import triton
import triton.language as tl

from tools.ptx_sim import Device, errors
from tools.ptx_sim.faults import remove

pytestmark = pytest.mark.ptx


@triton.jit
def double_kernel(x, y, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


if not isinstance(double_kernel, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET is set: kernels cannot be compiled", allow_module_level=True)


def quadruple(x: torch.Tensor, written: int | None = None) -> torch.Tensor:
    """Return 4 * x by two launches. The first writes only `written` elements."""
    once, twice = torch.empty_like(x), x.new_empty(x.shape)
    n = x.numel()
    double_kernel[(triton.cdiv(n, 64),)](x, once, n if written is None else written, N=64, num_warps=2)
    double_kernel[lambda meta: (triton.cdiv(n, meta["N"]),)](once, twice, n, N=64, num_warps=2)
    return twice


def test_launches_run_one_after_another() -> None:
    x = torch.arange(100.0)
    with Device(90) as device:
        y = quadruple(x)
    assert y.equal(4 * x)
    assert [launch.grid for launch in device.launches] == [(2,), (2,)]
    assert device.launches[1].report.traffic("y", "store").bytes == 400


def test_reading_what_an_earlier_launch_left_unwritten_is_a_fault() -> None:
    with Device(90), pytest.raises(errors.Uninitialised):
        quadruple(torch.arange(100.0), written=99)


def test_unwritten_memory_is_poisoned() -> None:
    with Device(80, mutate=lambda ptx: remove(ptx, "st.global")):
        once = torch.empty(64)
        double_kernel[(1,)](torch.ones(64), once, 64, N=64, num_warps=2)
        number = torch.empty(3, dtype=torch.int64)
    assert once.isnan().all()
    assert (number == torch.iinfo(torch.int64).max).all()
