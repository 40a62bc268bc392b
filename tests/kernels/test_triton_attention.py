"""paged_attention without a GPU: its compiled PTX is executed, its source runs in Triton's interpreter.

Results may differ from float64's by 4e-6 of the values' size, which is 1 here, before they are rounded to their dtype.
Where matrix units are used (groups of 3 heads and more, of 16 bits, no dropout) each weight may be rounded as well.
What no token may see is NaN in the cache: pages of nobody, places behind a text's end, texts of others.
"""

import os
import subprocess
import sys

import pytest
import torch

from cdgen_kernels import reference
from tests.helpers.paged import decode, make_paged

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import attention as triton_attention  # noqa: E402
from tools.ptx_sim import Device, errors  # noqa: E402
from tools.ptx_sim.faults import remove, shift_address, substitute, unguard  # noqa: E402
from tools.ptx_sim.versions import bound, needs_interpreter  # noqa: E402

every_sm = pytest.mark.parametrize("sm", [80, 90, 100])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def make_problem(lengths, heads=2, kv_heads=2, dim=64, dtype=torch.bfloat16, cache_dtype=None, page=16, tokens=None,
                 window=0, dropout=0.0):  # fmt: skip
    """Arguments of paged_attention: texts of these lengths, each looked at by its last token or by `tokens`."""
    tokens = tokens or decode(lengths)
    paged = make_paged(lengths, tokens, heads, kv_heads, dim, page, dtype, cache_dtype, seed=sum(lengths) + dim)
    wide = torch.full((len(tokens), heads, 3, dim), torch.nan, dtype=dtype)  # of which every stride is its own
    wide[:, :, 1] = paged.q
    noise = (dropout, torch.tensor([-(2**60) + 12345]), torch.arange(len(tokens)) + 2**33, 5)
    return [wide[:, :, 1], *paged[1:], dim**-0.5, window, *noise]


def check(problem, sm=90, mutate=None):
    """The report of the one launch, whose result has to be the reference's."""
    with Device(sm, mutate, max_blocks=10_000_000) as device:
        got = triton_attention.paged_attention(*problem)
    (only,) = device.launches
    q, keys, values = (x.double() for x in problem[:3])
    exact = reference.paged_attention(q, keys, values, *problem[3:])
    half_ulp = torch.finfo(got.dtype).eps / 2
    allowed = half_ulp * exact.abs() + 4e-6
    if any("mma" in opcode for opcode in only.report.warp_instructions):
        allowed += half_ulp * reference.paged_attention(q, keys, values.abs(), *problem[3:])
    same = (got == exact) | (got.isnan() & exact.isnan())
    assert (same | ((got - exact).abs() <= allowed)).all()
    return only


@pytest.fixture
def alone(monkeypatch):
    """A device with room for one program a token and key-value head."""
    monkeypatch.setattr(triton_attention, "multiprocessors", lambda device: 0)


@pytest.fixture(params=["alone", "shared"])
def programs(request):
    """A device with room for one such program, or for several."""
    if request.param == "alone":
        request.getfixturevalue("alone")


