"""The Triton sampling kernels without a GPU: compiled PTX is executed, and Triton's interpreter runs the source.

Scores and noise are float32 in the kernels and float64 in the reference. Both draw the same token unless the two best
noisy scores lie within about 1e-5 of each other. The seeds here have no such tie, so all tokens must be equal.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from cdgen_kernels import Samples, SamplingTensors, codes, make_sampling_tensors, reference
from tests.helpers.chi_square import FALSE_ALARM, p_value

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import candidates as triton_candidates  # noqa: E402
from cdgen_kernels.triton import sample as triton_sample  # noqa: E402
from cdgen_kernels.triton import settings as triton_settings  # noqa: E402
from tools.ptx_sim import Device, errors, intercept, launch  # noqa: E402
from tools.ptx_sim.device import Launch  # noqa: E402
from tools.ptx_sim.faults import find, remove, shift_address, unguard  # noqa: E402
from tools.ptx_sim.versions import needs_interpreter  # noqa: E402

pytestmark = pytest.mark.ptx

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MASK = (codes.MASK, 0.0)  # `outside` and `value`


def make_pair(
    batch: int,
    vocab_size: int,
    dtype: torch.dtype,
    bad_dtype: torch.dtype | None = None,
    width: int | None = None,
    seed: int = 0,
) -> list[torch.Tensor]:
    """Return Zipf-like logits of GOOD and BAD, [batch, vocab_size] in NaN-filled storage [batch, width].

    The NaN reveal reads past the end of a row.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)]).float()
    good = -1.5 * torch.log1p(ranks) + 0.2 * torch.randn(batch, vocab_size, generator=generator)
    bad = 2 * torch.randn(batch, vocab_size, generator=generator)
    width = width or vocab_size
    pair = [torch.full((batch, width), torch.nan).to(d) for d in (dtype, bad_dtype or dtype)]
    for wide, x in zip(pair, (good, bad), strict=True):
        wide[:, :vocab_size] = x
    return [wide[:, :vocab_size] for wide in pair]


def on_device(function: Callable[..., Any], *arguments: Any, sm: int = 90, **how: Any) -> tuple[Any, Launch]:
    """Execute a launcher's compiled PTX; return (its result, its only launch)."""
    with Device(sm, max_blocks=20_000_000, **how) as device:
        result = function(*arguments)
    (only,) = device.launches
    if "arrivals_ptr" in only.arguments:
        assert only.arguments["arrivals_ptr"].eq(0).all()  # the next launch on this stream counts from 0 again
    return result, only


def sample_both(
    good: torch.Tensor,
    bad: torch.Tensor | None,
    sampling: SamplingTensors,
    banned: torch.Tensor | None = None,
    outside: tuple[int, float] = MASK,
    logprobs: bool = False,
    **how: Any,
) -> tuple[Samples, Samples, Launch]:
    """Return (the kernel's samples, the reference's samples, the launch)."""
    problem = (good, bad, sampling, banned, good.shape[1], *outside, logprobs)
    got, launched = on_device(triton_sample.contrastive_sample, *problem, **how)
    return got, reference.contrastive_sample(*problem), launched


