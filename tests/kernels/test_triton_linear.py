"""select_candidates_linear and gather_logits without a GPU: their compiled PTX is executed on CPU tensors.

The PTX interpreter only supports the matrix instructions of sm_80. For sm_90 and sm_100, the first launch of
select_candidates_linear is therefore compiled but not run, and the second one gets chunk maxima from torch. If hidden
and weight contain small integers, every sum is exact in any order, and results must be equal. Otherwise a token within
1e-5 of the threshold may be on either side.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdgen_kernels import Candidates, codes, reference

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402

from cdgen_kernels.triton import linear as triton_linear  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tools.ptx_sim import Device, errors, intercept  # noqa: E402
from tools.ptx_sim.compile import compile_for, compile_kernel, specialise  # noqa: E402
from tools.ptx_sim.device import Launch  # noqa: E402
from tools.ptx_sim.faults import find, remove, shift_address, substitute, unguard  # noqa: E402
from tools.ptx_sim.versions import needs_interpreter  # noqa: E402

pytestmark = pytest.mark.ptx

every_sm = pytest.mark.parametrize("sm", [80, 90, 100])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
INF = torch.inf


def integers(rows: int, width: int, dtype: torch.dtype, padding: int, seed: int) -> torch.Tensor:
    """Return [rows, width] of -4 to 4, surrounded by NaN that reveals stray reads, with `padding` between rows."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((rows + 2, width + padding), torch.nan, dtype=dtype)
    wide[1:-1, :width] = torch.randint(-4, 5, (rows, width), generator=generator).to(dtype)
    return wide[1:-1, :width]


def layer(
    batch: int, vocab_size: int, width: int, dtype: torch.dtype = torch.bfloat16, padding: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (hidden, weight). With padding=16, loads of 16 bytes are possible if the width allows them."""
    return integers(batch, width, dtype, padding, seed=0), integers(vocab_size, width, dtype, padding, seed=1)


def torch_maxima(hidden: torch.Tensor, weight: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Compute `chunk_maxima` with torch."""
    z = hidden.float() @ weight[:vocab_size].float().T
    tile = triton_linear.TILE_TOKENS
    z = torch.nn.functional.pad(z, (0, -vocab_size % tile), value=-INF)
    return z.unflatten(1, (-1, triton_linear.CHUNK)).amax(2)


def select(
    sm: int,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    margin: Any,
    banned: Any = None,
    capacity: int = 64,
    maxima: Callable[..., torch.Tensor] | None = None,
    mutate: Callable[[str], str] | None = None,
    vocab_size: int | None = None,
) -> tuple[Candidates, list[Launch], tuple[Any, ...]]:
    """Return (candidates, launches, arguments of the op)."""
    margin = torch.as_tensor(margin, dtype=torch.float32).expand(hidden.shape[0]).contiguous()
    banned = None if banned is None else torch.as_tensor(banned)
    arguments = (hidden, weight, margin, banned, vocab_size or weight.shape[0], capacity)
    with pytest.MonkeyPatch.context() as patch:
        if maxima is not None or sm != 80:
            patch.setattr(triton_linear, "chunk_maxima", maxima or torch_maxima)
        with Device(sm, mutate) as device:
            return triton_linear.select_candidates_linear(*arguments), device.launches, arguments


def check_candidates(*problem: Any, **how: Any) -> tuple[Candidates, list[Launch]]:
    """Compare with the reference; return (candidates, launches)."""
    got, launches, arguments = select(*problem, **how)
    for name, mine, wanted in zip(got._fields, got, reference.select_candidates_linear(*arguments), strict=True):
        assert torch.equal(mine.nan_to_num(12345), wanted.nan_to_num(12345)), (name, mine, wanted)
    return got, launches


@pytest.mark.parametrize(("sm", "dtype"), [*((80, dtype) for dtype in DTYPES), (90, DTYPES[0]), (100, DTYPES[0])])
def test_candidates_of_integers_are_exact(sm: int, dtype: torch.dtype) -> None:
    """Sizes are odd.

    There are 205 = 128 + 4 x 16 + 13 tokens, a width of 100 = 64 + 36 with rows 206 or 412 bytes apart, 4 of a tile's
    16 rows, and lists of 40, which some rows exceed.
    """
    hidden, weight = layer(4, 205, 100, dtype, padding=3)
    best = (hidden.float() @ weight.float().T).topk(3).indices
    banned = torch.tensor([[-1, 7, 204], [best[1, 0], best[1, 0], 400], *best[2:].tolist()])
    got, _ = check_candidates(sm, hidden, weight, [2.5, 0, INF, 60], banned, capacity=40)
    assert (got.count > 40).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("batch", "vocab_size", "width"),
    [
        (1, 1, 1),  # the smallest
        (33, 129, 72),  # tiles of 64 rows; one token in the second tile; vectors of 16 bytes; half a step at the end
        (1, 500, 520),  # two steps and a part of the dot product
    ],
)
def test_awkward_sizes(batch: int, vocab_size: int, width: int) -> None:
    hidden, weight = layer(batch, vocab_size, width, padding=8)
    check_candidates(80, hidden, weight, [float(i % 50) for i in range(batch)])


