"""paged_attention of a prefill without a GPU: its PTX for sm_80 is executed. test_triton_attention runs its source.

The PTX interpreter only supports the matrix instructions of sm_80. For sm_90 and sm_100, the kernel is only compiled.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import attention as triton_attention  # noqa: E402
from cdgen_kernels.triton import block_attention, prefill_attention  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tests.helpers.attention import check, make_problem  # noqa: E402
from tools.ptx_sim import Device, errors, intercept  # noqa: E402
from tools.ptx_sim.compile import compile_for  # noqa: E402
from tools.ptx_sim.faults import find, remove, shift_address, unguard  # noqa: E402
from tools.ptx_sim.versions import bound  # noqa: E402

pytestmark = pytest.mark.ptx


def prompts(*lengths: int, first: int = 0) -> list[tuple[int, int]]:
    """Return (cache row, position) of all tokens from position `first` on."""
    return [(row, position) for row, length in enumerate(lengths) for position in range(first, length)]


@pytest.fixture
def whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make room on the device for so few programs that they compute whole blocks."""
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 0)


@pytest.fixture(params=["whole", "small"])
def blocks(request: pytest.FixtureRequest) -> None:
    """Make room on the device for whole blocks, or for more programs of smaller blocks."""
    if request.param == "whole":
        request.getfixturevalue("whole_blocks")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page", "dtype"),
    [
        (1, 1, 64, 16, torch.bfloat16),
        (3, 1, 64, 16, torch.float16),  # a group that is no power of two
        (8, 2, 128, 16, torch.bfloat16),
        (20, 1, 16, 3, torch.bfloat16),  # more heads than a program has; more pages per tile
        (1, 1, 80, 64, torch.bfloat16),  # a head that is no power of two
        (1, 1, 256, 16, torch.bfloat16),  # smaller tiles
    ],
)
def test_prompts(heads: int, kv_heads: int, dim: int, page: int, dtype: torch.dtype, blocks: None) -> None:
    """Several sequences in a block and several blocks in a sequence; one key; a tile of 64, and one key more."""
    lengths = [90, 1, 64, 65] if dim == 64 else [30, 1, 40]
    problem = make_problem(lengths, heads, kv_heads, dim, dtype, page=page, tokens=prompts(*lengths))
    assert check(problem, 80, prefill=True).kernel.name == "prefill_attention_kernel"


def test_tokens_in_any_order(blocks: None) -> None:
    """Later parts of prompts, sequences that take turns, and unused tokens, whose results are zeros."""
    tokens = [(1, 30), (0, 0), (1, 0), (-1, 7), (0, 90), (1, 17), (1, 16), (-1, -5), *prompts(91, 31, first=20)]
    launch = check(make_problem([91, 31], 2, 1, tokens=tokens), 80, prefill=True)
    assert launch.arguments["out_ptr"][[3, 7]].eq(0).all()


def test_blocks_without_a_sequence(whole_blocks: None) -> None:
    """In a graph, most tokens may be unused."""
    tokens = [*[(-1, 0)] * 140, *prompts(9), *[(-3, 5)] * 130]
    launch = check(make_problem([9], 1, 1, tokens=tokens), 80, prefill=True)
    assert launch.grid == (3, 1) and (launch.report.reads("keys_ptr") > 0).sum() == 9 * 128


