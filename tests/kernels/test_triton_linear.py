"""select_candidates_linear and gather_logits without a GPU: their compiled PTX is executed on CPU tensors.

The PTX interpreter knows sm_80's matrix instructions only, so that for sm_90 and sm_100 the first launch of
select_candidates_linear is compiled but not run, and the second is given chunk maxima from torch. Where hidden and
weight hold small whole numbers every sum is exact, in any order, and nothing is allowed to differ; where they do
not, a token within 1e-5 of the threshold may be on either side.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdgen_kernels import codes, reference

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402

from cdgen_kernels.triton import linear as triton_linear  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tools.ptx_sim import Device, errors, intercept  # noqa: E402
from tools.ptx_sim.compile import compile_for, compile_kernel, specialise  # noqa: E402
from tools.ptx_sim.faults import find, remove, shift_address, substitute, unguard  # noqa: E402
from tools.ptx_sim.versions import needs_interpreter  # noqa: E402

every_sm = pytest.mark.parametrize("sm", [80, 90, 100])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
INF = torch.inf


def whole_numbers(rows, width, dtype, padding, seed):
    """[rows, width] of -4 to 4, in the middle of NaN, so that reading beside it shows, and in rows `padding` apart."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((rows + 2, width + padding), torch.nan, dtype=dtype)
    wide[1:-1, :width] = torch.randint(-4, 5, (rows, width), generator=generator).to(dtype)
    return wide[1:-1, :width]


def layer(batch, vocab_size, width, dtype=torch.bfloat16, padding=16):
    """(hidden, weight); with padding=16 loads of 16 bytes are possible where the width allows."""
    return whole_numbers(batch, width, dtype, padding, seed=0), whole_numbers(vocab_size, width, dtype, padding, seed=1)


def torch_maxima(hidden, weight, vocab_size):
    z = hidden.float() @ weight[:vocab_size].float().T
    tile = triton_linear.TILE_TOKENS
    z = torch.nn.functional.pad(z, (0, -vocab_size % tile), value=-INF)
    return z.unflatten(1, (-1, triton_linear.CHUNK)).amax(2)


def run_head(sm, hidden, weight, margin, banned=None, capacity=64, maxima=None, mutate=None, vocab_size=None):
    """(candidates, the launches)"""
    margin = torch.as_tensor(margin, dtype=torch.float32).expand(hidden.shape[0]).contiguous()
    banned = None if banned is None else torch.as_tensor(banned)
    arguments = (hidden, weight, margin, banned, vocab_size or weight.shape[0], capacity)
    with pytest.MonkeyPatch.context() as patch:
        if maxima is not None or sm != 80:
            patch.setattr(triton_linear, "chunk_maxima", maxima or torch_maxima)
        with Device(sm, mutate) as device:
            return triton_linear.select_candidates_linear(*arguments), device.launches, arguments


def check_head(*problem, **how):
    got, launches, arguments = run_head(*problem, **how)
    for name, mine, wanted in zip(got._fields, got, reference.select_candidates_linear(*arguments), strict=True):
        assert torch.equal(mine.nan_to_num(12345), wanted.nan_to_num(12345)), (name, mine, wanted)
    return got, launches


@pytest.mark.parametrize(("sm", "dtype"), [*((80, dtype) for dtype in DTYPES), (90, DTYPES[0]), (100, DTYPES[0])])
def test_exact_head_of_whole_numbers(sm, dtype):
    """Nothing is a multiple of anything: 205 = 128 + 4 x 16 + 13 tokens; 100 = 64 + 36 numbers a row, of which the next
    begins 206 or 412 bytes further; 4 of a tile's 16 rows; a list of 40, and longer heads."""
    hidden, weight = layer(4, 205, 100, dtype, padding=3)
    best = (hidden.float() @ weight.float().T).topk(3).indices
    banned = torch.tensor([[-1, 7, 204], [best[1, 0], best[1, 0], 400], *best[2:].tolist()])
    got, _ = check_head(sm, hidden, weight, [2.5, 0, INF, 60], banned, capacity=40)
    assert (got.count > 40).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("batch", "vocab_size", "width"),
    [
        (1, 1, 1),  # the smallest
        (33, 129, 72),  # the tile of 64 rows; one token in the second tile; vectors of 16 bytes, half a step over
        (1, 500, 520),  # two steps and a bit of the dot product
    ],
)
def test_awkward_sizes(batch, vocab_size, width):
    hidden, weight = layer(batch, vocab_size, width, padding=8)
    check_head(80, hidden, weight, [float(i % 50) for i in range(batch)])