def test_tokens_past_the_vocabulary_are_not_read() -> None:
    """All logits are negative, so a 0 in place of a missing logit would win."""
    hidden, weight = layer(2, 40, 64)
    hidden, weight[:, 0] = hidden.abs(), -100
    hidden[:, 0] = 4
    weight[33:] = torch.nan
    _, launches = check_candidates(80, hidden, weight, 20.0, vocab_size=33)
    for launch in launches:
        assert not launch.report.reads("weight_ptr")[33:].any()


@every_sm
def test_bans(sm: int) -> None:
    """Ban all tokens, all but one, the best token's whole chunk, or only the best token.

    In the last case, the same chunk has the second best token.
    """
    hidden, weight = layer(5, 80, 64)
    z = hidden.float() @ weight.float().T
    chunk = int(z[2].argmax()) // 16 * 16
    first = int(z[3].argmax())
    weight[first ^ 1] = weight[first]
    banned = torch.full((5, 80), -1)
    banned[0], banned[1, :79] = torch.arange(80), torch.arange(80)[torch.arange(80) != 37]
    banned[2, :16], banned[3, 0] = torch.arange(chunk, chunk + 16), first
    got, _ = check_candidates(sm, hidden, weight, [INF, INF, 30, 30, 30], banned)
    assert got.count[:2].tolist() == [codes.NOTHING_POSSIBLE, 1] and got.token[1, 0] == 37


@pytest.mark.parametrize("sm", [80, 100])
def test_faulty_rows_and_infinite_logits(sm: int) -> None:
    hidden, weight = layer(6, 70, 64)
    hidden[:, 0], weight[:, 0] = 0, 1  # the first number makes logits infinite
    hidden[0, 5] = torch.nan
    hidden[1, 0] = -INF
    hidden[2, 0] = INF
    weight[50, 0] = 0  # times infinity: NaN in rows 1 to 3
    banned = torch.tensor([[-1], [-1], [-1], [50], [-1], [3]])
    hidden[3, 0] = INF
    got, _, arguments = select(sm, hidden, weight, 10.0, banned)
    assert got.count[:4].tolist() == [codes.NAN_GOOD] * 4  # a banned token's NaN is a fault too
    assert got.count.equal(reference.select_candidates_linear(*arguments).count)
    weight[50, 0] = -1  # now the logit is -inf or +inf
    hidden[0, 5] = 0
    got, _ = check_candidates(sm, hidden, weight, [10, 10, 10, INF, 10, 0], banned)
    assert got.token[1, :2].tolist() == [50, -1] and got.count.tolist()[1:4] == [1, 69, 69]
    weight[50, 0] = 1
    got, _ = check_candidates(sm, hidden, weight, 10.0, banned)
    assert got.count[1] == codes.NOTHING_POSSIBLE