@pytest.mark.parametrize("window", [1, 5, 64, 100, 1000])
def test_windows(window: int, whole_blocks: None) -> None:
    """Keys before the windows of a block are not read, nor are whole pages there, which may have been freed."""
    problem = make_problem([200, 70], 1, 1, tokens=prompts(200, 70, first=60), window=window)
    for row in range(2):
        problem[3][row, : max(61 - window, 0) // 16] = -1
    launch = check(problem, 80, prefill=True)
    seen = sum(length - max(61 - window, 0) for length in (200, 70))
    for name in ("keys_ptr", "values_ptr"):
        assert (launch.report.reads(name) > 0).sum() == seen * 64 * 2


def test_what_matrix_units_cannot_compute_takes_the_other_kernel() -> None:
    for options in ({"dropout": 0.3}, {"dtype": torch.float32}, {"cache_dtype": torch.float32}, {"dim": 8}):
        problem = make_problem([4, 3], 1, 1, **({"dim": 64} | options), tokens=prompts(4, 3))
        assert check(problem, 80, prefill=True).kernel.name == "paged_attention_kernel"


def test_results_do_not_depend_on_the_block(whole_blocks: None) -> None:
    """The same tokens behind others, in other blocks and among other sequences, have the same bits."""
    tokens = prompts(150, 40)
    alone = check(make_problem([150, 40], 2, 1, tokens=tokens), 80, prefill=True).arguments["out_ptr"]
    problem = make_problem([150, 40], 2, 1, tokens=tokens)
    order = torch.randperm(190, generator=torch.Generator().manual_seed(1))[:77]
    problem[0], problem[4], problem[5], problem[10] = (problem[at][order] for at in (0, 4, 5, 10))
    assert check(problem, 80, prefill=True).arguments["out_ptr"].equal(alone[order])


def test_a_faulty_sequence_leaves_the_others_alone(whole_blocks: None) -> None:
    """A faulty value may also reach earlier tokens of its sequence, those in the same block."""
    problem = make_problem([40, 30, 20], 1, 1, tokens=prompts(40, 30, 20))
    problem[1][problem[3][1, 0].long(), 0, 3] = torch.nan
    problem[2][problem[3][1, 0].long(), 0, 3] = torch.inf
    problem[2][problem[3][2, 0].long(), 0, 0] = torch.nan
    with Device(80) as device:
        out = triton_attention.paged_attention(*problem, True)
    assert len(device.launches) == 1
    assert not out[:40].isnan().any() and out[43:70].isnan().all() and out[70:].isnan().all()


@pytest.mark.parametrize(("heads", "dim", "most"), [(1, 64, 38), (4, 128, 47)])
def test_reads_and_instructions(heads: int, dim: int, most: float, whole_blocks: None) -> None:
    """A block reads each byte once, 16 bytes per lane. Thread-instructions are per query and key that it sees."""
    problem = make_problem([256], heads, 1, dim, tokens=prompts(256))
    launch = check(problem, 80, prefill=True)
    tokens = 128 // heads
    assert launch.grid == (256 // tokens, 1)
    blocks = torch.zeros(problem[1].shape[0], 16, dtype=torch.int64)
    for key in range(256):
        blocks[problem[3][0, key // 16], key % 16] = 256 // tokens - key // tokens
    for name in ("keys_ptr", "values_ptr"):
        assert (torch.from_numpy(launch.report.reads(name)) == blocks[:, None, :, None, None]).all()
        traffic = launch.report.traffic(name)
        assert traffic.bytes_per_lane == 16 and traffic.sectors * 32 == traffic.bytes
    limit = bound(f"instructions per query and key of a prefill, {heads} heads of {dim}", most)
    assert launch.report.thread_instructions / (heads * 256 * 257 / 2) <= limit


@pytest.mark.parametrize("has_fence", sorted({triton_settings.HAS_FENCE, False}))
@pytest.mark.parametrize(("sm", "rows"), [(90, 32), (90, 128), (100, 128)])
def test_matrix_instructions_wait_for_copies_to_shared_memory(
    sm: int, rows: int, has_fence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PTX, the async proxy sees what other instructions copied to shared memory only after a fence."""
    launched: list[Any] = []
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 0 if rows == 128 else 132)
    monkeypatch.setattr(block_attention, "HAS_FENCE", has_fence)
    monkeypatch.setattr(triton_settings, "compute_capability", lambda device: sm // 10)
    with intercept(lambda function, grid, arguments, options: launched.append((function, arguments, options))):
        triton_attention.paged_attention(*make_problem([40], 4, 1, 128, tokens=prompts(40)), True)
    ((function, arguments, options),) = launched
    options = {"fp_fusion" if name == "enable_fp_fusion" else name: value for name, value in options.items()}
    ptx = compile_for(function, arguments, sm, **options).ptx
    is_async = any(opcode in ptx for opcode in ("wgmma.mma_async", "tcgen05.mma"))
    assert is_async == (rows == 128) and (not is_async or "fence.proxy.async" in ptx)
    assert options["num_stages"] == (1 if is_async and not has_fence else block_attention.STAGES)


def test_settings_are_looked_up_at_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(LEAST_ROWS=16, HEADS=4).items():
        monkeypatch.setattr(prefill_attention, name, value)
    for name, value in dict(MOST_ROWS=64, TILE=32, STAGES=1, PROGRAMS_PER_MULTIPROCESSOR=2).items():
        monkeypatch.setattr(block_attention, name, value)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 3)
    launch = check(make_problem([40], 8, 1, 64, tokens=prompts(40)), 80, prefill=True)
    assert launch.grid == (3, 2) and ".reqntid 128" in launch.kernel.ptx
    assert not find(launch.kernel.ptx, "cp.async")


def without(ptx: str, opcode: str) -> str:
    return "".join(line for line in ptx.splitlines(True) if opcode not in line)


FAULTS: dict[str, Callable[[str], str]] = {
    "the result is not stored": lambda ptx: remove(ptx, "st.global", len(find(ptx, "st.global")) - 1),
    "a product is left out": lambda ptx: remove(ptx, "mma.sync", 0),
    "later keys are not masked": lambda ptx: ptx.replace("setp.le.s32", "setp.ne.s32"),
    "copies are not waited for": lambda ptx: without(ptx, "cp.async.wait_group"),
    "keys 16 bytes further": lambda ptx: shift_address(ptx, "cp.async.cg", 16),
    "other tokens are overwritten": lambda ptx: unguard(ptx, "st.global", len(find(ptx, "st.global")) - 1),
    "no barriers": lambda ptx: without(ptx, "bar.sync"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_injected_faults_are_caught(fault: str, whole_blocks: None) -> None:
    mutations: list[str] = []

    def mutate(ptx: str) -> str:
        mutations.append(FAULTS[fault](ptx))
        assert mutations[0] != ptx
        return mutations[0]

    with pytest.raises((errors.Fault, AssertionError)):
        check(make_problem([50, 30, 70], 1, 1, tokens=prompts(50, 30, 70)), 80, mutate, prefill=True)
    assert mutations