@pytest.fixture(params=["alone", "shared"])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make room on the device for one program per row ("alone"), or for several ("shared")."""
    if request.param == "alone":
        monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 0)
    return request.param


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_code_draws_the_references_tokens(sm: int, dtype: torch.dtype) -> None:
    """An odd size, unaligned rows, bans, and different parameters per row."""
    good, bad = make_pair(5, 4099, dtype, torch.float32, width=4101, seed=sm)
    alpha, temperature = [0.1, 0.02, 0.3, 0.05, 1e-3], [1, 0.7, 2, 0, 1]
    sampling = make_sampling_tensors(
        5, alpha=alpha, temperature=temperature, top_k=[0, 3, 0, 2, 0], top_p=[1, 1, 0.8, 1, 0.9], seed=sm
    )
    banned = torch.tensor([[-1, -1], [int(good[1].argmax()), 4098], [0, 1], [-1, 7], [4000, -1]])
    got, wanted, launched = sample_both(good, bad, sampling, banned, sm=sm)
    assert got.token.equal(wanted.token)
    assert launched.grid[1] > 1


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 8, 9, 127, 1024, 4096, 9000])
def test_awkward_sizes(vocab_size: int, programs: str) -> None:
    """Sizes around a group of 8, below a tile of 4096, exactly one tile, and several tiles plus a part."""
    good, bad = make_pair(4, vocab_size, torch.bfloat16, width=vocab_size + 3)
    got, wanted, launched = sample_both(good, bad, make_sampling_tensors(4, alpha=0.01, seed=vocab_size))
    assert got.token.equal(wanted.token)
    assert (launched.grid[1] > 1) == (programs == "shared" and vocab_size > 4096)


@pytest.mark.parametrize("outside", [MASK, (codes.CONSTANT, -2.0), (codes.SHIFTED_GOOD, 0.0)])
def test_modes_cuts_and_log_probabilities(outside: tuple[int, float]) -> None:
    good, bad = make_pair(4, 300, torch.float32, torch.bfloat16)
    sampling = make_sampling_tensors(
        4, alpha=[0, 0.1, 0.01, 0.2], top_k=[40, 0, 5, 0], top_p=[1, 0.7, 0.9, 0.5], seed=5
    )
    got, wanted, _ = sample_both(good, bad, sampling, outside=outside, logprobs=True)
    assert got.token.equal(wanted.token)
    torch.testing.assert_close(torch.stack(got[1:]), torch.stack(wanted[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad_dtype", [None, torch.float32])
def test_methods_without_candidates(bad_dtype: torch.dtype | None) -> None:
    """Ancestral, top-k and top-p sampling over a whole vocabulary; a flat row cannot use the bounds of its chunks."""
    good, bad = make_pair(6, 1100, torch.bfloat16, bad_dtype, width=1104)
    good[5] = (good[5].float() / 50).bfloat16()  # nearly flat: a nucleus of hundreds of tokens with many ties
    top_k, top_p = [0, 7, 0, 300, 7, 0], [1, 1, 0.9, 1, 0.5, 0.9]
    strength = 0 if bad_dtype is None else [0, 0, 0, 0.5, 0, 0]
    sampling = make_sampling_tensors(
        6, alpha=0, contrast_strength=strength, top_k=top_k, top_p=top_p, temperature=[1, 2, 1, 1, 1, 1]
    )
    banned = torch.stack([good.argmax(1), torch.full((6,), -1)], 1)
    got, wanted, _ = sample_both(good, None if bad_dtype is None else bad, sampling, banned, logprobs=True)
    assert got.token.equal(wanted.token)
    torch.testing.assert_close(torch.stack(got[1:3]), torch.stack(wanted[1:3]), rtol=1e-4, atol=1e-4)


WHOLE_ROW = {
    "ancestral": {},
    "top_p": dict(top_p=0.9),
    "top_k": dict(top_k=50),
    "large top_k": dict(top_k=200),
    "greedy": dict(temperature=0),
    "contrast": dict(contrast_strength=1),
    "greedy contrast": dict(contrast_strength=0.5, temperature=0),
    "top_p, BAD unused": dict(top_p=0.9, contrast_strength=0),
}


@pytest.mark.parametrize("method", WHOLE_ROW)
def test_methods_without_candidates_are_shared_among_the_programs(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """V = 32,000, bfloat16, four programs: at most 60 instructions per entry; no program has much more than its share.

    Top-k and greedy decoding take a fraction of that, most of it after the last program has arrived.
    """
    monkeypatch.setattr(triton_settings, "PROGRAMS_PER_MULTIPROCESSOR", 1)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 8)
    good, bad = make_pair(2, 32_000, torch.bfloat16, seed=1)
    has_bad = "contrast_strength" in WHOLE_ROW[method]
    sampling = make_sampling_tensors(2, alpha=0, seed=4, **{"contrast_strength": 0, **WHOLE_ROW[method]})
    got, wanted, launched = sample_both(good, bad if has_bad else None, sampling)
    assert got.token.equal(wanted.token)
    assert launched.grid == (2, 4)
    each = launched.report.instructions_per_thread
    print(f"{method}: {launched.report.thread_instructions / good.numel():.1f} instructions per entry,", end=" ")
    print(f"{each.max():.0f} per thread of the longest program, {each.max() / each.mean():.1f} times the mean")
    assert launched.report.thread_instructions / good.numel() <= 60
    assert each.max() * triton_settings.THREADS * 4 / good.shape[1] <= 100
    if method not in ("top_k", "greedy"):
        assert each.max() <= 1.8 * each.mean()


@pytest.mark.parametrize(
    ("method", "most"), [("ancestral", 3_700), ("contrast", 4_500), ("top_p", 6_900), ("flat top_p", 21_000)]
)
def test_the_last_of_many_programs(method: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """V = 128,256, bfloat16, one row, 32 programs. The last one executes at most `most` instructions per thread."""
    monkeypatch.setattr(triton_settings, "PROGRAMS_PER_MULTIPROCESSOR", 1)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 32)
    good, bad = make_pair(1, 128_256, torch.bfloat16, seed=1)
    if method == "flat top_p":
        good = (good.float() / 3).bfloat16()
    cuts = WHOLE_ROW[method.removeprefix("flat ")]
    sampling = make_sampling_tensors(1, alpha=0, seed=4, **{"contrast_strength": 0, **cuts})
    got, wanted, launched = sample_both(good, bad if method == "contrast" else None, sampling)
    assert got.token.equal(wanted.token)
    assert launched.grid == (1, 32)
    each = launched.report.instructions_per_thread
    print(f"{method}: {launched.report.thread_instructions / good.numel():.1f} instructions per entry,", end=" ")
    print(f"{each.max():.0f} per thread of the longest program, {each.max() / each.mean():.1f} times the mean")
    assert each.max() <= most


@pytest.mark.parametrize("dtype", DTYPES)
def test_races_with_bad(dtype: torch.dtype) -> None:
    """Contrastive and greedy decoding without candidates: unaligned rows, bans, and logits that are not finite."""
    good, bad = make_pair(7, 4611, dtype, torch.float32, width=4613, seed=3)
    good[1, ::3] = -torch.inf
    bad[1, ::3] = -torch.inf  # padding: no token for either model
    good[2], bad[2] = 1000 * good[2].float() / 7, 1000 * bad[2]
    bad[3, 4000] = torch.nan
    bad[4, 4610] = -torch.inf  # on the edge, and better than all others
    bad[5, 17] = torch.inf
    bad[6] = bad[6] + 1e6
    sampling = make_sampling_tensors(
        7, alpha=0, contrast_strength=[1, 0.5, 1, 1, 1, 1, -0.5], good_weight=[1, 2, 1, 1, 1, 1, 1], seed=9,
        temperature=[1, 0, 1, 1, 0.7, 1, 1.3],
    )  # fmt: skip
    banned = torch.stack([bad.nan_to_num(99).argmin(1), torch.full((7,), -1), torch.arange(7)], 1)
    banned[4] = -1
    got, wanted, _ = sample_both(good, bad, sampling, banned)
    assert got.token.equal(wanted.token)
    assert got.token[3] == codes.NAN_BAD and got.token[4] == 4610


@pytest.mark.parametrize("dtype", DTYPES)
def test_races_of_awkward_rows(dtype: torch.dtype, programs: str) -> None:
    """Unaligned rows whose last group is not whole, with bans, ties, infinities and logits beyond all noise."""
    good, _ = make_pair(2, 9003, dtype, width=9005, seed=3)
    rows = {
        "plain": lambda z: z,
        "flat": lambda z: z / 40,
        "equal": lambda z: torch.zeros_like(z),
        "mostly impossible": lambda z: z.masked_fill(torch.arange(9003) % 97 != 5, -torch.inf),
        "large": lambda z: 3000 * z,
    }
    cuts: list[dict[str, Any]] = [{}, {"top_p": 0.8}, {"top_k": 300}]
    ends = torch.tensor([0, 1, 4096, 8191, 9002, -1])
    for number, (name, change) in enumerate(rows.items()):
        z = change(good.float()).to(dtype)
        best = z.float().topk(3, 1).indices
        z[-1, 8999] = z[-1].max()
        banned = torch.cat([best, ends.repeat(2, 1)], 1)
        cut = cuts[(number + DTYPES.index(dtype)) % 3]  # over the dtypes, every row meets every cut
        weight = 1.0 if name == "plain" else [0.8, 1.5]
        sampling = make_sampling_tensors(
            2, alpha=0, contrast_strength=0, good_weight=weight, temperature=1.2, seed=100 + number, **cut
        )
        got, wanted, _ = sample_both(z, None, sampling, banned)
        assert got.token.equal(wanted.token), (name, cut)


def test_races_of_rows_with_nan_and_infinities() -> None:
    good, bad = make_pair(5, 4500, torch.bfloat16, torch.float32)
    good[0, 4499] = torch.nan
    good[1] = -torch.inf
    good[2, [7, 300, 4400]] = torch.inf  # only these can be drawn
    good[3, :] = torch.finfo(torch.bfloat16).min
    bad[4] = torch.nan  # not read
    for cut in ({}, dict(top_p=0.5), dict(top_k=150)):
        sampling = make_sampling_tensors(5, alpha=0, contrast_strength=0, seed=3, **cut)
        got, wanted, _ = sample_both(good, bad, sampling)
        assert got.token.equal(wanted.token), cut
        assert got.token[:2].tolist() == [codes.NAN_GOOD, codes.NOTHING_POSSIBLE]


def test_races_at_the_limits_of_float32() -> None:
    """No token is kept; a factor of GOOD that overflows; one of BAD that is 0 in float32; and an edge that decides."""
    good, bad = make_pair(5, 523, torch.bfloat16, torch.float32, width=525)
    good[1, 100:400] = 7
    bad[2, 5], bad[3, 5] = -torch.inf, torch.nan
    bad[4, 520:] = -1e30
    sampling = make_sampling_tensors(
        5, alpha=0, contrast_strength=[0, 0, 1e-25, 1e-25, 1], good_weight=[1, 2.9e33, 1e25, 1e25, 1],
        temperature=[1, 1e-5, 1e25, 1e25, 1], top_p=[1, 0.5, 1, 1, 1], seed=14,
    )  # fmt: skip
    sampling.top_p[0] = 0
    got, wanted, _ = sample_both(good, bad, sampling)
    assert got.token.equal(wanted.token)
    assert got.token[[0, 2, 3]].tolist() == [codes.INVALID_PARAMETERS, 5, codes.NAN_BAD]
    assert got.token[4] > 520  # by its noise


def test_more_candidates_than_the_list_holds_and_faulty_rows() -> None:
    good, bad = make_pair(6, 400, torch.float16)
    good[0] = 1.5  # all 400 are candidates
    good[1, 333] = torch.nan
    good[2] = -torch.inf
    good[4, 3], bad[4, 5] = torch.inf, torch.nan  # not candidates, so not read
    bad[3] = torch.nan
    bad[5, int(good[5].argmax())] = -torch.inf
    sampling = make_sampling_tensors(6, alpha=0.1, seed=2)
    got, wanted, _ = sample_both(good, bad, sampling)
    assert got.token.equal(wanted.token)
    assert got.token[1:4].tolist() == [codes.NAN_GOOD, codes.NOTHING_POSSIBLE, codes.NAN_BAD]
    sampling = sampling._replace(contrast_strength=sampling.contrast_strength * 0)
    assert sample_both(good, None, sampling)[0].token[4] == 3


@pytest.mark.parametrize("place", [0, 1, 4100, 8191, 8997, 8999])
def test_nan_is_reported_wherever_it_is(place: int) -> None:
    """NaN on the edge, in any program's part, in a banned token and next to one."""
    good, _ = make_pair(3, 9000, torch.bfloat16, width=9003)
    good[:, place] = torch.nan
    banned = torch.tensor([[-1], [place], [max(place - 1, 0)]])
    got, _, _ = sample_both(good, None, make_sampling_tensors(3, contrast_strength=0), banned)
    assert got.token.tolist() == [codes.NAN_GOOD] * 3


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_reads_and_instructions(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """V = 32,000, bfloat16, ten candidates; as many programs per row as 128 rows have on an A100, H100 or B200.

    The kernel reads 16 bytes per thread, every byte once except in chunks with candidates, and BAD at candidates only.
    """
    programs = triton_settings.PROGRAMS_PER_MULTIPROCESSOR * {80: 108, 90: 132, 100: 148}[sm] // 128
    monkeypatch.setattr(triton_settings, "PROGRAMS_PER_MULTIPROCESSOR", 1)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 2 * programs)
    vocab_size = 32_000
    good, bad = make_pair(2, vocab_size, torch.bfloat16, seed=1)
    for row in range(2):
        best = good[row].float().topk(10).indices
        good[row] -= 8
        good[row, best] = torch.linspace(9, 10, 10).bfloat16()
    got, wanted, launched = sample_both(good, bad, make_sampling_tensors(2, seed=4), sm=sm)
    assert got.token.equal(wanted.token)
    assert launched.grid == (2, programs)
    report = launched.report
    wide = report.traffic("good_ptr", "load", 16)
    assert wide.bytes == good.nbytes and wide.sectors_per_request == 16
    is_candidate = good.float() >= 7.6
    threads, place = triton_settings.THREADS, torch.arange(vocab_size)
    tile = threads * 8 * triton_settings.GROUPS
    chunk = place // tile * threads + place % (threads * 8) // 8
    for row in range(2):
        visited = torch.isin(chunk, chunk[is_candidate[row]])
        assert (torch.from_numpy(report.reads("good_ptr")[row].max(1))[~visited] == 1).all()
    assert int((report.reads("bad_ptr") > 0).all(2).sum()) == int(is_candidate.sum()) == 20
    assert report.thread_instructions / good.numel() <= 7.8