def test_maxima_may_be_rounded_differently() -> None:
    """Errors are 1e-5 of the greatest maximum; the slack of a width of 64 allows 3e-5, and a margin of 0 nothing."""
    hidden, weight = layer(4, 80, 64)
    z = hidden.float() @ weight.float().T
    second = z.topk(2).values
    margin = second[:, 0] - second[:, 1]  # the second best is just a candidate
    margin[:2] = 0

    def rounded_differently(*arguments: Any) -> torch.Tensor:
        maxima = torch_maxima(*arguments)
        size = torch.where(maxima.isfinite(), maxima.abs(), 0).amax(1, keepdim=True)
        return maxima + 1e-5 * size * torch.randn(maxima.shape, generator=torch.Generator().manual_seed(3)).sign()

    check_candidates(90, hidden, weight, margin, maxima=rounded_differently)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_real_numbers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    hidden = (2 * torch.randn(3, 96, generator=generator)).to(dtype)
    weight = (0.2 * torch.randn(700, 96, generator=generator)).to(dtype)
    got, _, arguments = select(80, hidden, weight, [2.3, 6.0, 1.0], capacity=256)
    logits = hidden.double() @ weight.double().T
    torch.testing.assert_close(got.max.double(), logits.amax(1), rtol=0, atol=1e-5)
    threshold = logits.amax(1) - arguments[2]
    for row, token in enumerate(got.token):
        token = token[: got.count[row]].long()
        assert (token.diff() > 0).all()
        torch.testing.assert_close(got.logit[row, : len(token)].double(), logits[row, token], rtol=0, atol=1e-5)
        inside = torch.zeros(700, dtype=torch.bool).index_fill(0, token, True)
        assert not ((logits[row] >= threshold[row]) != inside)[(logits[row] - threshold[row]).abs() > 1e-5].any()


def test_reads_of_the_matrix_product() -> None:
    """130 rows are two tiles, one full and one of two rows. Each reads each weight once, 16 bytes per thread."""
    hidden, weight = layer(130, 150, 64)
    with Device(80) as device:
        maxima = triton_linear.chunk_maxima(hidden, weight, 150)
    assert maxima.equal(torch_maxima(hidden, weight, 150))
    (launch,) = device.launches
    assert launch.grid == (2, 2)
    assert (launch.report.reads("weight_ptr") == 2).all() and (launch.report.reads("hidden_ptr") == 2).all()
    assert launch.report.traffic("weight_ptr", width=16).bytes == 2 * weight.numel() * weight.element_size()


def test_settings_are_looked_up_at_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dict(
        TILES={16: (8, 2)}, TILE_TOKENS=64, TILE_BYTES=64, CHUNK=8, SELECT_WARPS=4, SELECT_TOKENS=16, DOT_BYTES=256
    )
    for name, value in settings.items():
        monkeypatch.setattr(triton_linear, name, value)
    _, (maxima, selected) = check_candidates(80, *layer(17, 205, 100), 20.0)
    assert maxima.grid == (2, 4) and ".reqntid 256" in maxima.kernel.ptx
    assert selected.grid == (17,) and ".reqntid 128" in selected.kernel.ptx


