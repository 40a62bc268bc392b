"""Small Triton kernels, compiled for three GPU generations and run by the PTX interpreter, compared with torch."""

import pytest
import torch
import triton

from tests.helpers import ptx_kernels as kernels
from tools.ptx_sim import compile_for, launch, run

pytestmark = pytest.mark.ptx

ALL = (80, 90, 100)
every_sm = pytest.mark.parametrize("sm", ALL)
every_mode = pytest.mark.parametrize("by", ("cta", "warp"))
NAN = float("nan")
if not isinstance(kernels.softmax, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET is set: kernels cannot be compiled", allow_module_level=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return an output tensor full of NaN, or of -77 for integers."""
    return torch.full(shape, NAN if dtype.is_floating_point else -77, dtype=dtype)


# ---- functions of each element


@every_sm
@pytest.mark.parametrize("fusion", (False, True))
def test_arithmetic(sm: int, fusion: bool) -> None:
    x, y, out = torch.randn(1024), torch.randn(1024), poisoned(1024)
    arguments = dict(x=x, y=y, out=out, N=1024)
    report = run(kernels.arithmetic, (1,), arguments, sm, fp_fusion=fusion, uninitialised=["out"])
    r = x * y + x - y / 3
    expected = torch.where(x > y, r.clamp(-1, 2), torch.maximum(r, torch.minimum(x, y)))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    fused = sum(count for opcode, count in report.warp_instructions.items() if opcode.startswith("fma"))
    assert (fused > 0) == fusion


@every_sm
def test_exponentials(sm: int) -> None:
    n = 256
    x, out = torch.randn(n) * 3, poisoned(8, n)
    x[0] = 1e6  # the sine of a large number takes the slow path, with carries and a stack
    run(kernels.exponentials, (1,), dict(x=x, out=out, N=n), sm, uninitialised=["out"])
    a = x.double()
    p = a.abs() + 0.001
    expected = [
        a.exp() + a.exp2(),
        p.log() + p.log2(),
        p.sqrt() + p.rsqrt(),
        a.sigmoid(),
        a.sin() + a.cos(),
        a.erf(),
        (x * 4).floor() + (x * 3).ceil(),
        a.tanh() + p.log1p(),
    ]
    torch.testing.assert_close(out, torch.stack([e.float() for e in expected]), rtol=3e-6, atol=3e-6)


@every_sm
def test_inline_assembly(sm: int) -> None:
    x, out = torch.rand(256), poisoned(256)
    run(kernels.approximate_log, (1,), dict(x=x, out=out, N=256), sm)
    torch.testing.assert_close(out, x.log2(), rtol=1e-6, atol=1e-6)


@every_sm
@pytest.mark.parametrize("dtype", (torch.int8, torch.int16, torch.int32, torch.int64), ids=str)
def test_integers(sm: int, dtype: torch.dtype) -> None:
    n, limits = 256, torch.iinfo(dtype)
    x, y = (torch.randint(limits.min + 1, limits.max, (n,)).to(dtype) for _ in "xy")
    y[::2] = torch.randint(1, 9, (n // 2,)).to(dtype)
    y[y == 0] = 3
    out = poisoned(5, n, dtype=dtype)
    run(kernels.integers, (1,), dict(x=x, y=y, out=out, N=n), sm, uninitialised=["out"])
    cut = lambda a, b: torch.div(a, b, rounding_mode="trunc")  # noqa: E731 - Triton divides as C does
    expected = [
        cut(x, y),
        x - cut(x, y) * y,
        (x << 3) ^ (x >> 2) | (y & ~x),
        torch.minimum(x, y) * 7 - torch.maximum(x, y) + cut(x, torch.full_like(x, 13)) * (y - cut(y, y * 0 + 10) * 10),
        x.abs(),
    ]
    assert torch.equal(out, torch.stack(expected))


@every_sm
@pytest.mark.parametrize("dtype", (torch.uint32, torch.uint64), ids=str)
def test_high_products(sm: int, dtype: torch.dtype) -> None:
    bits = torch.iinfo(dtype).bits
    values = [[int(v) % 2**bits for v in torch.randint(-(2**63), 2**63 - 1, (128,))] for _ in "xy"]
    x, y = (torch.tensor(each, dtype=dtype) for each in values)
    out = torch.zeros(128, dtype=dtype)
    run(kernels.high_product, (1,), dict(x=x, y=y, out=out, N=128), sm)
    assert out.tolist() == [a * b >> bits for a, b in zip(*values, strict=True)]


TARGETS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TARGETS += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@every_sm
@pytest.mark.parametrize("source", TARGETS, ids=str)
def test_conversions(sm: int, source: torch.dtype) -> None:
    n = 256
    if source.is_floating_point:  # conversions beyond the integers' ranges are undefined
        x = (torch.rand(n) * 120).to(source)
    else:  # torch converts to bfloat16 through float32, which rounds once only for integers up to 2**24
        limits = torch.iinfo(source)
        x = torch.randint(max(limits.min, -(2**24)), min(limits.max, 2**24), (n,)).to(source)
    outs = [poisoned(n, dtype=dtype) if dtype != torch.uint8 else torch.zeros(n, dtype=dtype) for dtype in TARGETS]
    names = [name for name in kernels.convert.arg_names if name.startswith("to_")]
    run(kernels.convert, (1,), dict(x=x, N=n, **dict(zip(names, outs, strict=True))), sm, uninitialised=names)
    for out in outs:
        assert torch.equal(out, x.to(out.dtype)), out.dtype


@every_sm
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_arithmetic_in_16_bits(sm: int, dtype: torch.dtype) -> None:
    x, y, out = torch.randn(512).to(dtype), torch.randn(512).to(dtype), poisoned(512, dtype=dtype)
    run(kernels.narrow_arithmetic, (1,), dict(x=x, y=y, out=out, N=512), sm, uninitialised=["out"])
    assert torch.equal(out, torch.where(x < y, x * y, x - y))


def philox(seed: int, counter: int) -> int:
    """Return the first word of Philox 4x32-10 (Salmon et al. 2011) for the counter (counter, 0, 0, 0)."""
    mask, words, key = 2**32 - 1, [counter, 0, 0, 0], [seed & (2**32 - 1), seed >> 32]
    for _ in range(10):
        first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [second >> 32 ^ words[1] ^ key[0], second & mask, first >> 32 ^ words[3] ^ key[1], first & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return words[0]


@every_sm
@pytest.mark.parametrize("seed", (7, 2**40 + 5))
def test_random_numbers(sm: int, seed: int) -> None:
    uniform, bits = poisoned(256), poisoned(256, dtype=torch.int32)
    arguments = dict(seed=seed, out_float=uniform, out_int=bits, N=256)
    run(kernels.random_numbers, (1,), arguments, sm, uninitialised=["out_float", "out_int"])
    assert [v % 2**32 for v in bits.tolist()] == [philox(seed, i) for i in range(256)]
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.1


# ---- rows


@every_sm
@every_mode
@pytest.mark.parametrize("n", (1000, 1008), ids=("scalar", "vector"))  # 1008 is divisible by 16, 1000 is not
def test_softmax_of_strided_rows(sm: int, by: str, n: int) -> None:
    storage = torch.randn(4, 1056).bfloat16()
    x, out = storage[1:, 16 : 16 + n], poisoned(3, 1024)[:, :n]
    arguments = dict(x=x, out=out, x_stride=1056, out_stride=1024, n=n, BLOCK=1024)
    report = run(kernels.softmax, (3,), arguments, sm, by=by, uninitialised=["out"])
    torch.testing.assert_close(out, x.float().softmax(1))
    assert (report.reads("x") == 1).all() and (report.writes("out") == 1).all()
    assert report.traffic("x", "load").bytes_per_lane == (16 if n == 1008 else 2)


@every_sm
def test_loop_over_a_row(sm: int) -> None:
    x, out = torch.randn(3, 1700), poisoned(3, 1700)
    run(kernels.scale_rows, (3,), dict(x=x, out=out, stride=1700, n=1700, BLOCK=512), sm, uninitialised=["out"])
    assert torch.equal(out, 2 * x)


@every_sm
@every_mode
def test_scratch_in_global_memory(sm: int, by: str) -> None:
    x, blocks, out = torch.randn(3, 5000).bfloat16(), poisoned(3, 64), poisoned(3)
    arguments = dict(x=x, blocks=blocks, out=out, n=5000, BLOCK=512)
    run(kernels.row_maximum_twice, (3,), arguments, sm, by=by, uninitialised=["blocks", "out"])
    assert torch.equal(out, x.float().amax(1))


# ---- reductions, scans, orders


@every_sm
@pytest.mark.parametrize("num_warps", (1, 8))
def test_reductions(sm: int, num_warps: int) -> None:
    x, out = torch.randn(512), poisoned(5)
    run(kernels.reductions, (1,), dict(x=x, out=out, N=512), sm, num_warps=num_warps, by="warp")
    torch.testing.assert_close(out, torch.stack([x.sum(), x.max(), x.min(), x.argmax(), x.argmin()]).float())


@every_sm
def test_integer_reductions(sm: int) -> None:
    x, out = torch.randint(-1000, 1000, (1024,), dtype=torch.int32), poisoned(4, dtype=torch.int32)
    run(kernels.integer_reductions, (1,), dict(x=x, out=out, N=1024), sm)
    exclusive = 0
    for value in x.tolist():
        exclusive ^= value
    assert out.tolist() == [x.sum(), x.max(), x.min(), exclusive]


@every_sm
def test_reductions_over_either_axis(sm: int) -> None:
    x, rows, columns = torch.randn(32, 64), poisoned(32), poisoned(64)
    run(kernels.axes, (1,), dict(x=x, rows=rows, columns=columns, M=32, N=64), sm)
    torch.testing.assert_close(rows, x.amax(1))
    torch.testing.assert_close(columns, x.sum(0))


@every_sm
def test_reduction_of_pairs(sm: int) -> None:
    x, value, index = torch.randn(1024), poisoned(1), poisoned(1, dtype=torch.int32)
    x[[300, 700]] = 9.0
    run(kernels.best_pair, (1,), dict(x=x, value=value, index=index, N=1024), sm)
    assert (value.item(), index.item()) == (9.0, 300)


@every_sm
@every_mode
def test_scans(sm: int, by: str) -> None:
    n = 512
    x, out = torch.randn(n), poisoned(3, n)
    run(kernels.scans, (1,), dict(x=x, out=out, N=n), sm, by=by, uninitialised=["out"])
    decayed, state = [], 0.0
    for value in x.tolist():
        state = 0.5 * state + value
        decayed.append(state)
    expected = torch.stack([x.cumsum(0), x.flip(0).cumsum(0).flip(0), torch.tensor(decayed)])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)


@every_sm
def test_sort_and_topk(sm: int) -> None:
    x, in_order, top = torch.randn(64), poisoned(64), poisoned(8)
    run(kernels.order, (1,), dict(x=x, sorted_out=in_order, top_out=top, N=64, K=8), sm)
    assert torch.equal(in_order, x.sort().values) and torch.equal(top, x.topk(8).values)


@every_sm
def test_gather(sm: int) -> None:
    x, index, out = torch.randn(512), torch.randint(0, 512, (512,), dtype=torch.int32), poisoned(512)
    run(kernels.gather, (1,), dict(x=x, index=index, out=out, N=512), sm)
    assert torch.equal(out, x[index.long()])


@every_sm
@every_mode
def test_histogram(sm: int, by: str) -> None:
    x, out = torch.randint(0, 32, (1024,), dtype=torch.int32), poisoned(32, dtype=torch.int32)
    run(kernels.histogram, (1,), dict(x=x, out=out, N=1024, BINS=32), sm, by=by)
    assert torch.equal(out, torch.bincount(x, minlength=32).int())


# ---- atomics


@every_sm
@pytest.mark.parametrize("dtype", (torch.int32, torch.uint32, torch.int64), ids=str)
def test_integer_atomics(sm: int, dtype: torch.dtype) -> None:
    n, width = 256, 8
    signed = torch.int64 if dtype == torch.int64 else torch.int32
    x = torch.randint(0 if dtype == torch.uint32 else -(2**30), 2**30, (n,), dtype=signed)
    cells = torch.randint(0, 2**30, (6, width), dtype=signed)
    columns = x.reshape(-1, width)
    expected = [cells[0] + columns.sum(0, dtype=signed), columns.amax(0).maximum(cells[1])]
    expected.append(columns.amin(0).minimum(cells[2]))
    for row, combine in ((3, torch.bitwise_and), (4, torch.bitwise_or), (5, torch.bitwise_xor)):
        value = cells[row]
        for line in columns:
            value = combine(value, line)
        expected.append(value)
    cells = cells.clone()
    run(kernels.atomics, (1,), dict(x=x.view(dtype), cells=cells.view(dtype), N=n, CELLS=width), sm)
    assert torch.equal(cells, torch.stack(expected))


@every_sm
@pytest.mark.parametrize("cells", (8, 1024), ids=("contended", "vector"))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_float_atomics(sm: int, dtype: torch.dtype, cells: int) -> None:
    x = torch.randint(-4, 5, (2, 512)).to(dtype)  # small integers: the sum does not depend on the order
    out = torch.zeros(cells, dtype=dtype)
    run(kernels.add_atomically, (2,), dict(x=x, cells=out, N=512, CELLS=cells), sm)
    assert torch.equal(out, x.reshape(-1, cells).sum(0))


@every_sm
def test_float_extremes(sm: int) -> None:
    x, cells = torch.randn(256), torch.zeros(2)
    run(kernels.extreme_atomically, (1,), dict(x=x, cells=cells, N=256), sm)
    assert torch.equal(cells, torch.stack([x.max(), x.min()]))


@every_sm
@every_mode
def test_compaction_by_an_atomic_counter(sm: int, by: str) -> None:
    x = torch.randn(3, 3000)
    counter, kept = torch.zeros(3, dtype=torch.int32), poisoned(3, 64, dtype=torch.int32)
    arguments = dict(x=x, threshold=2.5, counter=counter, kept=kept, n=3000, BLOCK=512, CAPACITY=64)
    orders = set()
    kernel = compile_for(kernels.compact, arguments, sm)
    for seed in range(3):
        counter.zero_()
        launch(kernel, (3,), x, 2.5, counter, kept, 3000, by=by, seed=seed, uninitialised=["kept"])
        for row in range(3):
            found = kept[row, : counter[row]].tolist()
            assert sorted(found) == (x[row] > 2.5).nonzero().flatten().tolist()
        orders.add(tuple(kept[0, : counter[0]].tolist()))
    assert len(orders) > 1  # the seed decides the order of atomic operations


@every_sm
@every_mode
def test_last_program_sums(sm: int, by: str) -> None:
    x, partial, out = torch.randn(8, 256), poisoned(8), poisoned(1)
    ticket = torch.zeros(1, dtype=torch.int32)
    arguments = dict(x=x, partial=partial, ticket=ticket, out=out, N=256, PROGRAMS=8)
    run(kernels.last_one_sums, (8,), arguments, sm, by=by, uninitialised=["partial", "out"])
    torch.testing.assert_close(out[0], x.sum())


@every_sm
def test_swaps(sm: int) -> None:
    cells, seen = torch.tensor([5, 6, 7], dtype=torch.int32), poisoned(3, dtype=torch.int32)
    run(kernels.swap, (1,), dict(cells=cells, seen=seen), sm)
    assert (cells.tolist(), seen.tolist()) == ([9, 6, 11], [5, 6, 7])


# ---- control flow


@every_sm
@every_mode
def test_loop_whose_length_depends_on_the_data(sm: int, by: str) -> None:
    x, out, taken = torch.rand(6, 50), poisoned(6), poisoned(6, dtype=torch.int32)
    arguments = dict(x=x, limit=4.0, out=out, taken=taken, n=50)
    run(kernels.sum_until, (6,), arguments, sm, by=by, uninitialised=["out", "taken"])
    sums = x.cumsum(1)
    expected = (sums < 4.0).sum(1) + 1
    assert torch.equal(taken.long(), expected)
    torch.testing.assert_close(out, sums.gather(1, expected[:, None] - 1)[:, 0])


@every_sm
@every_mode
def test_programs_that_take_different_branches(sm: int, by: str) -> None:
    x, out = torch.rand(5, 256), poisoned(5, 256)
    flags = torch.tensor([1, 0, 2, 0, 1], dtype=torch.int32)
    run(kernels.skip_some, (5,), dict(x=x, flags=flags, out=out, N=256), sm, by=by, uninitialised=["out"])
    torch.testing.assert_close(out[2], x[2] / x[2].sum())
    for row in (0, 4):
        torch.testing.assert_close(out[row], x[row] - x[row].max())
    assert out[[1, 3]].isnan().all()


@every_sm
def test_grid_of_three_axes(sm: int) -> None:
    out = poisoned(24, dtype=torch.int32)
    run(kernels.grid_axes, (2, 3, 4), dict(out=out), sm, num_warps=1)
    assert out.tolist() == [x + 10 * y + 100 * z for z in range(4) for y in range(3) for x in range(2)]


# ---- matrix products with sm_80's instructions, which sm_90 and sm_100 also use for small products


@pytest.mark.parametrize(
    "precision, dtype",
    (
        ("tf32", torch.float16),
        ("tf32", torch.bfloat16),
        ("tf32", torch.float32),
        ("ieee", torch.float32),
        ("tf32x3", torch.float32),
    ),
    ids=str,
)
@pytest.mark.parametrize("shape", ((64, 64), (16, 32)), ids=str)
def test_matrix_product(precision: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    (m, n), k = shape, 96
    a, b, out = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), poisoned(m, n)
    arguments = dict(a=a, b=b, out=out, K=k, M=m, N=n, BK=32, PRECISION=precision)
    report = run(kernels.product, (1,), arguments, 80, uninitialised=["out"])
    coarse = precision == "tf32" and dtype == torch.float32
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=0, atol=3e-2 if coarse else 1e-4)
    assert any(opcode.startswith("mma.sync") for opcode in report.warp_instructions) == (precision != "ieee")
    assert any(opcode.startswith("cp.async") for opcode in report.warp_instructions)


@pytest.mark.parametrize("sm", (90, 100))
def test_small_matrix_product(sm: int) -> None:
    a, b, out = torch.randn(16, 64).bfloat16(), torch.randn(64, 32).bfloat16(), poisoned(16, 32)
    arguments = dict(a=a, b=b, out=out, K=64, M=16, N=32, BK=32, PRECISION="tf32")
    run(kernels.product, (1,), arguments, sm, uninitialised=["out"])
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=0, atol=1e-4)
