"""The Triton kernel of linear_cross_entropy without a GPU: compiled PTX is executed, the source is interpreted."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.kernels.test_cross_entropy import IGNORED, make_problem, torch_loss, with_gradients

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from triton.backends import nvidia  # noqa: E402

from cdgen_kernels import cross_entropy  # noqa: E402
from cdgen_kernels.triton import cross_entropy as triton_cross_entropy  # noqa: E402
from tools.ptx_sim import Device, Report, compile_for, errors, intercept  # noqa: E402
from tools.ptx_sim.faults import find, remove, shift_address, unguard  # noqa: E402
from tools.ptx_sim.versions import needs_interpreter  # noqa: E402

pytestmark = pytest.mark.ptx

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LINES = 32 * triton_cross_entropy.NUM_WARPS * triton_cross_entropy.GROUPS


def spell_out(ptx: str) -> str:
    """Replace an instruction of sm_100 that the PTX interpreter does not support: a 16-bit number minus float32."""
    number = iter(range(10_000))
    return re.sub(
        r"sub\.rn\.f32\.(bf16|f16)\s+(%r\d+), (%rs\d+), (%r\d+);",
        lambda x: ".reg .b32 %wide{0}; cvt.f32.{1} %wide{0}, {3}; sub.rn.f32 {2}, %wide{0}, {4};".format(
            next(number), *x.groups()
        ),
        ptx,
    )


def make_logits(
    count: int, vocab_size: int, dtype: torch.dtype, stride: int | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows of logits in storage [count, stride], target). NaN past the rows reveals stray reads and writes."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((count, stride or vocab_size), torch.nan, dtype=dtype)
    wide[:, :vocab_size] = 3 * torch.randn(count, vocab_size, generator=generator)
    return wide, torch.randint(vocab_size, (count,), generator=generator)


def unchanged(ptx: str) -> str:
    """Inject no fault."""
    return ptx


def execute(
    wide: torch.Tensor,
    vocab_size: int,
    target: torch.Tensor,
    sm: int = 90,
    gradient: bool = True,
    mutate: Callable[[str], str] = unchanged,
) -> tuple[torch.Tensor, torch.Tensor, Report]:
    """Run the compiled code on a copy; return (loss, the storage afterwards, the launch's report)."""
    wide = wide.clone()
    with Device(sm, mutate=lambda ptx: spell_out(mutate(ptx))) as device:
        loss = triton_cross_entropy.softmax_gradient(wide[:, :vocab_size], target, IGNORED, gradient)
    return loss, wide, device.launches[0].report


def assert_right(
    loss: torch.Tensor, after: torch.Tensor, wide: torch.Tensor, vocab_size: int, target: torch.Tensor
) -> None:
    """Compare with the plain function in float64, allowing float32 arithmetic and one rounding to the dtype."""
    wanted = wide.double()
    wanted_loss = cross_entropy.softmax_gradient(wanted[:, :vocab_size], target, IGNORED, True)
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=1e-6, atol=2e-6, equal_nan=True)
    ulp = max(torch.finfo(wide.dtype).eps, 2e-6)
    torch.testing.assert_close(after.double(), wanted, rtol=ulp, atol=3e-7, equal_nan=True)


