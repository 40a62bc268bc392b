"""The kernels of triton/layers.py without a GPU: compiled PTX is executed, and Triton's interpreter runs the source.

Rotations and sums of two numbers round as in the reference, so they are equal bit for bit. A norm sums in another
order, so it may differ by a relative error of 1e-6 before it is rounded.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cdgen_kernels import reference

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import layers as triton_layers  # noqa: E402
from tests.helpers.paged import make_places  # noqa: E402
from tools.ptx_sim import Device, Report, errors  # noqa: E402
from tools.ptx_sim.faults import find, remove, shift_address, substitute, unguard  # noqa: E402

pytestmark = pytest.mark.ptx

every_sm = pytest.mark.parametrize("sm", [80, 90, 100])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def on_device(
    function: Callable[..., Any], *arguments: Any, sm: int = 90, mutate: Callable[[str], str] | None = None
) -> tuple[Any, Report]:
    """Execute a launcher's compiled PTX; return (its result, the report of its only launch)."""
    with Device(sm, mutate) as device:
        result = function(*arguments)
    (only,) = device.launches
    return result, only.report


def assert_rounded_once(got: torch.Tensor, exact: torch.Tensor) -> None:
    """Allow float32 sums a relative error of 2e-6, then one rounding to the dtype."""
    assert not got.isnan().any()
    slack = max(torch.finfo(got.dtype).eps / 2, 1e-7) + 2e-6
    torch.testing.assert_close(got.double(), exact, rtol=slack, atol=1e-7)


