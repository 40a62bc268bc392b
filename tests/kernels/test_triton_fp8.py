"""paged_attention on fp8 pages without a GPU: compiled PTX is executed, and Triton's interpreter runs the source.

sm_80 has no instructions for fp8. sm_89 has them, and its matrix products can be executed, unlike those of sm_90. Keys
and values are exact in the queries' dtypes, so results may differ from float64 as in test_triton_attention.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.paged import decode, in_fp8, make_paged

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from benchmarks.aot.compiled import Resources, record, resources  # noqa: E402
from cdgen_kernels.triton import attention as triton_attention  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tests.helpers.attention import run  # noqa: E402
from tools.ptx_sim import errors  # noqa: E402
from tools.ptx_sim.device import Launch  # noqa: E402
from tools.ptx_sim.faults import remove, shift_address  # noqa: E402
from tools.ptx_sim.versions import needs_interpreter  # noqa: E402

pytestmark = pytest.mark.ptx

Tokens = Sequence[tuple[int, int]]


def check(
    lengths: list[int],
    heads: int = 2,
    kv_heads: int = 2,
    dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    *,
    page: int = 16,
    tokens: Tokens | None = None,
    window: int = 0,
    dropout: float = 0.0,
    prefill: bool = False,
    sm: int = 90,
    mutate: Callable[[str], str] | None = None,
) -> Launch:
    """Compare with the reference, and return the only launch."""
    paged, scales = in_fp8(make_paged(lengths, tokens or decode(lengths), heads, kv_heads, dim, page, dtype))
    rest = (dim**-0.5, window, dropout, torch.tensor([12345]), torch.arange(len(paged.q)) + 2**33, 5)
    (only,) = run([*paged, *rest], sm, mutate, prefill=prefill, **scales)
    return only


@pytest.mark.parametrize("sm", [90, 100])
@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.0), (torch.float32, 0.3)])
def test_sequences_of_any_length(sm: int, dtype: torch.dtype, dropout: float) -> None:
    """One key; a page, and one or three keys more; a tile of 64, and one key more; several tiles and programs."""
    assert check([1, 16, 19, 64, 65, 230], dtype=dtype, dropout=dropout, sm=sm).grid[2] > 1


@pytest.mark.parametrize("sm", [90, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_groups_on_matrix_units(sm: int, dtype: torch.dtype) -> None:
    launch = check([1, 31, 33, 90], 8, 2, dtype=dtype, sm=sm)
    assert any("mma" in opcode for opcode in launch.report.warp_instructions)


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "page"), [(3, 1, 20, 3), (4, 2, 80, 6), (1, 1, 256, 16)])
def test_odd_heads_and_pages(heads: int, kv_heads: int, dim: int, page: int) -> None:
    check([40, 3], heads, kv_heads, dim, page=page, window=25)


def test_prefill_on_matrix_units() -> None:
    """Two sequences and an unused token in one block of queries."""
    tokens = [(0, at) for at in range(20)] + [(-1, 0)] + [(1, at) for at in range(40)]
    for dtype in (torch.bfloat16, torch.float16):
        launch = check([20, 70], 4, 2, dtype=dtype, tokens=tokens, prefill=True, sm=89)
        assert launch.arguments["out_ptr"][20].eq(0).all()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make room on the device for only one program per token and key-value head."""
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 0)


def test_reads_of_keys_and_scales(alone: None) -> None:
    """Keys are read once, 16 bytes per lane; scales once, 32 bytes per page and head."""
    lengths, heads = [230, 64], 2
    launch = check(lengths)
    for name, size in (("keys_ptr", 64), ("values_ptr", 64), ("key_scales_ptr", 2), ("value_scales_ptr", 2)):
        assert (launch.report.reads(name) > 0).sum() == sum(lengths) * heads * size
        assert launch.report.reads(name).max() == 1
    for name in ("keys_ptr", "values_ptr"):
        loads = launch.report.traffic(name, "load")
        assert launch.report.traffic(name, "load", 16).bytes == loads.bytes
    assert launch.report.traffic("key_scales_ptr", "load").sectors <= sum(lengths) * heads // 16 + 2 * heads
    assert launch.report.thread_instructions / (sum(lengths) * heads) <= 950


FAULTS = [
    lambda ptx: remove(ptx, "mul.f32", 20),
    lambda ptx: shift_address(ptx, "ld.global.b16", 2, 1),
    lambda ptx: remove(ptx, "cvt.rn.f16x2.e4m3x2", 3),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault: Callable[[str], str], alone: None) -> None:
    with pytest.raises((errors.Fault, AssertionError)):
        check([230, 64], mutate=fault)


def compiled(heads: int, kv_heads: int, dim: int, target: str, dropout: float = 0.0, **options: Any) -> Resources:
    """Compile the first launch of a batch of 128 with sequences of 420 tokens."""
    paged, scales = in_fp8(make_paged([420], [(0, 419)], heads, kv_heads, dim, dtype=torch.bfloat16))
    q, row, position = (
        torch.zeros(128, heads, dim, dtype=torch.bfloat16),
        torch.zeros(128).int(),
        torch.zeros(128).long(),
    )
    inputs = (q, *paged[1:4], row, position, dim**-0.5, 0, dropout, position[:1], position, 3)
    op = SimpleNamespace(fused=lambda *given: triton_attention.paged_attention(*given, **options, **scales))
    return resources(record(op, inputs, target.partition(":")[0]).launches[0], target)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:90", "cuda:100", "hip:gfx942"])
def test_kernels_stay_within_their_limits(target: str) -> None:
    """No spills, and 16-byte loads. Eight programs of 64 threads fit, which have 64 KiB of loads in flight."""
    lines, dropped = compiled(12, 12, 64, target), compiled(12, 12, 64, target, dropout=0.3)
    groups, prefill = compiled(32, 8, 128, target), compiled(12, 12, 64, target, prefill=True)
    shared = [
        compiled(*sizes, target, shared_lengths=torch.zeros(1, dtype=torch.int32))
        for sizes in ((12, 12, 64), (32, 8, 128))
    ]
    assert all(not taken.spill and not taken.stack for taken in (lines, dropped, groups, prefill, *shared))
    assert all(taken.registers <= 248 and taken.shared <= 20 * 1024 for taken in shared)
    assert lines.registers <= (128 if target.startswith("cuda") else 168) and dropped.registers <= 176
    assert groups.registers <= 192 and (prefill.registers <= 208 or target.startswith("hip"))
    assert prefill.shared <= 64 * 1024
    assert all(taken.width(["keys_ptr", "values_ptr"]) == 16 for taken in (lines, dropped, groups))


@needs_interpreter
def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import attention as triton_attention
from tests.helpers.paged import decode, in_fp8, make_paged
tokens = [*decode([70, 3]), (-1, 0), (0, 20), (0, 21)]
for heads, dtype, dropout, prefill in (
    (2, torch.float32, 0.3, False), (8, torch.float16, 0.0, False), (2, torch.float16, 0.0, True)
):
    paged, scales = in_fp8(make_paged([70, 3], tokens, heads, 2, 20, 6, dtype))
    rest = (0.2, 40, dropout, torch.tensor([7]), torch.arange(5), 3)
    wanted = reference.paged_attention(*paged, *rest, **scales)
    got = triton_attention.paged_attention(*paged, *rest, prefill, **scales)
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)
    assert wanted.any()
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