@contextmanager
def stand_in_gpu(sm: int) -> Iterator[Device]:
    """Extend `Device` to torch's matrix products.

    The device is informed of the memory that mm writes, and addmm adds 16-bit products in float32.
    """
    mm = torch.mm

    def informing_mm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is not None:
            size = out.element_size()
            written = torch.from_numpy(device._written[out.untyped_storage().data_ptr()])
            written.as_strided((out.shape[0], out.shape[1] * size), (out.stride(0) * size, 1)).fill_(True)
        return mm(a, b, out=out)

    def addmm(
        total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype, out: torch.Tensor
    ) -> torch.Tensor:
        return out.addmm_(a.to(out_dtype), b.to(out_dtype))

    patches = mock.patch.object(torch, "mm", informing_mm), mock.patch.object(torch, "addmm", addmm)
    with Device(sm, mutate=spell_out) as device, patches[0], patches[1]:
        yield device


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_op_is_as_exact_as_torch(sm: int, dtype: torch.dtype) -> None:
    """Three chunks, the last of one row; an odd vocabulary size; the tolerance of the plain implementation's test."""
    hidden, weight, target = make_problem(9, LINES * 8 + 809, 16, dtype, seed=sm)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = with_gradients(torch_loss(*exact, target, reduction="sum"), *exact)
    with stand_in_gpu(sm) as device, torch.no_grad():
        got = cross_entropy._with_triton(hidden, weight, target, IGNORED, 4, True, True)
    assert [launch.grid for launch in device.launches] == [(4,), (4,), (1,)]
    assert device.launches[0].arguments["logits_stride"] % 16 == 0  # so that Triton loads 16 bytes at a time
    torch_got = with_gradients(torch_loss(hidden, weight, target, reduction="sum"), hidden, weight)
    for x, y, z in zip(got, torch_got, exact, strict=True):
        assert (x.double() - z).norm() <= 1.5 * (y - z).norm() + 1e-6 * z.norm()


