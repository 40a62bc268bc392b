"""paged_attention of a decode step over shared prefixes, without a GPU: its two launches' PTX is executed.

Triton's interpreter runs the source. As in test_triton_attention, all that a token must not read is NaN. The PTX
interpreter has the matrix instructions of sm_90 and sm_100 only for blocks of fewer than 64 queries.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import attention as triton_attention  # noqa: E402
from cdgen_kernels.triton import block_attention, shared_attention  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tests.helpers.attention import make_problem, run  # noqa: E402
from tests.helpers.paged import in_fp8, make_paged, share  # noqa: E402
from tools.ptx_sim import Device, errors, intercept  # noqa: E402
from tools.ptx_sim.compile import compile_for  # noqa: E402
from tools.ptx_sim.device import Launch  # noqa: E402
from tools.ptx_sim.faults import remove, shift_address  # noqa: E402
from tools.ptx_sim.versions import bound, needs_interpreter  # noqa: E402

pytestmark = pytest.mark.ptx

Group = tuple[Sequence[int], int]  # cache rows that share their first pages, and the number of these pages
# Two groups that take turns, a group of one, and sequences without a group.
LENGTHS = [70, 37, 66, 100, 33, 40, 81, 16, 99, 68]
GROUPS: list[Group] = [((0, 2, 6, 9), 4), ((1, 4, 5), 2), ((8,), 3)]


def make_shared(
    lengths: list[int], groups: list[Group], *sizes: Any, page: int = 16, **options: Any
) -> tuple[list[Any], torch.Tensor]:
    """Return :func:`make_problem` with pages that groups of sequences share, and the shared lengths."""
    problem = make_problem(lengths, *sizes, page=page, **options)
    shared_lengths = torch.zeros(len(lengths), dtype=torch.int32)
    for rows, pages in groups:
        share(problem[3], problem[1:3], rows, pages)
        shared_lengths[list(rows)] = pages * page
    return problem, shared_lengths


def check(problem: list[Any], shared_lengths: torch.Tensor, sm: int = 90, **options: Any) -> tuple[Launch, Launch]:
    """Compare with the reference, and return the two launches."""
    first, second = run(problem, sm, shared_lengths=shared_lengths, **options)
    assert (first.kernel.name, second.kernel.name) == ("shared_attention_kernel", "paged_attention_kernel")
    return first, second


def recorded(*arguments: Any) -> list[tuple[triton.JITFunction, dict[str, Any], dict[str, Any]]]:
    """Call paged_attention and return (function, arguments by name, options) of each launch. Nothing is run."""
    launched: list[Any] = []
    with intercept(lambda function, grid, given, options: launched.append((function, given, options))):
        triton_attention.paged_attention(*arguments)
    return launched


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make room on the device for so few programs that none divide the keys of a token."""
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 0)


@pytest.fixture(params=["alone", "divided"])
def programs(request: pytest.FixtureRequest) -> None:
    """Make room on the device for one program per block of tokens and one per token, or for several."""
    if request.param == "alone":
        request.getfixturevalue("alone")