def test_tokens_behind_the_vocabulary_are_not_read():
    """All logits are negative, so that a 0 in the place of a missing one would win."""
    hidden, weight = layer(2, 40, 64)
    hidden, weight[:, 0] = hidden.abs(), -100
    hidden[:, 0] = 4
    weight[33:] = torch.nan
    _, launches = check_head(80, hidden, weight, 20.0, vocab_size=33)
    for launch in launches:
        assert not launch.report.reads("weight")[33:].any()


@every_sm
def test_bans(sm):
    """All tokens; all but one; whole chunks, the best one's too; the best, where the second best shares its chunk."""
    hidden, weight = layer(5, 80, 64)
    z = hidden.float() @ weight.float().T
    chunk = int(z[2].argmax()) // 16 * 16
    first = int(z[3].argmax())
    weight[first ^ 1] = weight[first]
    banned = torch.full((5, 80), -1)
    banned[0], banned[1, :79] = torch.arange(80), torch.arange(80)[torch.arange(80) != 37]
    banned[2, :16], banned[3, 0] = torch.arange(chunk, chunk + 16), first
    got, _ = check_head(sm, hidden, weight, [INF, INF, 30, 30, 30], banned)
    assert got.count[:2].tolist() == [codes.NOTHING_POSSIBLE, 1] and got.token[1, 0] == 37


@pytest.mark.parametrize("sm", [80, 100])
def test_rows_without_an_answer_and_infinite_logits(sm):
    hidden, weight = layer(6, 70, 64)
    hidden[:, 0], weight[:, 0] = 0, 1  # the first number decides: infinite logits
    hidden[0, 5] = torch.nan
    hidden[1, 0] = -INF
    hidden[2, 0] = INF
    weight[50, 0] = 0  # times an infinity: NaN, in rows 1 to 3
    banned = torch.tensor([[-1], [-1], [-1], [50], [-1], [3]])
    hidden[3, 0] = INF
    got, _, arguments = run_head(sm, hidden, weight, 10.0, banned)
    assert got.count[:4].tolist() == [codes.NAN_GOOD] * 4  # a banned token's NaN is a fault too
    assert got.count.equal(reference.select_candidates_linear(*arguments).count)
    weight[50, 0] = -1  # and now -inf there, or +inf
    hidden[0, 5] = 0
    got, _ = check_head(sm, hidden, weight, [10, 10, 10, INF, 10, 0], banned)
    assert got.token[1, :2].tolist() == [50, -1] and got.count.tolist()[1:4] == [1, 69, 69]
    weight[50, 0] = 1
    got, _ = check_head(sm, hidden, weight, 10.0, banned)
    assert got.count[1] == codes.NOTHING_POSSIBLE