@pytest.mark.parametrize(
    ("vocab_size", "stride"),
    [
        (1, 16),  # one entry: the loss is 0
        (7, 7),  # less than 16 bytes, unaligned rows
        (LINES * 8 - 1, LINES * 8),  # a tile less one
        (LINES * 8, LINES * 8),  # exactly a tile, so the last tile is empty
        (LINES * 8 + 1, LINES * 8 + 16),  # a tile plus one
        (LINES * 8 + 9, LINES * 8 + 11),  # a tile plus some, unaligned rows
    ],
)
def test_awkward_sizes(vocab_size: int, stride: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        wide, target = make_logits(3, vocab_size, dtype, stride, seed=vocab_size)
        target[1] = IGNORED
        assert_right(*execute(wide, vocab_size, target)[:2], wide, vocab_size, target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_faulty_rows(dtype: torch.dtype) -> None:
    """NaN, infinities, and targets out of range, in a whole tile and in the last one."""
    vocab_size = LINES * 8 + 100
    wide, target = make_logits(11, vocab_size, dtype)
    for row, place in enumerate((5, vocab_size - 5)):
        wide[row, place] = torch.nan
        wide[2 + row, place] = torch.inf
        wide[4 + row, place] = -torch.inf
    target[3] = vocab_size - 5
    target[4] = 5
    wide[6] = -torch.inf
    target[7], target[8], target[9] = -1, vocab_size, 2**32
    wide[10], target[10] = torch.nan, IGNORED
    loss, after, _ = execute(wide, vocab_size, target)
    assert_right(loss, after, wide, vocab_size, target)
    assert loss.isnan().tolist() == [True] * 4 + [False] * 2 + [True] * 4 + [False]
    assert loss[4] == torch.inf and after[7:10].isnan().all() and after[10].eq(0).all()


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_writes_and_instructions(sm: int, dtype: torch.dtype) -> None:
    """V = 20,000: 16 bytes per thread; each byte is written once, and read twice, or once in the last tile."""
    vocab_size = 20_000
    wide, target = make_logits(3, vocab_size, dtype, seed=1)
    target[1] = IGNORED
    _, _, report = execute(wide, vocab_size, target, sm)
    reads = torch.full((3, vocab_size), 2)
    reads[:, vocab_size // (LINES * 16 // dtype.itemsize) * (LINES * 16 // dtype.itemsize) :] = 1
    reads[1] = 0
    extra = torch.from_numpy(report.reads("logits_ptr")) - reads.unsqueeze(2)
    # All threads read the target's logit.
    assert extra.any(2).nonzero().tolist() == [[0, int(target[0])], [2, int(target[2])]]
    assert (report.writes("logits_ptr") == 1).all()
    loads, stores = report.traffic("logits_ptr", "load", 16), report.traffic("logits_ptr", "store", 16)
    assert loads.bytes == int(reads.sum()) * dtype.itemsize and loads.sectors_per_request > 15.8
    assert stores.bytes == wide.nbytes and stores.sectors_per_request > 15.8
    assert report.thread_instructions / (2 * vocab_size) <= 30


def test_loss_without_gradient() -> None:
    """No logit is written, and all logits except the targets' are read once."""
    vocab_size = 20_000
    wide, target = make_logits(2, vocab_size, torch.bfloat16, seed=1)
    loss, after, report = execute(wide, vocab_size, target, gradient=False)
    assert loss.equal(execute(wide, vocab_size, target)[0]) and after.equal(wide)
    assert report.traffic("logits_ptr", "load", 16).bytes == wide.nbytes
    assert (report.writes("logits_ptr") == 0).all() and (report.reads("logits_ptr") != 1).any(2).sum() == 2


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_register_spills(sm: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Triton's own ptxas, aligned and unaligned rows. At 16 warps, a thread may have 128 registers."""
    tool = Path(nvidia.__path__[0]) / "bin" / ("ptxas" if sm == 80 else "ptxas-blackwell")
    if not tool.exists():
        pytest.skip("this build of Triton has no " + tool.name)
    kernels = []

    def compiled(function: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        kernels.append(compile_for(function, arguments, sm, num_warps=options["num_warps"]))

    with intercept(compiled):
        for stride in (20_000, 20_003):
            wide, target = make_logits(1, 20_000, dtype, stride)
            triton_cross_entropy.softmax_gradient(wide[:, :20_000], target, IGNORED, True)
    for kernel in kernels:
        (tmp_path / "kernel.ptx").write_text(kernel.ptx)
        architecture = f"sm_{sm}" + "a" * (sm > 80)
        command = [tool, "-v", "--gpu-name", architecture, tmp_path / "kernel.ptx", "-o", tmp_path / "cubin"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in output
        assert int(re.search(r"Used (\d+) registers", output)[1]) <= 128


@pytest.mark.parametrize(
    "fault",
    [
        lambda ptx: remove(ptx, "st.global.v4"),
        lambda ptx: shift_address(ptx, "st.global.v4", 16, len(find(ptx, "st.global.v4")) - 1),
        lambda ptx: unguard(ptx, "ld.global.v4", 2),  # the mask of the last tile
        lambda ptx: remove(ptx, "shfl", 1),  # one step of a reduction
        lambda ptx: "".join(line for line in ptx.splitlines(True) if "bar.sync" not in line),
        lambda ptx: ptx.replace("add.f32", "sub.f32").replace("add.rn.f32", "sub.rn.f32"),  # a sum with the wrong sign
    ],
)
def test_injected_faults_are_caught(fault: Callable[[str], str]) -> None:
    vocab_size = LINES * 8 + 1600
    wide, target = make_logits(2, vocab_size, torch.bfloat16)
    target[1] = IGNORED
    try:
        loss, after, _ = execute(wide, vocab_size, target, mutate=fault)
    except errors.Fault:
        return
    with pytest.raises(AssertionError):
        assert_right(loss, after, wide, vocab_size, target)


@needs_interpreter
def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated."""
    code = f"""
import torch
from tests.kernels.test_cross_entropy import IGNORED
from cdgen_kernels import cross_entropy
from cdgen_kernels.triton import cross_entropy as triton_cross_entropy
torch.manual_seed(1)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for size in (5, {LINES * 8 + 333}):
        wide = torch.full((5, size + 3), torch.nan, dtype=dtype)
        logits = wide[:, :size]
        logits.copy_(3 * torch.randn(5, size))
        logits[3, 4] = torch.inf
        target = torch.tensor([4, IGNORED, 0, 1, size])
        wanted = logits.double()
        wanted_loss = cross_entropy.softmax_gradient(wanted, target, IGNORED, True)
        loss = triton_cross_entropy.softmax_gradient(logits, target, IGNORED, True)
        ulp = max(torch.finfo(dtype).eps, 2e-6)
        torch.testing.assert_close(loss.double(), wanted_loss, rtol=1e-6, atol=2e-6, equal_nan=True)
        torch.testing.assert_close(logits.double(), wanted, rtol=ulp, atol=3e-7, equal_nan=True)
        assert wide[:, size:].isnan().all()
"""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