@pytest.mark.parametrize(("sm", "dtype"), [(80, torch.bfloat16), (90, torch.float16), (100, torch.bfloat16)])
def test_groups(sm: int, dtype: torch.dtype, programs: None) -> None:
    check(*make_shared(LENGTHS, GROUPS, 1, 1, 64, dtype), sm)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page"),
    [
        (2, 1, 64, 16),
        (6, 2, 80, 8),  # groups of three heads; a head that is no power of two
        (4, 1, 128, 16),
        (8, 1, 64, 32),  # blocks of 64 queries
        (24, 1, 64, 16),  # more heads than a program has
        (1, 1, 16, 3),  # pages that do not divide a tile; the smallest head that matrix units take
    ],
)
def test_groups_and_sizes_of_heads(heads: int, kv_heads: int, dim: int, page: int) -> None:
    """Groups of sequences are in several blocks of tokens."""
    lengths = [40, 70, 66, 10, 71, 68, 45, 67, 69, 43]
    problem, shared_lengths = make_shared(
        lengths, [((1, 2, 4, 5, 7, 8), 64 // page), ((0, 6, 9), 32 // page)], heads, kv_heads, dim, page=page
    )
    first, _ = check(problem, shared_lengths, 80)
    assert first.grid[:2] == ((1 if heads == 1 else 2), kv_heads * (2 if heads == 24 else 1))


def test_unused_tokens_and_any_order(programs: None) -> None:
    """Whole blocks are unused, and two tokens of a sequence are in one batch, one of them inside the prefix."""
    tokens = [*[(-1, 0)] * 17, (3, 99), (0, 69), (-1, 7), (6, 80), (1, 36), (0, 63), (0, 64), (0, 30), (-9, -5)]
    problem, shared_lengths = make_shared(LENGTHS, GROUPS, 1, 1, 64, tokens=tokens)
    _, second = check(problem, shared_lengths)
    assert second.arguments["out_ptr"][problem[4] < 0].eq(0).all()


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("window", [1, 20, 40, 70])
def test_windows(window: int, heads: int, programs: None) -> None:
    """Windows begin inside of prefixes, behind them, or before. Pages before all windows are not read."""
    problem, shared_lengths = make_shared(LENGTHS, GROUPS, heads, 1, 64, window=window)
    for row in (3, 7, 8):  # the other sequences may need the pages
        problem[3][row, 1 : max(LENGTHS[row] - window, 0) // 16] = -1  # the first page identifies the group
    check(problem, shared_lengths, 80)


@pytest.mark.parametrize(("heads", "dtype", "sm"), [(1, torch.bfloat16, 90), (4, torch.float16, 89)])
def test_fp8_pages(heads: int, dtype: torch.dtype, sm: int) -> None:
    paged = make_paged(LENGTHS, [(row, length - 1) for row, length in enumerate(LENGTHS)], heads, 1, 64, 16, dtype)
    shared_lengths = torch.zeros(len(LENGTHS), dtype=torch.int32)
    for rows, pages in GROUPS:
        share(paged.page_table, (paged.keys, paged.values), rows, pages)
        shared_lengths[list(rows)] = pages * 16
    paged, scales = in_fp8(paged)
    noise = (0.0, torch.tensor([7]), torch.arange(len(LENGTHS)), 3)
    check([*paged, 0.125, 40, *noise], shared_lengths, sm, **scales)
    first, _ = check([*paged, 0.125, 0, *noise], shared_lengths, sm, **scales)
    assert (first.report.reads("key_scales_ptr") > 0).sum() == sum(pages * 16 * 2 for _, pages in GROUPS)


def test_what_matrix_units_cannot_compute_ignores_shared_lengths() -> None:
    for options in ({"dropout": 0.3}, {"dtype": torch.float32}, {"cache_dtype": torch.float32}, {"dim": 8}, {}):
        problem, shared_lengths = make_shared([40, 35], [((0, 1), 2)], 1, 1, **options)
        launched = recorded(*problem, not options, shared_lengths)  # the last one is a prefill
        assert len(launched) == 1 and "SHARED" not in {name for name, value in launched[0][1].items() if value is True}


def test_a_faulty_group_leaves_the_others_alone(alone: None) -> None:
    problem, shared_lengths = make_shared(LENGTHS, GROUPS, 1, 1, 64)
    problem[1][problem[3][1, 0].long(), 0, 3] = torch.nan
    problem[2][problem[3][8, 0].long(), 0, 3] = torch.nan
    with Device(80) as device:
        out = triton_attention.paged_attention(*problem, False, shared_lengths)
    assert len(device.launches) == 2
    assert out.isnan().any(2).any(1).nonzero().flatten().tolist() == [1, 4, 5, 8]


def test_a_key_that_takes_all_of_the_weight(programs: None) -> None:
    """Wherever the key is, in the prefix or behind it, the result is its value."""
    problem, shared_lengths = make_shared([230, 210], [((0, 1), 12)], 1, 1, 64)
    problem[0].copy_(problem[0][0, 0].sign())
    keys, values, table = problem[1:4]
    for place in (0, 63, 64, 191, 192, 209):
        there = table[0, place // 16].long(), slice(None), place % 16
        before = keys[there].clone()
        keys[there] = 30 * problem[0][0, :1]
        assert (check(problem, shared_lengths)[1].arguments["out_ptr"][0] == values[there]).all()
        keys[there] = before


@pytest.mark.parametrize(("heads", "dim", "most"), [(1, 64, 1 / 3.3), (4, 128, 1 / 2.45)])
def test_reads_and_instructions(heads: int, dim: int, most: float, alone: None) -> None:
    """Eight continuations of 96 tokens read a prompt of 512 once, which leaves 1 / 3.8 of the reads."""
    problem, shared_lengths = make_shared([608] * 8, [(range(8), 32)], heads, 1, dim)
    (whole,) = run(problem, 80)
    parts = check(problem, shared_lengths, 80)
    wanted = torch.zeros(problem[1].shape[0], dtype=torch.int64)
    wanted[problem[3][:, :38].long()] = 1
    for name in ("keys_ptr", "values_ptr"):
        reads = sum(torch.from_numpy(launch.report.reads(name)) for launch in parts)
        assert (reads == wanted[:, None, None, None, None]).all()
        traffic = [launch.report.traffic(name) for launch in (whole, *parts)]
        assert all(x.bytes_per_lane == 16 and x.sectors * 32 == x.bytes for x in traffic)
        assert traffic[0].bytes == 8 * 608 * dim * 2 and traffic[1].bytes + traffic[2].bytes == (512 + 768) * dim * 2
    instructions = [launch.report.thread_instructions for launch in (whole, *parts)]
    print(f"\n{heads} heads of {dim}: thread-instructions of one launch and of the two", instructions)
    limit = bound(f"instructions over shared prefixes, relative to one launch, {heads} heads of {dim}", most)
    assert sum(instructions[1:]) / instructions[0] <= limit


def test_programs_that_divide_a_prefix_read_it_once() -> None:
    problem, shared_lengths = make_shared([300] * 4, [(range(4), 16)], 1, 1, 64)
    first, _ = check(problem, shared_lengths, 80)
    assert first.grid == (1, 1, 5)  # the table has room for 320 keys
    assert (torch.from_numpy(first.report.reads("keys_ptr"))[problem[3][0, :16].long()] == 1).all()
    assert first.report.traffic("keys_ptr").bytes == 256 * 64 * 2


@pytest.mark.parametrize("has_fence", sorted({triton_settings.HAS_FENCE, False}))
def test_matrix_instructions_wait_for_copies_to_shared_memory(has_fence: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PTX, the async proxy sees what other instructions copied to shared memory only after a fence."""
    monkeypatch.setattr(block_attention, "HAS_FENCE", has_fence)
    monkeypatch.setattr(triton_settings, "compute_capability", lambda device: 9)
    problem, shared_lengths = make_shared([40, 35], [((0, 1), 2)], 8, 1, 128)
    function, arguments, options = recorded(*problem, False, shared_lengths)[0]
    options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
    ptx = compile_for(function, arguments, 90, **options).ptx
    assert "wgmma.mma_async" in ptx and "fence.proxy.async" in ptx
    assert options["num_stages"] == (block_attention.STAGES if has_fence else 1)


def test_settings_are_looked_up_at_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_attention, "TOKENS", 4)
    monkeypatch.setattr(shared_attention, "LEAST_ROWS", 32)
    monkeypatch.setattr(block_attention, "TILE", 32)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 3)
    first, _ = check(*make_shared(LENGTHS, GROUPS, 8, 1, 64))
    assert first.grid == (3, 1, 2)  # three blocks of four tokens; room for six programs


FAULTS: dict[str, Callable[[str], str]] = {
    "maxima are not stored": lambda ptx: remove(ptx, "st.global", 0),
    "sums are not stored": lambda ptx: remove(ptx, "st.global", 2),
    "a product is left out": lambda ptx: remove(ptx, "mma.sync", 0),
    "keys past the prefix are not masked": lambda ptx: ptx.replace("setp.le.s32", "setp.ne.s32"),
    "keys 16 bytes further": lambda ptx: shift_address(ptx, "cp.async.cg", 16),
    "copies are not waited for": lambda ptx: "".join(x for x in ptx.splitlines(True) if "cp.async.wait" not in x),
    "no barriers": lambda ptx: "".join(x for x in ptx.splitlines(True) if "bar.sync" not in x),
}
SECOND_FAULTS: dict[str, Callable[[str], str]] = {
    "a part is not stored": lambda ptx: remove(ptx, "st.global", 1),
    "no barriers": lambda ptx: "".join(x for x in ptx.splitlines(True) if "bar.sync" not in x),
}


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [("shared_attention", fault) for fault in FAULTS] + [("paged_attention", fault) for fault in SECOND_FAULTS],
)
def test_injected_faults_are_caught(kernel: str, fault: str, alone: None) -> None:
    edit = (FAULTS if kernel == "shared_attention" else SECOND_FAULTS)[fault]
    mutations: list[str] = []

    def mutate(ptx: str) -> str:
        if f".entry {kernel}_kernel" not in ptx:
            return ptx
        mutations.append(edit(ptx))
        assert mutations[0] != ptx
        return mutations[0]

    with pytest.raises((errors.Fault, AssertionError)):
        check(*make_shared(LENGTHS, GROUPS, 1, 1, 64), 80, mutate=mutate)
    assert mutations


@needs_interpreter
def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import attention as triton_attention
from cdgen_kernels.triton import settings
from tests.helpers.paged import in_fp8, make_paged, share
tokens = [(0, 69), (1, 40), (-1, 0), (2, 65), (3, 20), (0, 30)]
shared_lengths = torch.tensor([48, 24, 48, 0]).int()
for heads, room, fp8, window in ((2, 0, False, 0), (2, 132, True, 50), (6, 132, False, 30), (48, 0, True, 0)):
    settings.multiprocessors = lambda device: room
    paged, scales = make_paged([70, 41, 66, 21], tokens, heads, 2, 20, 6, torch.float16), {}
    share(paged.page_table, paged[1:3], (0, 2), 8)
    if fp8:
        paged, scales = in_fp8(paged)
    rest = (0.2, window, 0.0, torch.tensor([7]), torch.arange(6), 3, False, shared_lengths)
    wanted, got = (m.paged_attention(*paged, *rest, **scales) for m in (reference, triton_attention))
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)
    assert wanted.any()
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