@every_sm
@pytest.mark.parametrize("dtype", DTYPES)
def test_texts_of_any_length(sm, dtype):
    """One key; a page, and one and three keys more; a tile of 32, and one more; several tiles and programs."""
    assert check(make_problem([1, 16, 17, 19, 32, 33, 230], dtype=dtype), sm).grid[2] > 1


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [
        (3, 1, 64),  # a group that is no power of two
        (8, 2, 128),  # groups of four
        (8, 1, 80),  # as many as a program takes without matrix units; a head that is no power of two
        (20, 2, 20),  # more than that; 40 bytes a key
        (17, 1, 16),  # more than matrix units take; the least that they do
        (1, 1, 256),  # 32 lanes a key
        (4, 1, 8),  # one lane a key, a group too narrow for matrix units
    ],
)
def test_groups_and_sizes_of_heads(heads, kv_heads, dim):
    """Dropout is what keeps large groups from matrix units."""
    for dropout in (0.0, 0.3):
        launch = check(make_problem([40, 3], heads, kv_heads, dim, dropout=dropout))
        matrix = any("mma" in opcode for opcode in launch.report.warp_instructions)
        assert matrix == (heads // kv_heads > 2 and dim >= 16 and not dropout)


@every_sm
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_groups_on_matrix_units(sm, dtype):
    check(make_problem([1, 16, 17, 31, 32, 33, 230], 8, 2, 64, dtype), sm)


@pytest.mark.parametrize(("page", "cache_dtype"), [(1, torch.float32), (6, torch.float16), (3, None), (64, None)])
def test_pages_of_any_size(page, cache_dtype):
    """One, two or four keys at a time; a cache of another dtype than the queries."""
    check(make_problem([150, 7], 2, 1, 64, cache_dtype=cache_dtype, page=page, dropout=0.4))


@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("window", [1, 5, 64, 100, 1000])
def test_windows(window, heads, programs):
    """Keys before the window, and pages that lie there whole and may be gone, are not read."""
    problem = make_problem([200, 70, 4], heads, window=window)
    for row, length in enumerate([200, 70, 4]):
        problem[3][row, : max(length - window, 0) // 16] = -1
    launch = check(problem)
    seen = sum(min(length, window) for length in [200, 70, 4])
    for name in ("keys", "values"):
        assert (launch.report.reads(name) > 0).sum() == launch.report.reads(name).sum() == seen * 2 * 64 * 2


@pytest.mark.parametrize("heads", [2, 8])
def test_many_tokens_of_a_text(heads, programs):
    """Ragged prefill in any order, and nobody's token: zeros."""
    tokens = [(1, 30), (0, 0), (1, 0), (-1, 7), (0, 90), (1, 17), (1, 16), (-1, -5)]
    problem = make_problem([91, 31], heads, tokens=tokens)
    problem[1][problem[3][1, 0].long(), :, 0] = 100.0  # keys that weigh alone
    launch = check(problem)
    assert launch.arguments["out"][[3, 7]].eq(0).all()


@pytest.mark.parametrize("page", [16, 2, 1])
def test_dropout_takes_the_references_weights(page):
    """Values of one number each, all weights alike: the result tells what is left of each of 40 weights."""
    lengths, heads = [40, 33], 4
    for dropout in (0.1, 0.5, 0.9):
        problem = make_problem(lengths, heads, 2, 64, torch.float32, page=page, dropout=dropout)
        problem[0].zero_()
        for row, length in enumerate(lengths):
            for key in range(length):
                where = problem[3][row, key // page].long(), slice(None), key % page
                problem[2][where] = torch.nn.functional.one_hot(torch.tensor(key), 64).float()
        launch = check(problem)
        kept = launch.arguments["out"] > 0
        gone = reference.dropped(dropout, *problem[9:11], problem[5], problem[11], heads, 40)
        for row, length in enumerate(lengths):
            assert kept[row, :, :length].equal(~gone[row, :, :length])
            assert abs(gone[row, :, :length].float().mean() - dropout) < 0.2


@pytest.mark.parametrize("heads", [1, 4])
def test_a_key_that_weighs_alone(heads, programs):
    """By 2^346, which overflows against any other key's maximum: wherever it lies, its values are the result."""
    problem = make_problem([230], heads, 1)
    keys, values, table = problem[1:4]
    problem[0].copy_(problem[0][0, 0].sign())
    for place in (0, 5, 30, 32, 101, 229):
        there = table[0, place // 16].long(), slice(None), place % 16
        before = keys[there].clone()
        keys[there] = 30 * problem[0][0, :1]
        assert (check(problem).arguments["out"][0] == values[there]).all()
        keys[there] = before


def test_infinite_and_nan_scores():
    """As torch has it: NaN seen is NaN told, of -inf there is nothing, of nothing but -inf NaN."""
    problem = make_problem([40, 40, 40, 40], dtype=torch.float32)
    problem[0].fill_(1.0)
    first = problem[3][:, 0].long()
    problem[1][first[0], 0, 3, 5] = torch.nan
    problem[1][first[1], 0, 3, 5] = -torch.inf
    problem[1][first[2], 0, 3, 5] = torch.inf
    problem[2][first[3], 0, 3, 5] = torch.nan
    launch = check(problem)
    assert launch.arguments["out"].isnan().any(2).tolist() == [[True, False], [False] * 2, [True, False], [True, False]]


def check_reads(launch, problem, lengths):
    """Each byte of a text's keys and values once for all query heads that share them, 16 bytes a lane, whole sectors;
    the rest of the cache never."""
    wanted = torch.zeros(problem[1].shape[0], 16, dtype=torch.int64)
    for row, length in enumerate(lengths):
        for key in range(length):
            wanted[problem[3][row, key // 16], key % 16] = 1
    for name in ("keys", "values"):
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
def test_what_it_reads_and_issues(heads, dim, most, sm, alone):
    """Instructions a key and key-value head: those of a key's 32 lanes, over lines of 8 or 16 lanes."""
    problem = make_problem([420, 300], heads, 1, dim)
    launch = check(problem, sm)
    check_reads(launch, problem, [420, 300])
    most = bound(f"instructions per key of {heads} heads of {dim}, sm_{sm}", most[sm])
    assert launch.report.thread_instructions / 720 <= most


def test_programs_that_share_a_text_read_it_once():
    problem = make_problem([420, 300], 3, 1)
    launch = check(problem)
    assert launch.grid == (2, 1, 14)
    check_reads(launch, problem, [420, 300])


def test_settings_are_looked_up_at_each_launch(monkeypatch):
    monkeypatch.setattr(triton_attention, "THREADS", 128)
    monkeypatch.setattr(triton_attention, "KEYS", {1: 2, 2: 2, 4: 1, 8: 1})
    monkeypatch.setattr(triton_attention, "PROGRAMS_PER_MULTIPROCESSOR", 3)
    monkeypatch.setattr(triton_attention, "multiprocessors", lambda device: 4)
    problem = make_problem([200, 37])
    launch = check(problem)
    assert launch.grid == (2, 2, 3)  # room for 12 programs
    assert ".reqntid 128" in launch.kernel.ptx


def test_what_dropout_costs(alone):
    """Nothing where it is off; a call of Philox for four keys where it is on."""
    counts = [check(make_problem([420], 1, 1, dropout=p)).report.thread_instructions / 420 for p in (0.0, 0.3)]
    assert counts[0] < 760 and counts[1] - counts[0] < 250


def test_nothing_to_do():
    problem = make_problem([3])
    problem = [x[:0] if i in (0, 4, 5) else x for i, x in enumerate(problem)]
    with Device(90) as device:
        assert triton_attention.paged_attention(*problem).shape == (0, 2, 64)
    assert not device.launches


def without(ptx, opcode):
    return "".join(line for line in ptx.splitlines(True) if opcode not in line)


FAULTS = {
    "the result is not stored": lambda ptx: remove(ptx, "st.global", 3),
    "scores are not masked": lambda ptx: ptx.replace("0fFF800000", "0f00000000"),
    "values are not masked": lambda ptx: unguard(ptx, "ld.global.v4", 8),
    "keys 16 bytes further": lambda ptx: shift_address(ptx, "ld.global.v4", 16, 1),
    "values of the next key": lambda ptx: shift_address(ptx, "ld.global.v4", 128, 5),
    "one key too many": lambda ptx: ptx.replace("setp.lt.s32", "setp.le.s32"),
    "a score of too few lanes": lambda ptx: remove(ptx, "shfl", 0),
    "another base": lambda ptx: substitute(ptx, "ex2.approx.ftz.f32", "ex2.approx.ftz.f32", "lg2.approx.ftz.f32"),
    "no barriers": lambda ptx: without(ptx, "bar.sync"),
    "arrivals do not acquire": lambda ptx: ptx.replace("atom.global.gpu.acq_rel", "atom.global.gpu.relaxed"),
    "nobody counts as last": lambda ptx: remove(ptx, "atom.global"),
    "a part is not stored": lambda ptx: remove(ptx, "st.global", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_injected_faults_are_caught(fault):
    mutations = []

    def mutate(ptx):
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
def test_injected_faults_on_matrix_units_are_caught(fault):
    problem = make_problem([200, 42], 8)
    assert not (problem[3] == 0).any()  # the page that a lane without a key would read is all NaN
    mutations = []

    def mutate(ptx):
        mutations.append(MATRIX_FAULTS[fault](ptx))
        assert mutations[0] != ptx
        return mutations[0]

    with pytest.raises((errors.Fault, AssertionError)):
        check(problem, mutate=mutate)
    assert mutations


@needs_interpreter
def test_source_in_tritons_interpreter():
    """Its own process, since Triton's mode is fixed when a kernel is decorated. It cuts to bfloat16, unrounded."""
    code = """
import torch
from cdgen_kernels import reference
from cdgen_kernels.triton import attention as triton_attention
torch.manual_seed(0)
float32, float16, bfloat16 = torch.float32, torch.float16, torch.bfloat16
for dtype, cache_dtype in ((float32,) * 2, (float16,) * 2, (float16, float32), (bfloat16,) * 2):
    for room in (0, 132):
        triton_attention.multiprocessors = lambda device: room
        if dtype == torch.bfloat16:  # whose bits this interpreter's tl.dot takes for whole numbers
            triton_attention.MATRIX_GROUP = 99
        cache = torch.randn(2, 40, 2, 4, 20).to(cache_dtype)
        q, table = torch.randn(3, 12, 20).to(dtype), torch.randperm(40)[:36].view(3, 12).int()
        row, position = torch.tensor([2, -1, 0]).int(), torch.tensor([46, 3, 8])
        for window, dropout in ((0, 0.0), (7, 0.5)):
            rest = (table, row, position, 0.3, window, dropout, torch.tensor([7]), torch.arange(3) + 2**35, 2)
            wanted, got = (m.paged_attention(q, *cache, *rest) for m in (reference, triton_attention))
            torch.testing.assert_close(got, wanted, rtol=torch.finfo(dtype).eps, atol=max(torch.finfo(dtype).eps, 2e-6))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