def test_maxima_may_be_off_by_the_rounding_of_another_sum():
    """By 1e-5 of the greatest here, where a width of 64 allows 3e-5. A margin of 0 leaves no room for less."""
    hidden, weight = layer(4, 80, 64)
    z = hidden.float() @ weight.float().T
    second = z.topk(2).values
    margin = second[:, 0] - second[:, 1]  # the second best is in the head, and just so
    margin[:2] = 0

    def rounded_otherwise(*arguments):
        maxima = torch_maxima(*arguments)
        size = torch.where(maxima.isfinite(), maxima.abs(), 0).amax(1, keepdim=True)
        return maxima + 1e-5 * size * torch.randn(maxima.shape, generator=torch.Generator().manual_seed(3)).sign()

    check_head(90, hidden, weight, margin, maxima=rounded_otherwise)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_real_numbers(dtype):
    generator = torch.Generator().manual_seed(5)
    hidden = (2 * torch.randn(3, 96, generator=generator)).to(dtype)
    weight = (0.2 * torch.randn(700, 96, generator=generator)).to(dtype)
    got, _, arguments = run_head(80, hidden, weight, [2.3, 6.0, 1.0], capacity=256)
    logits = hidden.double() @ weight.double().T
    torch.testing.assert_close(got.max.double(), logits.amax(1), rtol=0, atol=1e-5)
    threshold = logits.amax(1) - arguments[2]
    for row, token in enumerate(got.token):
        token = token[: got.count[row]].long()
        assert (token.diff() > 0).all()
        torch.testing.assert_close(got.logit[row, : len(token)].double(), logits[row, token], rtol=0, atol=1e-5)
        inside = torch.zeros(700, dtype=torch.bool).index_fill(0, token, True)
        assert not ((logits[row] >= threshold[row]) != inside)[(logits[row] - threshold[row]).abs() > 1e-5].any()


def test_what_the_matrix_product_reads():
    """130 rows are two tiles, a whole one and two rows: each reads each weight once, 16 bytes a thread."""
    hidden, weight = layer(130, 150, 64)
    with Device(80) as device:
        maxima = triton_linear.chunk_maxima(hidden, weight, 150)
    assert maxima.equal(torch_maxima(hidden, weight, 150))
    (launch,) = device.launches
    assert launch.grid == (2, 2)
    assert (launch.report.reads("weight") == 2).all() and (launch.report.reads("hidden") == 2).all()
    assert launch.report.traffic("weight", width=16).bytes == 2 * weight.numel() * weight.element_size()


def test_settings_are_looked_up_at_each_launch(monkeypatch):
    settings = dict(
        TILES={16: (8, 2)}, TILE_TOKENS=64, TILE_BYTES=64, CHUNK=8, HEAD_WARPS=4, HEAD_TOKENS=16, DOT_BYTES=256
    )
    for name, value in settings.items():
        monkeypatch.setattr(triton_linear, name, value)
    _, (maxima, head) = check_head(80, *layer(17, 205, 100), 20.0)
    assert maxima.grid == (2, 4) and ".reqntid 256" in maxima.kernel.ptx
    assert head.grid == (17,) and ".reqntid 128" in head.kernel.ptx


@pytest.mark.parametrize("has_fence", sorted({triton_linear.HAS_FENCE, False}))
@pytest.mark.parametrize("sm", [90, 100])
@pytest.mark.parametrize("batch", [16, 64, 128])
def test_matrix_instructions_wait_for_copies_to_shared_memory(batch, sm, has_fence, monkeypatch):
    """In PTX the async proxy sees what other instructions copied to shared memory only behind a fence."""
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