@pytest.mark.parametrize("has_fence", sorted({triton_linear.HAS_FENCE, False}))
@pytest.mark.parametrize("sm", [90, 100])
@pytest.mark.parametrize("batch", [16, 64, 128])
def test_matrix_instructions_wait_for_copies_to_shared_memory(
    batch: int, sm: int, has_fence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PTX, the async proxy sees what other instructions copied to shared memory only after a fence."""
    launched = []
    monkeypatch.setattr(triton_linear, "HAS_FENCE", has_fence)
    monkeypatch.setattr(triton_settings, "compute_capability", lambda device: sm // 10)
    hidden, weight = layer(batch, 300, 768, dtype=torch.bfloat16)
    with intercept(lambda function, grid, arguments, options: launched.append((function, arguments, options))):
        triton_linear.chunk_maxima(hidden, weight, 300)
    ((function, arguments, options),) = launched
    options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
    ptx = compile_for(function, arguments, sm, **options).ptx
    matrix_instructions = [name for name in ("wgmma.mma_async", "tcgen05.mma") if name in ptx]
    assert bool(matrix_instructions) == (batch >= 64)
    assert not matrix_instructions or "fence.proxy.async" in ptx
    assert options["num_stages"] == (1 if matrix_instructions and not has_fence else triton_linear.TILES[batch][1])


def test_reads_of_the_selection() -> None:
    """Weights are read twice in the best token's chunk, once in other chunks with candidates, and never elsewhere."""
    hidden, weight = layer(1, 120, 64)
    weight[100] = hidden[0]  # by far the best
    margin = hidden[0].float().square().sum() - (hidden.float() @ weight[:100].float().T).max()
    got, launches = check_candidates(90, hidden, weight, margin)
    wanted = torch.zeros(8, dtype=torch.int64)
    wanted[got.token[0, : got.count[0]] // 16] = 1
    wanted[100 // 16] = 2
    assert wanted.sum() >= 3
    reads = torch.from_numpy(launches[-1].report.reads("weight_ptr"))
    assert (reads == wanted.repeat_interleave(16)[:120, None, None]).all()


@pytest.mark.parametrize(("sm", "dtype"), [*((80, dtype) for dtype in DTYPES), (90, DTYPES[0]), (100, DTYPES[0])])
def test_gather_logits(sm: int, dtype: torch.dtype) -> None:
    """Lists of 40 tokens need two and a half programs; counts of all kinds; nothing past the end is read."""
    hidden, weight = layer(6, 90, 100, dtype, padding=3)
    count = torch.tensor([0, 3, 40, 45, codes.NAN_GOOD, 17], dtype=torch.int32)
    token = torch.randint(0, 90, (6, 40), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    token[torch.arange(40) >= count.unsqueeze(1)] = 1 << 30
    with Device(sm) as device:
        logit = triton_linear.gather_logits(hidden, weight, token, count)
    assert logit.equal(reference.gather_logits(hidden, weight, token, count))
    assert device.launches[0].report.traffic("weight_ptr").bytes == (3 + 40 + 40 + 17) * 100 * weight.element_size()


def test_empty_batches() -> None:
    hidden, weight = layer(0, 9, 8)
    none = torch.empty(0, 7, dtype=torch.int32)
    with Device(80) as device:
        assert triton_linear.select_candidates_linear(hidden, weight, torch.empty(0), None, 9, 7).token.shape == (0, 7)
        assert triton_linear.gather_logits(hidden, weight, none, torch.empty(0, dtype=torch.int32)).shape == (0, 7)
    assert not device.launches


def _last(ptx: str, opcode: str) -> int:
    return len(find(ptx, opcode)) - 1


def _without(ptx: str, opcode: str) -> str:
    return "".join(line for line in ptx.splitlines(True) if opcode not in line)


FAULTS = [
    (80, lambda ptx: remove(ptx, "st.global")),  # the chunk maxima
    (80, lambda ptx: remove(ptx, "mma.sync")),
    (80, lambda ptx: remove(ptx, "cp.async.wait_group")),
    (80, lambda ptx: unguard(ptx, "st.global")),  # the mask of the rows
    (90, lambda ptx: remove(ptx, "st.global", _last(ptx, "st.global"))),  # the row's maximum
    (90, lambda ptx: _without(ptx, "cp.async.wait_group")),
    (90, lambda ptx: shift_address(ptx, "cp.async.cg", 16)),
    (90, lambda ptx: substitute(ptx, "setp.ge.f32", ".ge.", ".gt.")),  # the threshold
    (90, lambda ptx: _without(ptx, "bar.sync")),
]


@pytest.mark.parametrize(("sm", "fault"), FAULTS)
def test_injected_faults_are_caught(sm: int, fault: Callable[[str], str]) -> None:
    """Faults for sm_80 are in the first launch; those for sm_90, where torch computes the maxima, in the second."""
    hidden, weight = layer(3, 80, 64)

    def mutate(ptx: str) -> str:
        return ptx if sm == 80 and "mma.sync" not in ptx else fault(ptx)

    with pytest.raises((errors.Fault, AssertionError)):
        check_candidates(sm, hidden, weight, 0.0, mutate=mutate)


# ---------------------------------------------------------------------- compiled only, since it cannot be executed

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin"
TARGETS = {80: ("ptxas", "sm_80"), 90: ("ptxas-blackwell", "sm_90a"), 100: ("ptxas-blackwell", "sm_100a")}


def launches(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Return (function, signature, constants, divisible, options) of every launch of both ops."""
    noted: list[tuple[Any, ...]] = []
    hidden, weight = torch.empty(128, 768, dtype=dtype), torch.empty(32_000, 768, dtype=dtype)
    with intercept(
        lambda function, grid, given, options: noted.append((function, *specialise(function, given), options))
    ):
        got = triton_linear.select_candidates_linear(hidden, weight, torch.empty(128), None, 32_000, 1024)
        triton_linear.gather_logits(hidden, weight, got.token, got.count)
    return noted


def compiled(
    target: GPUTarget, function: Any, signature: dict, constants: dict, divisible: list[str], options: dict[str, Any]
) -> Any:
    """Return Triton's compiled kernel of a launch."""
    options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
    return compile_kernel(function, signature, constants, target, divisible_by_16=divisible, **options)


@every_sm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_spills(sm: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """The largest tiles with all sizes multiples of 16: 16-byte loads, and at most 99 KiB, which smaller GPUs have."""
    tool, architecture = TARGETS[sm]
    for launch in launches(dtype):
        kernel = compiled(GPUTarget("cuda", sm, 32), *launch)
        (tmp_path / "kernel.ptx").write_text(kernel.asm["ptx"])
        command = [PTXAS / tool, "-v", f"-arch={architecture}", "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(r"0 bytes spill stores, 0 bytes spill loads", done.stderr), (launch[0], done.stderr)
        assert kernel.metadata.shared <= 99 * 1024
        assert "cp.async.cg.shared.global" in kernel.asm["ptx"]


def test_it_compiles_for_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6")
    for launch in launches(torch.bfloat16):
        kernel = compiled(GPUTarget("hip", "gfx942", 64), *launch)
        assert kernel.metadata.shared <= 64 * 1024
        assert re.search(r"\.vgpr_spill_count:\s*0\b", kernel.asm["amdgcn"])


@needs_interpreter
def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import linear as triton_linear

def torch_maxima(hidden, weight, vocab_size):
    z = torch.nn.functional.pad(hidden.float() @ weight.float().T, (0, -vocab_size % 128), value=-torch.inf)
    return z.unflatten(1, (-1, 16)).amax(2)

generator = torch.Generator().manual_seed(1)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    if dtype == torch.bfloat16:  # this interpreter's tl.dot reads the bits as integers
        triton_linear.chunk_maxima = torch_maxima
    for vocab_size, width in ((5, 3), (200, 300)):
        hidden, weight = (torch.randint(-4, 5, (n, width), generator=generator).to(dtype) for n in (3, vocab_size))
        hidden[2, 1] = torch.nan
        banned = torch.tensor([[0, -1], [3, 2], [-1, -1]])
        for rest in ((banned, vocab_size, 7), (None, vocab_size, 400)):
            rest = (torch.tensor([20.0, torch.inf, 1.0]), *rest)
            got = triton_linear.select_candidates_linear(hidden, weight, *rest)
            for mine, wanted in zip(got, reference.select_candidates_linear(hidden, weight, *rest)):
                assert mine.nan_to_num(12345).equal(wanted.nan_to_num(12345)), (dtype, vocab_size, mine, wanted)
            logit = triton_linear.gather_logits(hidden, weight, got.token, got.count)
            assert logit.equal(reference.gather_logits(hidden, weight, got.token, got.count))
            assert logit.equal(got.logit)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
