"""The counters of finished programs: which launches share them, and that later launches need not clear them."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

import triton.language as tl  # noqa: E402

from cdgen_kernels.triton import arrivals  # noqa: E402
from tools.ptx_sim import Device  # noqa: E402

GPU = torch.device("cuda", 0)


@triton.jit
def last_program_kernel(arrivals_ptr, part_ptr, out_ptr):
    """Let the last program add up what all have stored. Grid: (rows, programs)."""
    programs = tl.num_programs(1)
    part_ptr += tl.program_id(0) * programs
    tl.store(part_ptr + tl.program_id(1), tl.program_id(1) + 1)
    if arrivals.is_last_to_arrive(arrivals_ptr + tl.program_id(0), programs):
        tl.debug_barrier()
        total = 0
        for program in range(0, programs):
            total += tl.load(part_ptr + program)
        tl.store(out_ptr + tl.program_id(0), total)


@pytest.mark.ptx
@pytest.mark.parametrize("sm", [80, 90, 100])
def test_launches_share_counters_without_clearing_them(sm: int) -> None:
    """Launches with 3, 1 and 7 programs per row, in the same memory."""
    with Device(sm) as device:
        for rows, programs in ((2, 3), (3, 1), (5, 7)):
            counters = arrivals.counters(torch.device("cpu"), rows)
            part, out = (torch.empty(size, dtype=torch.int32) for size in (rows * programs, rows))
            last_program_kernel[(rows, programs)](counters, part, out)
            assert out.eq(programs * (programs + 1) // 2).all() and counters.eq(0).all()
    assert len({launch.arguments["arrivals_ptr"].data_ptr() for launch in device.launches}) == 1


@pytest.fixture
def gpu() -> Iterator[Any]:
    """Stand in for a GPU: `stream` is the current stream, `capturing` whether it is being captured."""
    state, zeros = SimpleNamespace(stream=7, capturing=False), torch.zeros
    with (
        mock.patch.object(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=state.stream)),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: state.capturing),
        mock.patch.object(torch, "zeros", lambda size, dtype, device: zeros(size, dtype=dtype)),
    ):
        yield state


def test_streams_do_not_share_counters(gpu: Any) -> None:
    first = arrivals.counters(GPU, 3)
    gpu.stream = 8
    other = arrivals.counters(GPU, 3)
    gpu.stream = 7
    assert first is arrivals.counters(GPU, 30) is not other
    assert arrivals.counters(torch.device("cuda", 1), 3) is not first


def test_a_capture_keeps_no_memory_of_its_graph(gpu: Any) -> None:
    """It uses the stream's counters if there are any, as after a warm-up. Otherwise its own belong to the graph."""
    gpu.capturing = True
    captured = arrivals.counters(GPU, 3)
    assert captured.eq(0).all() and arrivals.counters(GPU, 3) is not captured
    gpu.capturing = False
    warm = arrivals.counters(GPU, 3)
    gpu.capturing = True
    assert arrivals.counters(GPU, 3) is warm


def test_a_launch_without_counters_clears_nothing_while_capturing(gpu: Any) -> None:
    """A capture may use a stream that its warm-up did not use."""
    unused = arrivals.counters(GPU, 0)
    gpu.stream, gpu.capturing = 9, True
    assert arrivals.counters(GPU, 0) is unused
    gpu.capturing = False
    assert arrivals.counters(GPU, 1) is not unused


def test_more_counters_than_a_stream_keeps(gpu: Any) -> None:
    usual = arrivals.counters(GPU, 1)
    assert len(arrivals.counters(GPU, arrivals.COUNTERS + 1)) == arrivals.COUNTERS + 1
    assert arrivals.counters(GPU, 1) is usual