def test_what_the_head_reads():
    """The weights of the best token's chunk twice, of the other chunks of the head once, of the rest never."""
    hidden, weight = layer(1, 120, 64)
    weight[100] = hidden[0]  # by far the best
    margin = hidden[0].float().square().sum() - (hidden.float() @ weight[:100].float().T).max()
    got, launches = check_head(90, hidden, weight, margin)
    wanted = torch.zeros(8, dtype=torch.int64)
    wanted[got.token[0, : got.count[0]] // 16] = 1
    wanted[100 // 16] = 2
    assert wanted.sum() >= 3
    reads = torch.from_numpy(launches[-1].report.reads("weight"))
    assert (reads == wanted.repeat_interleave(16)[:120, None, None]).all()


@pytest.mark.parametrize(("sm", "dtype"), [*((80, dtype) for dtype in DTYPES), (90, DTYPES[0]), (100, DTYPES[0])])
def test_gather_logits(sm, dtype):
    """Lists of 40, two and a half programs' work; counts of all kinds; nothing past the end is read."""
    hidden, weight = layer(6, 90, 100, dtype, padding=3)
    count = torch.tensor([0, 3, 40, 45, codes.NAN_GOOD, 17], dtype=torch.int32)
    token = torch.randint(0, 90, (6, 40), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    token[torch.arange(40) >= count.unsqueeze(1)] = 1 << 30
    with Device(sm) as device:
        score = triton_linear.gather_logits(hidden, weight, token, count)
    assert score.equal(reference.gather_logits(hidden, weight, token, count))
    assert device.launches[0].report.traffic("weight").bytes == (3 + 40 + 40 + 17) * 100 * weight.element_size()


def test_empty_batches():
    hidden, weight = layer(0, 9, 8)
    none = torch.empty(0, 7, dtype=torch.int32)
    with Device(80) as device:
        assert triton_linear.select_candidates_linear(hidden, weight, torch.empty(0), None, 9, 7).token.shape == (0, 7)
        assert triton_linear.gather_logits(hidden, weight, none, torch.empty(0, dtype=torch.int32)).shape == (0, 7)
    assert not device.launches


def _last(ptx, opcode):
    return len(find(ptx, opcode)) - 1


def _without(ptx, opcode):
    return "".join(line for line in ptx.splitlines(True) if opcode not in line)


FAULTS = [
    (80, lambda ptx: remove(ptx, "st.global")),  # of the chunk maxima
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
def test_injected_faults_are_caught(sm, fault):
    """For sm_80 in the first launch, for sm_90, where torch makes the maxima, in the second."""
    hidden, weight = layer(3, 80, 64)

    def mutate(ptx):
        return ptx if sm == 80 and "mma.sync" not in ptx else fault(ptx)

    with pytest.raises((errors.Fault, AssertionError)):
        check_head(sm, hidden, weight, 0.0, mutate=mutate)


# ---- compiled, for what cannot be executed

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin"
TARGETS = {80: ("ptxas", "sm_80"), 90: ("ptxas-blackwell", "sm_90a"), 100: ("ptxas-blackwell", "sm_100a")}


def launches(dtype):
    """(function, signature, constants, divisible, options) of every launch of both ops."""
    noted = []
    hidden, weight = torch.empty(128, 768, dtype=dtype), torch.empty(32_000, 768, dtype=dtype)
    with intercept(
        lambda function, grid, given, options: noted.append((function, *specialise(function, given), options))
    ):
        got = triton_linear.select_candidates_linear(hidden, weight, torch.empty(128), None, 32_000, 1024)
        triton_linear.gather_logits(hidden, weight, got.token, got.count)
    return noted


def compiled(target, function, signature, constants, divisible, options):
    options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
    return compile_kernel(function, signature, constants, target, divisible_by_16=divisible, **options)


@every_sm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_spills(sm, dtype, tmp_path):
    """The largest tiles, all sizes multiples of 16; loads of 16 bytes; and 99 KiB, which is what smaller GPUs have."""
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


def test_it_compiles_for_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6")
    for launch in launches(torch.bfloat16):
        kernel = compiled(GPUTarget("hip", "gfx942", 64), *launch)
        assert kernel.metadata.shared <= 64 * 1024
        assert re.search(r"\.vgpr_spill_count:\s*0\b", kernel.asm["amdgcn"])


@needs_interpreter
def test_source_in_tritons_interpreter():
    """Its own process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import linear as triton_linear

def torch_maxima(hidden, weight, vocab_size):
    z = torch.nn.functional.pad(hidden.float() @ weight.float().T, (0, -vocab_size % 128), value=-torch.inf)
    return z.unflatten(1, (-1, 16)).amax(2)

generator = torch.Generator().manual_seed(1)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    if dtype == torch.bfloat16:  # whose bits this interpreter's tl.dot takes for whole numbers
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
            score = triton_linear.gather_logits(hidden, weight, got.token, got.count)
            assert score.equal(reference.gather_logits(hidden, weight, got.token, got.count))
            assert score.equal(got.logit)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
