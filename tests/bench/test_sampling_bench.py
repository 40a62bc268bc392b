"""The comparison of `cdgen bench`: wrong results are found and not timed, and the figures are those of the times."""

import math
from dataclasses import replace

import pytest
import torch

from cdgen.bench import sampling as bench_module
from cdgen.bench.check import DRAWS, check_draws, fault_of_draws, fault_of_fused, fault_of_rival
from cdgen.bench.logits import make_pair
from cdgen.bench.methods import FUSED, METHODS, Method
from cdgen.bench.rivals import Rival
from cdgen.bench.sampling import Bench, as_json
from cdgen.bench.timing import quartiles

CPU = torch.device("cpu")
PAIRS = [(method, name) for method in METHODS for name in (FUSED, *method.rivals)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a comparison on the CPU that compiles nothing and knows the bandwidth of a copy: 1 MB/s."""
    monkeypatch.setattr(bench_module, "copy_bandwidth", lambda timer, device: 1e6)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(bench_module, "RUNS", 5)
    return Bench(CPU, torch.float32)


@pytest.mark.parametrize(("method", "name"), PAIRS, ids=[f"{method.name}, {name}" for method, name in PAIRS])
def test_every_variant_draws_from_the_distribution_of_its_method(method: Method, name: str) -> None:
    sampling = method.sampling(64, CPU)
    call = method.fused(sampling) if name == FUSED else method.rivals[name]
    good, bad = make_pair(64, 3000, torch.bfloat16, CPU, seed=0)
    torch.manual_seed(0)
    try:
        tokens = call(good, bad)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    assert tokens.shape == (64,) and fault_of_rival(tokens, good, bad, sampling) is None
    assert check_draws(method, name, call, torch.float32, CPU) is None


def test_frequencies_of_another_distribution_are_a_fault() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    draws = torch.multinomial(p, DRAWS, replacement=True, generator=generator)
    assert fault_of_draws(draws, p) is None
    other = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)
    assert "chi-square" in (fault_of_draws(draws, other) or "")


def test_tokens_that_differ_from_the_reference_are_a_fault() -> None:
    method = METHODS[0]
    sampling = method.sampling(8, CPU)
    good, bad = make_pair(8, 200, torch.float32, CPU, seed=0)
    tokens = method.fused(sampling)(good, bad)
    assert fault_of_fused(tokens, good, bad, sampling) is None
    tokens[3] += 1
    assert fault_of_fused(tokens, good, bad, sampling) == "1 of 8 tokens differ from the reference"


def with_rivals(**rivals: Rival) -> Method:
    """Return a method that is compared with the given functions."""
    return replace(METHODS[1], rivals=rivals)


def test_variants_that_are_wrong_or_absent_are_not_timed(bench: Bench) -> None:
    def least_likely(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        return good.argmin(1)

    def most_likely(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        return good.argmax(1)

    def not_installed(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        raise ModuleNotFoundError("no flashinfer")

    def broken(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image\nfor this device")

    right = METHODS[1].rivals["torch eager"]
    method = with_rivals(right=right, least=least_likely, most=most_likely, absent=not_installed, broken=broken)
    case = bench.case(method, 4, 300)
    assert [one.name for one in case.timed] == [FUSED, "right", "right, torch.compile"]
    assert case.absent["least"] == "wrong result, not timed: 4 of 4 tokens have probability 0"
    assert case.absent["most"].startswith("wrong result, not timed: the frequencies of 4096 draws are wrong")
    assert case.absent["absent"] == "not installed"
    assert case.absent["broken"] == "cannot run: no kernel image"
    assert sum("wrong result" in line for line in case.lines()) == 2


def test_figures_follow_from_the_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {FUSED: [1.0, 2.0, 3.0], "right": [4.0, 6.0, 8.0], "right, torch.compile": [2.0, 2.0, 2.0]}
    monkeypatch.setattr(bench._timer, "time", lambda variants, inputs, runs: seconds)
    case = bench.case(with_rivals(right=METHODS[1].rivals["torch eager"]), 2, 250)
    assert case.least_bytes == 2 * 250 * 4
    assert [one.ratio for one in case.timed] == [1, 3, 1]
    assert case.timed[1].seconds == quartiles(seconds["right"]) == (5, 6, 7)
    assert math.isclose(case.timed[0].share_of_copy, 2000 / 2 / 1e6)
    record = as_json(bench, [case])
    assert record["cases"][0]["timed"][1]["ratio"] == 3 and record["environment"]["copy, bytes/s"] == 1e6


def test_the_card_that_is_named_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA events and the timer's buffer belong to the current device."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(bench_module, "ColdTimer", object)
    monkeypatch.setattr(bench_module, "copy_bandwidth", lambda timer, device: 1e6)
    for name in ("cuda", "cuda:1"):
        Bench(torch.device(name), torch.float32)
    assert chosen == [torch.device("cuda:1")], "without a number, it is the current one"