def make_sum(
    rows: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (x, residual, weight)."""
    generator = torch.Generator().manual_seed(seed)
    x, residual, weight = (torch.randn(size, generator=generator) for size in ((rows, width), (rows, width), (width,)))
    return x.to(dtype), residual.to(dtype), (1 + 0.3 * weight).to(dtype)


def check_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float = 1e-5, **how: Any
) -> Report:
    """Compare with the reference; return the report of the launch."""
    (normed, total), report = on_device(triton_layers.add_rms_norm, x, residual, weight, eps, **how)
    summed = reference.add_rms_norm(x, residual, weight, eps)[1]
    assert total.equal(summed)
    assert_rounded_once(normed, reference.add_rms_norm(summed.double(), None, weight.double(), eps)[0])
    return report


@every_sm
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(sm: int, dtype: torch.dtype) -> None:
    """GOOD's width of 768, which masks off a quarter of the lanes' numbers; a width of four warps; no residual."""
    check_norm(*make_sum(3, 768, dtype), sm=sm)
    check_norm(*make_sum(2, 4096, dtype), sm=sm)
    x, _, weight = make_sum(2, 768, dtype)
    check_norm(x, None, weight, sm=sm)


@pytest.mark.parametrize("width", [1, 7, 224, 1030])
def test_widths_that_are_no_powers_of_two(width: int) -> None:
    check_norm(*make_sum(2, width, torch.bfloat16))


def test_reads_and_writes_of_the_norm() -> None:
    """Each number is read or written once, 16 bytes per lane."""
    x, residual, weight = make_sum(4, 768, torch.bfloat16)
    report = check_norm(x, residual, weight)
    for name in ("x_ptr", "residual_ptr"):
        assert (report.reads(name) == 1).all() and report.traffic(name, width=16).bytes == x.nbytes
    assert (report.reads("weight_ptr") == 4).all()
    for name in ("normed_ptr", "total_ptr"):
        assert (report.writes(name) == 1).all() and report.traffic(name, width=16).bytes == x.nbytes
    assert report.thread_instructions / x.numel() <= 16


def test_infinite_and_tiny_sums() -> None:
    x, residual, weight = make_sum(3, 64, torch.float32)
    x[0, 3], x[1], residual[1], x[2, 5] = torch.inf, 0, 0, torch.nan
    (normed, _), _ = on_device(triton_layers.add_rms_norm, x, residual, weight, 1e-5)
    wanted, _ = reference.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, wanted, rtol=1e-6, atol=0, equal_nan=True)


def check_gate(gate_up: torch.Tensor, **how: Any) -> Report:
    """Compare with the reference; return the report of the launch."""
    got, report = on_device(triton_layers.silu_mul, gate_up, **how)
    assert_rounded_once(got, reference.silu_mul(gate_up.double()))
    return report


def make_gate(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return (3 * torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(width))).to(dtype)


@every_sm
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(sm: int, dtype: torch.dtype) -> None:
    """SmolLM2's width, which masks off half of the last tile; a width that is no multiple of 16 bytes."""
    check_gate(make_gate(2, 1536, dtype), sm=sm)
    check_gate(make_gate(3, 37, dtype), sm=sm)


def test_reads_and_writes_of_the_gate() -> None:
    """Each number is read or written once, 16 bytes per lane."""
    gate_up = make_gate(2, 2048, torch.bfloat16)  # two whole tiles
    report = check_gate(gate_up)
    assert (report.reads("gate_up_ptr") == 1).all() and (report.writes("out_ptr") == 1).all()
    assert report.traffic("gate_up_ptr", width=16).bytes == gate_up.nbytes
    assert report.traffic("out_ptr", width=16).bytes == gate_up.nbytes // 2
    assert report.thread_instructions / (gate_up.numel() / 2) <= 14


def test_gates_that_exp_overflows_for() -> None:
    gate = torch.tensor([0.0, 90, -90, 1e4, -1e4, torch.inf, -torch.inf, torch.nan])
    gate_up = torch.cat([gate, torch.full((8,), 2.0)])[None]
    got, _ = on_device(triton_layers.silu_mul, gate_up)
    torch.testing.assert_close(got, reference.silu_mul(gate_up), rtol=1e-6, atol=1e-35, equal_nan=True)


def make_rotation(
    tokens: int,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    page: int = 16,
) -> tuple[torch.Tensor, ...]:
    """Return arguments of rope_and_store.

    q, k and v are views of one product, the cache is all NaN, and the second token is unused.
    """
    generator = torch.Generator().manual_seed(dim)
    product = torch.randn(tokens, (heads + 2 * kv_heads) * dim, generator=generator).to(dtype)
    parts = product.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
    q, k, v = (part.unflatten(1, (-1, dim)) for part in parts)
    angle = torch.rand(40, dim // 2, generator=generator) * 6
    page_table, cache_row, position = make_places(tokens, page, sequences=2, length=40)
    cache_row[1:2] = -1
    cache = torch.full((2, page_table.numel(), kv_heads, page, dim), torch.nan, dtype=cache_dtype or dtype)
    return q, k, v, angle.cos(), angle.sin(), page_table, cache_row, position, cache[0], cache[1]


def check_rotation(*problem: torch.Tensor, **how: Any) -> Report:
    """Compare with the reference; return the report of the launch."""
    inputs, cache = problem[:8], problem[8:]
    wanted_cache = [x.clone() for x in cache]
    wanted = reference.rope_and_store(*inputs, *wanted_cache)
    got, report = on_device(triton_layers.rope_and_store, *problem, **how)
    assert got.equal(wanted)
    for mine, right in zip(cache, wanted_cache, strict=True):
        assert mine.view(torch.uint8).equal(right.view(torch.uint8))
    return report


@every_sm
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_and_store(sm: int, dtype: torch.dtype) -> None:
    """GOOD's heads; groups of four heads, whose keys need fewer programs than queries, cached in another dtype."""
    check_rotation(*make_rotation(3, 12, 12, 64, dtype), sm=sm)
    check_rotation(*make_rotation(3, 32, 8, 128, dtype, torch.float16), sm=sm)


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "page"), [(3, 1, 80, 16), (6, 2, 20, 3), (1, 1, 2, 1)])
def test_odd_heads_and_pages(heads: int, kv_heads: int, dim: int, page: int) -> None:
    """Halves that are no powers of two; too few heads to fill a tile; pages of 3 and of 1."""
    check_rotation(*make_rotation(3, heads, kv_heads, dim, torch.bfloat16, page=page))


