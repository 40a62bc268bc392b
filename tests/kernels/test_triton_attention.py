"""paged_attention without a GPU: its compiled PTX is executed, and Triton's interpreter runs its source.

Results may differ from float64 by 4e-6 of the size of the values, which is 1 here, before they are rounded to their
dtype. On matrix units (groups of 3 or more heads, 16 bits, no dropout) each weight may be rounded as well. Everything
in the cache that a token must not read is NaN: unused pages, places past the end of a sequence, other sequences.
"""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from cdgen_kernels import reference

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import attention as triton_attention  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tests.helpers.attention import check, make_problem  # noqa: E402
from tools.ptx_sim import Device, errors  # noqa: E402
from tools.ptx_sim.device import Launch  # noqa: E402
from tools.ptx_sim.faults import remove, shift_address, substitute, unguard  # noqa: E402
from tools.ptx_sim.versions import bound, needs_interpreter  # noqa: E402

pytestmark = pytest.mark.ptx

every_sm = pytest.mark.parametrize("sm", [80, 90, 100])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make room on the device for only one program per token and key-value head."""
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 0)


@pytest.fixture(params=["alone", "shared"])
def programs(request: pytest.FixtureRequest) -> None:
    """Make room on the device for one program per token and key-value head, or for several."""
    if request.param == "alone":
        request.getfixturevalue("alone")


@every_sm
@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_of_any_length(sm: int, dtype: torch.dtype) -> None:
    """One key; a page, and one or three keys more; a tile of 32, and one key more; several tiles and programs."""
    assert check(make_problem([1, 16, 17, 19, 32, 33, 230], dtype=dtype), sm).grid[2] > 1


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [
        (3, 1, 64),  # a group that is no power of two
        (8, 2, 128),  # groups of four
        (8, 1, 80),  # the most heads of a program without matrix units; a head that is no power of two
        (20, 2, 20),  # more heads than that; 40 bytes per key
        (17, 1, 16),  # more heads than matrix units have rows; the smallest head that they take
        (1, 1, 256),  # 32 lanes per key
        (4, 1, 8),  # one lane per key; heads too small for matrix units
    ],
)
def test_groups_and_sizes_of_heads(heads: int, kv_heads: int, dim: int) -> None:
    """Dropout keeps large groups off the matrix units."""
    for dropout in (0.0, 0.3):
        launch = check(make_problem([40, 3], heads, kv_heads, dim, dropout=dropout))
        matrix = any("mma" in opcode for opcode in launch.report.warp_instructions)
        assert matrix == (heads // kv_heads > 2 and dim >= 16 and not dropout)


@every_sm
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_groups_on_matrix_units(sm: int, dtype: torch.dtype) -> None:
    check(make_problem([1, 16, 17, 31, 32, 33, 230], 8, 2, 64, dtype), sm)


@pytest.mark.parametrize(("page", "cache_dtype"), [(1, torch.float32), (6, torch.float16), (3, None), (64, None)])
def test_pages_of_any_size(page: int, cache_dtype: torch.dtype | None) -> None:
    """One, two or four keys at a time; a cache with another dtype than the queries."""
    check(make_problem([150, 7], 2, 1, 64, cache_dtype=cache_dtype, page=page, dropout=0.4))


@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("window", [1, 5, 64, 100, 1000])
def test_windows(window: int, heads: int, programs: None) -> None:
    """Keys before the window are not read, nor are whole pages there, which may have been freed."""
    problem = make_problem([200, 70, 4], heads, window=window)
    for row, length in enumerate([200, 70, 4]):
        problem[3][row, : max(length - window, 0) // 16] = -1
    launch = check(problem)
    seen = sum(min(length, window) for length in [200, 70, 4])
    for name in ("keys_ptr", "values_ptr"):
        assert (launch.report.reads(name) > 0).sum() == launch.report.reads(name).sum() == seen * 2 * 64 * 2


@pytest.mark.parametrize("heads", [2, 8])
def test_many_tokens_per_sequence(heads: int, programs: None) -> None:
    """Ragged prefill in any order, and unused tokens, whose results are zeros."""
    tokens = [(1, 30), (0, 0), (1, 0), (-1, 7), (0, 90), (1, 17), (1, 16), (-1, -5)]
    problem = make_problem([91, 31], heads, tokens=tokens)
    problem[1][problem[3][1, 0].long(), :, 0] = 100.0  # these keys take all of the weight
    launch = check(problem)
    assert launch.arguments["out_ptr"][[3, 7]].eq(0).all()


@pytest.mark.parametrize("page", [16, 2, 1])
def test_dropout_removes_the_same_weights_as_the_reference(page: int) -> None:
    """With one-hot values and equal weights, the result shows which of 40 weights are left."""
    lengths, heads = [40, 33], 4
    for dropout in (0.1, 0.5, 0.9):
        problem = make_problem(lengths, heads, 2, 64, torch.float32, page=page, dropout=dropout)
        problem[0].zero_()
        for row, length in enumerate(lengths):
            for key in range(length):
                where = problem[3][row, key // page].long(), slice(None), key % page
                problem[2][where] = torch.nn.functional.one_hot(torch.tensor(key), 64).float()
        launch = check(problem)
        kept = launch.arguments["out_ptr"] > 0
        gone = reference.dropped(dropout, *problem[9:11], problem[5], problem[11], heads, 40)
        for row, length in enumerate(lengths):
            assert kept[row, :, :length].equal(~gone[row, :, :length])
            assert abs(gone[row, :, :length].float().mean() - dropout) < 0.2


@pytest.mark.parametrize("heads", [1, 4])
def test_a_key_that_takes_all_of_the_weight(heads: int, programs: None) -> None:
    """A weight of 2^346 overflows relative to any other key's maximum: wherever the key is, the result is its value."""
    problem = make_problem([230], heads, 1)
    keys, values, table = problem[1:4]
    problem[0].copy_(problem[0][0, 0].sign())
    for place in (0, 5, 30, 32, 101, 229):
        there = table[0, place // 16].long(), slice(None), place % 16
        before = keys[there].clone()
        keys[there] = 30 * problem[0][0, :1]
        assert (check(problem).arguments["out_ptr"][0] == values[there]).all()
        keys[there] = before


def test_infinite_and_nan_scores() -> None:
    """As in torch: NaN propagates, a score of -inf has no weight, and a row of nothing but -inf is NaN."""
    problem = make_problem([40, 40, 40, 40], dtype=torch.float32)
    problem[0].fill_(1.0)
    first = problem[3][:, 0].long()
    problem[1][first[0], 0, 3, 5] = torch.nan
    problem[1][first[1], 0, 3, 5] = -torch.inf
    problem[1][first[2], 0, 3, 5] = torch.inf
    problem[2][first[3], 0, 3, 5] = torch.nan
    launch = check(problem)
    has_nan = launch.arguments["out_ptr"].isnan().any(2)
    assert has_nan.tolist() == [[True, False], [False, False], [True, False], [True, False]]


def check_reads(launch: Launch, problem: list[Any], lengths: list[int]) -> None:
    """Check that each byte of a sequence's keys and values is read once for all query heads that share it.

    Loads are 16 bytes per lane and take whole sectors. The rest of the cache is never read.
    """
    wanted = torch.zeros(problem[1].shape[0], 16, dtype=torch.int64)
    for row, length in enumerate(lengths):
        for key in range(length):
            wanted[problem[3][row, key // 16], key % 16] = 1
    for name in ("keys_ptr", "values_ptr"):
        assert (torch.from_numpy(launch.report.reads(name)) == wanted[:, None, :, None, None]).all()
        traffic = launch.report.traffic(name)
        assert traffic.bytes_per_lane == 16 and traffic.sectors * 32 == traffic.bytes
        assert traffic.sectors_per_request > 15


@pytest.mark.parametrize(
    ("heads", "dim", "most"),
    [
        (1, 64, {80: 760, 90: 760, 100: 880}),
        (4, 128, {80: 1120, 90: 1120, 100: 1160}),
        (8, 128, {80: 1120, 90: 1120, 100: 1160}),
    ],
)
@every_sm
def test_reads_and_instructions(heads: int, dim: int, most: dict[int, int], sm: int, alone: None) -> None:
    """Thread-instructions per key and key-value head; a line is 8 or 16 lanes."""
    problem = make_problem([420, 300], heads, 1, dim)
    launch = check(problem, sm)
    check_reads(launch, problem, [420, 300])
    limit = bound(f"instructions per key of {heads} heads of {dim}, sm_{sm}", most[sm])
    assert launch.report.thread_instructions / 720 <= limit


def test_programs_that_share_a_sequence_read_it_once() -> None:
    problem = make_problem([420, 300], 3, 1)
    launch = check(problem)
    assert launch.grid == (2, 1, 14)
    check_reads(launch, problem, [420, 300])


def test_settings_are_looked_up_at_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "THREADS", 128)
    monkeypatch.setattr(triton_attention, "KEYS", {1: 2, 2: 2, 4: 1, 8: 1})
    monkeypatch.setattr(triton_settings, "ATTENTION_PROGRAMS_PER_MULTIPROCESSOR", 3)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 4)
    problem = make_problem([200, 37])
    launch = check(problem)
    assert launch.grid == (2, 2, 3)  # room for 12 programs
    assert ".reqntid 128" in launch.kernel.ptx


def test_cost_of_dropout(alone: None) -> None:
    """Dropout costs nothing when it is off, and one call of Philox per four keys when it is on."""
    counts = [check(make_problem([420], 1, 1, dropout=p)).report.thread_instructions / 420 for p in (0.0, 0.3)]
    assert counts[0] < 760 and counts[1] - counts[0] < 250


def test_empty_batches() -> None:
    problem = make_problem([3])
    problem = [x[:0] if i in (0, 4, 5) else x for i, x in enumerate(problem)]
    with Device(90) as device:
        assert triton_attention.paged_attention(*problem).shape == (0, 2, 64)
    assert not device.launches


def without(ptx: str, opcode: str) -> str:
    return "".join(line for line in ptx.splitlines(True) if opcode not in line)


FAULTS = {
    "the result is not stored": lambda ptx: remove(ptx, "st.global", 4),
    "scores are not masked": lambda ptx: ptx.replace("0fFF800000", "0f00000000"),
    "values are not masked": lambda ptx: unguard(ptx, "ld.global.v4", 8),
    "keys 16 bytes further": lambda ptx: shift_address(ptx, "ld.global.v4", 16, 1),
    "values of the next key": lambda ptx: shift_address(ptx, "ld.global.v4", 128, 5),
    "one key too many": lambda ptx: ptx.replace("setp.lt.s32", "setp.le.s32"),
    "a score of too few lanes": lambda ptx: remove(ptx, "shfl", 0),
    "another base": lambda ptx: substitute(ptx, "ex2.approx.ftz.f32", "ex2.approx.ftz.f32", "lg2.approx.ftz.f32"),
    "no barriers": lambda ptx: without(ptx, "bar.sync"),
    "arrivals do not acquire": lambda ptx: ptx.replace("atom.global.gpu.acq_rel", "atom.global.gpu.relaxed"),
    "no program counts as last": lambda ptx: remove(ptx, "atom.global"),
    "the last program does not reset its counter": lambda ptx: remove(ptx, "st.global", 3),
    "a part is not stored": lambda ptx: remove(ptx, "st.global", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_injected_faults_are_caught(fault: str) -> None:
    mutations: list[str] = []

    def mutate(ptx: str) -> str:
        mutations.append(FAULTS[fault](ptx))
        assert mutations[0] != ptx
        return mutations[0]

    with pytest.raises((errors.Fault, AssertionError)):
        check(make_problem([200, 37]), mutate=mutate)
    assert mutations


MATRIX_FAULTS = {
    "a product is left out": lambda ptx: remove(ptx, "mma.sync", 0),
    "scores are not masked": lambda ptx: ptx.replace("0fFF800000", "0f00000000"),
    "values are not masked": lambda ptx: unguard(ptx, "ld.global.v4", 9),
    "values of the next key": lambda ptx: shift_address(ptx, "ld.global.v4", 128, 7),
    "no barriers": lambda ptx: without(ptx, "bar.sync"),
}


@pytest.mark.parametrize("fault", MATRIX_FAULTS)
def test_injected_faults_on_matrix_units_are_caught(fault: str) -> None:
    problem = make_problem([200, 42], 8)
    assert not (problem[3] == 0).any()  # page 0, which lanes without a key would read, is all NaN
    mutations: list[str] = []

    def mutate(ptx: str) -> str:
        mutations.append(MATRIX_FAULTS[fault](ptx))
        assert mutations[0] != ptx
        return mutations[0]

    with pytest.raises((errors.Fault, AssertionError)):
        check(problem, mutate=mutate)
    assert mutations


@needs_interpreter
def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated.

    The interpreter truncates to bfloat16 instead of rounding.
    """
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import attention as triton_attention
from cdgen_kernels.triton import settings
torch.manual_seed(0)
float32, float16, bfloat16 = torch.float32, torch.float16, torch.bfloat16
for dtype, cache_dtype in ((float32,) * 2, (float16,) * 2, (float16, float32), (bfloat16,) * 2):
    for room in (0, 132):
        settings.multiprocessors = lambda device: room
        if dtype == torch.bfloat16:  # this interpreter's tl.dot reads the bits as integers
            triton_attention.MATRIX_GROUP = 99
        cache = torch.randn(2, 40, 2, 4, 20).to(cache_dtype)
        q, table = torch.randn(3, 12, 20).to(dtype), torch.randperm(40)[:36].view(3, 12).int()
        row, position = torch.tensor([2, -1, 0]).int(), torch.tensor([46, 3, 8])
        for window, dropout, prefill in ((0, 0.0, False), (7, 0.5, False), (7, 0.0, dtype == float16)):
            noise = (torch.tensor([7]), torch.arange(3) + 2**35, 2)
            rest = (table, row, position, 0.3, window, dropout, *noise, prefill)
            wanted, got = (m.paged_attention(q, *cache, *rest) for m in (reference, triton_attention))
            torch.testing.assert_close(got, wanted, rtol=torch.finfo(dtype).eps, atol=max(torch.finfo(dtype).eps, 2e-6))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
