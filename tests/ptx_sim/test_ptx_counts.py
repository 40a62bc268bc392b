"""The interpreter's counts of instructions, requests, sectors and bytes, for kernels counted by hand."""

import pytest
import torch
import triton

from tests.helpers import ptx_kernels as kernels
from tools.ptx_sim import run

pytestmark = pytest.mark.ptx

if not isinstance(kernels.softmax, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET is set: kernels cannot be compiled", allow_module_level=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_counts_of_a_known_kernel() -> None:
    """2 programs of 128 threads, 8 bf16 per thread: 4 requests of 512 bytes each, 16 sectors per request."""
    x, out = torch.randn(2, 1024).bfloat16(), torch.empty(2, 1024, dtype=torch.bfloat16)
    report = run(kernels.scale_rows, (2,), dict(x=x, out=out, stride=1024, n=1024, BLOCK=1024), 90)
    for name, kind in (("x", "load"), ("out", "store")):
        traffic = report.traffic(name, kind)
        assert (traffic.requests, traffic.sectors, traffic.bytes) == (8, 128, 4096)
        assert (traffic.sectors_per_request, traffic.bytes_per_lane) == (16, 16)
    assert report.traffic("x", "store").requests == 0
    assert report.traffic().bytes == 8192
    loads = [count for opcode, count in report.warp_instructions.items() if opcode.startswith("ld.global")]
    assert loads == [8] and report.warp_instructions["ret"] == 8
    assert report.thread_instructions == 32 * sum(report.warp_instructions.values())
    assert report.reads("x").shape == (2, 1024, 2)


def test_scattered_reads_cost_a_sector_each() -> None:
    x, index, out = torch.randn(512), torch.arange(512, dtype=torch.int32).flip(0), torch.empty(512)
    strided = torch.randn(512, 8)[:, 0]
    report = run(kernels.row_sum, (512,), dict(x=strided, out=out, stride=8, n=1, BLOCK=32), 90, num_warps=1)
    assert report.traffic("x", "load").sectors_per_request == 1
    assert torch.equal(out, strided)
    run(kernels.gather, (1,), dict(x=x, index=index, out=out, N=512), 90)
    assert torch.equal(out, x.flip(0))


def test_every_warp_pays_for_its_own_sectors() -> None:
    x, out, taken = torch.ones(1, 50), torch.empty(1), torch.empty(1, dtype=torch.int32)
    report = run(kernels.sum_until, (1,), dict(x=x, limit=9.5, out=out, taken=taken, n=50), 90, num_warps=4)
    assert taken.item() == 10
    traffic = report.traffic("x")  # all 4 warps load each of the 10 elements
    assert (traffic.requests, traffic.sectors, traffic.lanes) == (40, 40, 1280)


def test_both_modes_count_the_same() -> None:
    x, out = torch.randn(3, 1000), torch.empty(3, 1000)
    arguments = dict(x=x, out=out, x_stride=1000, out_stride=1000, n=1000, BLOCK=1024)
    reports = [run(kernels.softmax, (3,), arguments, 90, by=by) for by in ("cta", "warp")]
    assert reports[0].warp_instructions == reports[1].warp_instructions
    assert reports[0].traffic() == reports[1].traffic()