def in_fp8(problem: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the same problem with a float8_e4m3fn cache and its scales, all NaN."""
    *inputs, keys, values = problem
    scales = [torch.full(keys.shape[:3], torch.nan, dtype=torch.bfloat16) for _ in range(2)]
    return (*inputs, keys.to(torch.float8_e4m3fn), values.to(torch.float8_e4m3fn), *scales)


@pytest.mark.parametrize("sm", [90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_and_store_in_fp8(sm: int, dtype: torch.dtype) -> None:
    """Stored numbers and scales have the reference's bits; each is written once, numbers 16 bytes per lane."""
    problem = in_fp8(make_rotation(3, 12, 12, 64, dtype))
    report = check_rotation(*problem, sm=sm)
    assert report.thread_instructions / (3 * 36 * 64) <= 14
    stored = int((problem[6] >= 0).sum()) * 12
    for name, size in (("keys_ptr", 64), ("values_ptr", 64), ("key_scales_ptr", 2), ("value_scales_ptr", 2)):
        assert report.writes(name).sum() == stored * size and report.writes(name).max() == 1
        assert report.traffic(name, "store", min(size, 16)).bytes == stored * size


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "page"), [(3, 1, 80, 16), (6, 2, 20, 3), (1, 1, 2, 1)])
def test_odd_heads_and_pages_in_fp8(heads: int, kv_heads: int, dim: int, page: int) -> None:
    problem = in_fp8(make_rotation(3, heads, kv_heads, dim, torch.bfloat16, page=page))
    problem[2][0] = 0
    problem[2][2] = 1e-37
    check_rotation(*problem)


def test_reads_and_writes_of_the_rotation() -> None:
    """Each number is read or written once, 16 bytes per lane; k and v of unused tokens are not read."""
    problem = make_rotation(5, 12, 12, 64, torch.bfloat16)
    report = check_rotation(*problem)
    stored = problem[6] >= 0
    assert (report.reads("q_ptr") == 1).all()
    for name in ("k_ptr", "v_ptr"):
        assert (report.reads(name)[stored] == 1).all() and not report.reads(name)[~stored].any()
    for name, tensor in (("keys_ptr", problem[8]), ("values_ptr", problem[9])):
        assert report.writes(name).sum() == int(stored.sum()) * 12 * 64 * 2
        assert report.traffic(name, "store", 16).bytes == report.traffic(name, "store").bytes
        assert (report.writes(name) > 0).any(-1).sum() == (~tensor.isnan()).sum()
    assert report.traffic("out_ptr", width=16).bytes == problem[0].numel() * 2
    assert report.thread_instructions / (5 * 36 * 64) <= 8


def test_a_token_without_a_page_is_not_stored() -> None:
    problem = make_rotation(3, 4, 4, 16, torch.bfloat16)
    page_table, keys, values = problem[5], *problem[8:]
    page_table.fill_(-1)
    on_device(triton_layers.rope_and_store, *problem)
    assert keys.isnan().all() and values.isnan().all()


def test_empty_batches() -> None:
    with Device(90) as device:
        assert triton_layers.rope_and_store(*make_rotation(0, 2, 2, 8, torch.float32)).shape == (0, 2, 8)
        x, residual, weight = make_sum(0, 8, torch.float32)
        assert triton_layers.add_rms_norm(x, residual, weight, 1e-5)[0].shape == (0, 8)
        assert triton_layers.silu_mul(x).shape == (0, 4)
    assert not device.launches


def last(ptx: str, opcode: str) -> int:
    return len(find(ptx, opcode)) - 1


NORM_FAULTS = [
    lambda ptx: remove(ptx, "st.global", last(ptx, "st.global")),
    lambda ptx: shift_address(ptx, "ld.global", 16),
    lambda ptx: unguard(ptx, "ld.global", last(ptx, "ld.global")),
    lambda ptx: remove(ptx, "shfl"),
    lambda ptx: "".join(line for line in ptx.splitlines(True) if "bar.sync" not in line),
]


@pytest.mark.parametrize("fault", NORM_FAULTS)
def test_faults_in_the_norm_are_caught(fault: Callable[[str], str]) -> None:
    """A width that four warps share, and whose last part is only 16 numbers."""
    with pytest.raises((errors.Fault, AssertionError)):
        check_norm(*make_sum(2, 3088, torch.bfloat16), mutate=fault)