def test_settings_are_looked_up_at_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three ops look settings up, for their allocations and for their launches."""
    for name, value in dict(THREADS=64, GROUPS=2, CAPACITY=70, PROGRAMS_PER_MULTIPROCESSOR=3).items():
        monkeypatch.setattr(triton_settings, name, value)
    monkeypatch.setattr(triton_settings, "multiprocessors", lambda device: 2)
    good, bad = make_pair(2, 4099, torch.bfloat16)
    sampling = make_sampling_tensors(2, alpha=[0.1, 1e-3], seed=3)
    got, wanted, sampled = sample_both(good, bad, sampling)
    candidates, listed = on_device(triton_candidates.select_candidates, good, sampling.margin, None, 4099, 600)
    again, drawn = on_device(triton_candidates.sample_candidates, candidates, bad, sampling, 4099, False, False)
    assert got.token.equal(wanted.token) and again.token.equal(wanted.token)
    assert candidates.count[0] < 64 < 70 < candidates.count[1]
    assert [launched.grid for launched in (sampled, listed, drawn)] == [(2, 3), (2, 3), (2,)]  # room for 6 programs
    assert all(".reqntid 64" in launched.kernel.ptx for launched in (sampled, listed, drawn))
    constants = []
    with intercept(lambda function, grid, arguments, options: constants.append(arguments)):
        triton_sample.contrastive_sample(good, bad, sampling, None, 4099, *MASK, False)
        triton_candidates.select_candidates(good, sampling.margin, None, 4099, 600)
        triton_candidates.sample_candidates(candidates, bad, sampling, 4099, False, False)
    assert [given["T"] for given in constants] == [64] * 3
    assert [(given["R"], given["CAPACITY"]) for given in constants[:2]] == [(2, 70)] * 2


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Return whether tensors are equal, with NaN equal to NaN."""
    return all(torch.equal(x.nan_to_num(99), y.nan_to_num(99)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("sm", "dtype"), list(zip([80, 90, 100], DTYPES, strict=True)))
def test_select_candidates_and_sample_candidates(sm: int, dtype: torch.dtype) -> None:
    """Lists equal the reference's bit for bit; draws use BAD's rows, or BAD's gathered logits."""
    good, bad = make_pair(7, 4099, dtype, torch.float32, width=4103)
    good[2, 77] = torch.nan
    good[3] = -torch.inf
    good[5] = 0.5  # more candidates than any list holds
    alpha, top_k, top_p = [0.1, 3e-4, 0.01, 0.2, 1e-3, 1, 0.05], [0, 3, 0, 0, 5, 0, 0], [1, 1, 1, 1, 0.8, 1, 0.6]
    sampling = make_sampling_tensors(7, alpha=alpha, seed=sm, top_k=top_k, top_p=top_p)
    banned = torch.tensor([[-1, -1], [5, 6], [-1, -1], [0, 1], [int(good[4].argmax()), 4098], [3, 3], [9, -1]])
    problem = (good, sampling.margin, banned, 4099, 600)
    found, _ = on_device(triton_candidates.select_candidates, *problem, sm=sm)
    wanted = reference.select_candidates(*problem)
    assert same(found, wanted)
    assert found.count[1] > 128 and found.count[5] > 4000
    gathered = torch.where(wanted.token >= 0, bad.gather(1, wanted.token.clamp(min=0).long()), torch.nan)
    expected = reference.sample_candidates(wanted, bad, sampling, 4099, False, True)
    sound = expected.token >= 0
    for bad_logits, is_gathered in ((bad, False), (gathered, True)):
        drawn, _ = on_device(
            triton_candidates.sample_candidates, wanted, bad_logits, sampling, 4099, is_gathered, True, sm=sm
        )
        assert drawn.token.equal(expected.token)
        torch.testing.assert_close(drawn.logprob[sound], expected.logprob[sound], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("capacity", [1, 4, 1000])
def test_lists_of_any_capacity(capacity: int, programs: str) -> None:
    good, _ = make_pair(3, 9000, torch.float32)
    sampling = make_sampling_tensors(3, alpha=[0.1, 1e-4, 0])
    problem = (good, sampling.margin, None, 8999, capacity)
    assert same(on_device(triton_candidates.select_candidates, *problem)[0], reference.select_candidates(*problem))


METHODS = {
    "contrastive": dict(alpha=0.01),
    "contrastive_top_p": dict(alpha=0.005, top_p=0.7),
    "ancestral": dict(alpha=0, contrast_strength=0),
}


@pytest.mark.parametrize("method", METHODS)
def test_draws_follow_the_exact_distribution(method: str) -> None:
    """800 draws detect a strength that is 50 % off; test_sample_statistics.py draws more from other implementations."""
    good, bad = make_pair(1, 300, torch.float32, seed=8)
    bad = 0.5 * good + 0.3 * bad
    sampling = make_sampling_tensors(800, seed=11, position=3, **METHODS[method])
    one = make_sampling_tensors(1, **METHODS[method])
    scores = reference.contrastive_scores(good, bad, one, *MASK)
    exact = torch.softmax(reference.keep_top(scores, one.top_k, one.top_p), 1)[0]
    rest = (sampling, None, 300, *MASK, False)
    drawn, _ = on_device(triton_sample.contrastive_sample, good.expand(800, 300), bad.expand(800, 300), *rest)
    assert p_value(drawn.token.numpy(), exact.numpy()) > FALSE_ALARM
    if method == "contrastive":
        stronger = one._replace(contrast_strength=one.contrast_strength * 1.5)
        off = reference.contrastive_scores(good, bad, stronger, *MASK)
        assert p_value(drawn.token.numpy(), torch.softmax(off, 1)[0].numpy()) < FALSE_ALARM


FAULTS = {
    "the token is not stored": lambda ptx: remove(ptx, "st.global", len(find(ptx, "st.global")) - 1),
    "a chunk's maximum is not stored": lambda ptx: remove(ptx, "st.global", 0),
    "logits are read 16 bytes further": lambda ptx: shift_address(ptx, "ld.global.v4", 16, 0),
    "logits are read 2 bytes further": lambda ptx: shift_address(ptx, "ld.global.v4", 2, 0),
    "the last tile is not masked": lambda ptx: unguard(ptx, "ld.global.v4", 2 * triton_settings.GROUPS - 1),
    "no barriers": lambda ptx: "".join(line for line in ptx.splitlines(True) if "bar.sync" not in line),
    "arrivals do not acquire": lambda ptx: ptx.replace("atom.global.gpu.acq_rel", "atom.global.gpu.relaxed"),
    "no program counts as last": lambda ptx: remove(ptx, "atom.global"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_injected_faults_are_caught(fault: str) -> None:
    good, bad = make_pair(3, 9003, torch.bfloat16)  # a last tile of 811 tokens; rows begin 3 tokens past a group
    for row, best in enumerate((5, 4097, 9002)):  # candidates in the first chunk, in another program's, at the end
        good[row, best] = 9
    sampling = make_sampling_tensors(3, alpha=0.5, seed=1)
    expected = reference.contrastive_sample(good, bad, sampling, None, 9003, *MASK, False).token
    try:
        got, _, _ = sample_both(good, bad, sampling, mutate=FAULTS[fault])
    except (errors.Fault, LookupError) as error:
        assert isinstance(error, errors.Fault), "the fault found nothing to change"
        return
    assert not got.token.equal(expected)


def test_a_grid_that_is_too_large_is_caught() -> None:
    good, bad = make_pair(2, 100, torch.bfloat16)
    _, _, launched = sample_both(good, bad, make_sampling_tensors(2))
    with pytest.raises(errors.Fault):
        launch(launched.kernel, (3, 1), *launched.arguments.values())


@needs_interpreter
def test_source_in_tritons_interpreter() -> None:
    """Run in another process, since Triton's mode is fixed when a kernel is decorated."""
    code = """
import torch
from cdgen_kernels import make_sampling_tensors, reference
from cdgen_kernels.codes import CONSTANT, MASK, SHIFTED_GOOD
from cdgen_kernels.triton import candidates as triton_candidates
from cdgen_kernels.triton import sample as triton_sample
torch.manual_seed(1)
for dtype, sizes, modes in (
    (torch.float32, (5, 333), (MASK, CONSTANT, SHIFTED_GOOD)),
    (torch.float16, (70,), (MASK,)),
    (torch.bfloat16, (70,), (MASK,)),
):
    for size in sizes:
        for outside in modes:
            good, bad = (3 * torch.randn(3, size)).to(dtype), (2 * torch.randn(3, size)).to(dtype)
            cuts = {'temperature': [1, 0, 2], 'top_k': [0, 2, 0]}
            sampling = make_sampling_tensors(3, alpha=[0.1, 0.02, 1.0], seed=size, **cuts)
            banned = torch.tensor([[0, -1], [3, 2], [-1, -1]])
            rest = (sampling, banned, size, outside, -3.0, True)
            wanted, got = (m.contrastive_sample(good, bad, *rest) for m in (reference, triton_sample))
            assert got.token.equal(wanted.token), (dtype, size, outside, got, wanted)
            torch.testing.assert_close(torch.stack(got[1:]), torch.stack(wanted[1:]), rtol=1e-4, atol=1e-4)
        inputs = (good, sampling.margin, banned, size, 64)
        wanted, got = (m.select_candidates(*inputs) for m in (reference, triton_candidates))
        assert all(a.equal(b) for a, b in zip(wanted, got))
        expected = reference.sample_candidates(wanted, bad, sampling, size, False, False).token
        assert triton_candidates.sample_candidates(got, bad, sampling, size, False, False).token.equal(expected)
for dtype in (torch.float32, torch.bfloat16):
    good, bad = (2 * torch.randn(3, 333)).to(dtype), torch.randn(3, 333)
    sampling = make_sampling_tensors(3, alpha=0, contrast_strength=[1, 0.5, 1], seed=8)
    rest = (sampling, banned, 333, MASK, 0.0, False)
    wanted, got = (m.contrastive_sample(good, bad, *rest) for m in (reference, triton_sample))
    assert got.token.equal(wanted.token), (dtype, got, wanted)
    for logprobs in (False, True):
        sampling = make_sampling_tensors(3, alpha=0, contrast_strength=0, top_p=[1, 0.6, 1], top_k=[0, 0, 120], seed=8)
        rest = (sampling, banned, 333, MASK, 0.0, logprobs)
        wanted, got = (m.contrastive_sample(good, None, *rest) for m in (reference, triton_sample))
        assert got.token.equal(wanted.token), (dtype, logprobs, got, wanted)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