GATE_FAULTS = [
    lambda ptx: remove(ptx, "st.global", last(ptx, "st.global")),
    lambda ptx: shift_address(ptx, "ld.global", 16),
    lambda ptx: unguard(ptx, "ld.global", last(ptx, "ld.global")),
    lambda ptx: unguard(ptx, "st.global", last(ptx, "st.global")),
    lambda ptx: remove(ptx, "ex2"),
]


@pytest.mark.parametrize("fault", GATE_FAULTS)
def test_faults_in_the_gate_are_caught(fault: Callable[[str], str]) -> None:
    with pytest.raises((errors.Fault, AssertionError)):
        check_gate(make_gate(2, 1040, torch.bfloat16), mutate=fault)


ROTATION_FAULTS = [
    lambda ptx: remove(ptx, "st.global"),
    lambda ptx: remove(ptx, "st.global", last(ptx, "st.global")),
    lambda ptx: shift_address(ptx, "st.global", 128, last(ptx, "st.global")),
    lambda ptx: shift_address(ptx, "ld.global", 4),  # the position
    lambda ptx: unguard(ptx, "st.global", last(ptx, "st.global")),
    lambda ptx: substitute(ptx, "sub", "sub", "add"),
    lambda ptx: re.sub(r"setp\.lt(\.s32\s+%p\d+, %r\d+, 0;)", r"setp.gt\1", ptx),  # whether the token is unused
    lambda ptx: shift_address(ptx, "ld.global.b32", 4, last(ptx, "ld.global.b32")),  # the page
]


@pytest.mark.parametrize("fault", ROTATION_FAULTS)
def test_faults_in_the_rotation_are_caught(fault: Callable[[str], str]) -> None:
    with pytest.raises((errors.Fault, AssertionError)):
        check_rotation(*make_rotation(3, 12, 12, 64, torch.bfloat16), mutate=fault)


def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated.

    The interpreter truncates to bfloat16 instead of rounding.
    """
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import layers as triton_layers
torch.manual_seed(0)

def same(got, wanted):
    loss = 2**-7 if got.dtype == torch.bfloat16 else 0
    torch.testing.assert_close(got, wanted, rtol=loss, atol=0)

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x, residual, weight = (torch.randn(3, 100).to(dtype) for _ in range(3))
    for given in (residual, None):
        pair = [m.add_rms_norm(x, given, weight[0], 1e-5) for m in (reference, triton_layers)]
        for wanted, got in zip(*pair):
            torch.testing.assert_close(got, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    gated = [m.silu_mul(3 * x) for m in (reference, triton_layers)]
    torch.testing.assert_close(gated[1], gated[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    q, k, v = torch.randn(3, 4, 10).to(dtype), torch.randn(3, 2, 10).to(dtype), torch.randn(3, 2, 10).to(dtype)
    angle, position = torch.rand(9, 5), torch.tensor([8, 0, 3])
    paging = torch.tensor([[1, -1, 2], [0, -1, -1]]).int(), torch.tensor([0, -1, 1]).int(), position
    for cached in (torch.float32, torch.bfloat16):
        pair = []
        for m in (reference, triton_layers):
            cache = torch.full((2, 3, 2, 4, 10), torch.nan, dtype=cached)
            out = m.rope_and_store(q, k, v, angle.cos(), angle.sin(), *paging, *cache)
            pair.append((out, cache.nan_to_num(9)))
        for wanted, got in zip(*pair):
            same(got, wanted)

# 8-bit numbers that need no rounding, which the interpreter does not do right; the largest makes the scale 1/4.
k, v = (torch.randint(-15, 16, (3, 2, 10)) * torch.tensor([0.25, 1, 4, 2, 1, 0.5, 2, 4, 1, 0.25]) for _ in range(2))
k[..., 2] = v[..., 7] = 112
pair = []
for m in (reference, triton_layers):
    cache, scales = torch.zeros(2, 3, 2, 4, 10).to(torch.float8_e4m3fn), torch.zeros(2, 3, 2, 4).bfloat16()
    m.rope_and_store(q, k.to(dtype), v.to(dtype), torch.ones(9, 5), torch.zeros(9, 5), *paging, *cache, *scales)
    pair.append((cache.view(torch.uint8), scales))
for wanted, got in zip(*pair):
    assert wanted.count_nonzero() and got.equal(wanted)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
