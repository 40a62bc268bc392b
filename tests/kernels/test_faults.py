"""Rows for which no token can be drawn: the same code in every implementation, and the other rows are not affected."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cdgen_kernels import (
    Candidates,
    RowFault,
    SamplingTensors,
    contrastive_sample,
    gather_logits,
    make_sampling_tensors,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
)
from cdgen_kernels.codes import (
    CANDIDATES_OVERFLOW,
    FAULTS,
    INVALID_CANDIDATES,
    INVALID_PARAMETERS,
    NAN_BAD,
    NAN_GOOD,
    NOTHING_POSSIBLE,
)
from tests.helpers.implementations import (
    IMPLEMENTATIONS,
    run_sample,
    run_sample_candidates,
    run_select_candidates,
)

BATCH, VOCAB, WIDTH, CAPACITY = 5, 60, 16, 50
NAN, INF = math.nan, math.inf


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states [BATCH, WIDTH] and output layers [VOCAB, WIDTH] of both models, in whole numbers.

    Every matrix product is then exact, so that logits and hidden states must give the same tokens.
    """
    shapes = [(BATCH, WIDTH), (VOCAB, WIDTH)] * 2
    return tuple(
        torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
        for seed, shape in enumerate(shapes)
    )


def without(x: Tensor, row: int) -> Tensor:
    return torch.cat([x[:row], x[row + 1 :]])


# ------------------------------------------------------------------------------------------------ faults as values


@pytest.mark.parametrize(
    ("code", "row"), [(NAN_GOOD, 0), (NOTHING_POSSIBLE, 2), (NAN_BAD, 4), (CANDIDATES_OVERFLOW, 1)]
)
def test_a_faulty_row_is_a_code_and_the_others_draw_the_tokens_of_a_batch_without_it(code, row) -> None:
    """All four ops that report faults, and every way through them, in every implementation."""
    good_hidden, good_layer, bad_hidden, bad_layer = problem()
    sampling = make_sampling_tensors(BATCH, alpha=0.2, seed=4, top_k=[0, 3, 0, 0, 2])
    rest = SamplingTensors(*(without(x, row) for x in sampling))
    wanted = contrastive_sample(without(good_hidden, row) @ good_layer.T, without(bad_hidden, row) @ bad_layer.T, rest)

    capacity = CAPACITY
    good, bad, banned = good_hidden @ good_layer.T, bad_hidden @ bad_layer.T, torch.full((BATCH, VOCAB), -1)
    if code == NAN_GOOD:
        good_hidden[row, 0] = good[row, 0] = NAN
    elif code == NOTHING_POSSIBLE:
        banned[row] = torch.arange(VOCAB)
    elif code == NAN_BAD:
        bad_hidden[row, 0] = bad[row] = NAN
    else:
        sampling.margin[row] = INF
        capacity = VOCAB - 1

    def check(token: Tensor) -> None:
        assert token[row] == code and without(token, row).equal(wanted.token)

    options: dict[str, Any] = {"banned": banned, "capacity": capacity, "raise_faults": False}
    lists = select_candidates(good, sampling, **options)
    from_hidden = select_candidates_linear(good_hidden, good_layer, sampling, **options)
    for found in (lists, from_hidden):
        counts = {NAN_GOOD: NAN_GOOD, NOTHING_POSSIBLE: NOTHING_POSSIBLE, CANDIDATES_OVERFLOW: VOCAB}
        assert found.count[row] == counts.get(code, found.count[row].abs())
        check(sample_candidates(found, bad, sampling, raise_faults=False).token)
        logits = gather_logits(bad_hidden, bad_layer, found)
        gathered: dict[str, Any] = {"gathered": True, "vocab_size": VOCAB}
        check(sample_candidates(found, logits, sampling, **gathered, raise_faults=False).token)
        with pytest.raises(RowFault, match=FAULTS[code][:30]) as caught:
            sample_candidates(found, logits, sampling, **gathered)
        assert caught.value.row == row
    for implementation in IMPLEMENTATIONS:
        margin = sampling.margin
        found = run_select_candidates(implementation, good, margin, banned, VOCAB, capacity)
        check(run_sample_candidates(implementation, found, bad, sampling, VOCAB, False).token)
        if code != CANDIDATES_OVERFLOW:
            check(run_sample(implementation, good, bad, sampling, banned=banned).token)
    if code != CANDIDATES_OVERFLOW:
        check(contrastive_sample(good, bad, sampling, banned=banned, raise_faults=False).token)
        with pytest.raises(RowFault, match=f"row {row}: "):
            contrastive_sample(good, bad, sampling, banned=banned)


@pytest.mark.parametrize("outside", ["mask", "shifted_good", -3.0])
def test_the_other_rows_keep_their_log_probabilities(outside) -> None:
    good_hidden, good_layer, bad_hidden, bad_layer = problem()
    good, bad, sampling = good_hidden @ good_layer.T, bad_hidden @ bad_layer.T, make_sampling_tensors(BATCH)
    options: dict[str, Any] = {"outside_head": outside, "logprobs": True}
    wanted = contrastive_sample(good, bad, sampling, **options)
    good[3, 7] = NAN
    got = contrastive_sample(good, bad, sampling, **options, raise_faults=False)
    assert got.token[3] == NAN_GOOD
    for x, y in zip(got, wanted, strict=True):
        assert without(x, 3).equal(without(y, 3))


# --------------------------------------------------------------------------------------- parameters edited by hand


@pytest.mark.parametrize("value", [NAN, -1.0, INF, -INF, 0.0, 2.0, -(2**31)])
@pytest.mark.parametrize("field", SamplingTensors._fields)
def test_an_edited_parameter_draws_or_is_reported(field, value) -> None:
    """A row's parameters may hold anything; other rows are not affected. Only these values are in range."""
    allowed = {
        "margin": value >= 0,
        "good_weight": 0 <= value < INF,
        "contrast_strength": math.isfinite(value),
        "temperature": 0 <= value < INF,
        "top_p": 0 < value <= 1,
        "top_k": value >= 0,
    }.get(field, True)
    good_hidden, good_layer, bad_hidden, bad_layer = problem()
    good, bad = good_hidden @ good_layer.T, bad_hidden @ bad_layer.T
    sampling = make_sampling_tensors(BATCH, alpha=0.1, top_k=700, top_p=0.9)
    wanted = contrastive_sample(good, bad, sampling).token
    lists = select_candidates(good, sampling)
    column = getattr(sampling, field)
    if not column.is_floating_point() and not math.isfinite(value):
        return
    column[2] = value
    for outside in ("mask", "shifted_good", -20.0):
        tokens = [run_sample(name, good, bad, sampling, outside_head=outside).token for name in IMPLEMENTATIONS]
        assert all(x.equal(tokens[0]) for x in tokens)
        assert (tokens[0][2] >= 0) == allowed and (allowed or tokens[0][2] == INVALID_PARAMETERS)
        if outside == "mask":
            assert without(tokens[0], 2).equal(without(wanted, 2))
    for name in IMPLEMENTATIONS:
        from_list = run_sample_candidates(name, lists, bad, sampling, VOCAB, True).token
        assert (from_list[2] >= 0) == (allowed or field == "margin")  # a list has no margin
        count = run_select_candidates(name, good, sampling.margin, None, VOCAB, CAPACITY).count
        assert (count[2] == INVALID_PARAMETERS) == (field == "margin" and not allowed)
    if not allowed:
        with pytest.raises(RowFault, match="row 2: a sampling parameter is NaN or out of the range"):
            contrastive_sample(good, bad, sampling)


# ---------------------------------------------------------------------------------------- candidates made by hand


def lists(
    token: list[int], logit: list[float] | None = None, count: int | None = None, best: float = 3.0
) -> Candidates:
    """Return two lists of candidates: a sound one, and the given one, padded to a capacity of 4."""
    logit = logit or [3.0, 2.0, 1.0, 0.5][: len(token)]
    ids = torch.tensor([[1, 5, 7, -1], token + [-1] * (4 - len(token))], dtype=torch.int32)
    logits = torch.tensor([[3.0, 2.0, 1.0, -INF], logit + [-INF] * (4 - len(token))])
    counts = torch.tensor([3, len(token) if count is None else count], dtype=torch.int32)
    return Candidates(ids, logits, counts, torch.tensor([3.0, best]))


HAND_MADE = [
    (lists([1, 5, 49]), 0),
    (lists([1, 5, 50]), INVALID_CANDIDATES),  # BAD has 50 logits
    (lists([1, 5, 2**31 - 1]), INVALID_CANDIDATES),
    (lists([-1, 5, 7]), INVALID_CANDIDATES),
    (lists([-(2**31), 5, 7]), INVALID_CANDIDATES),
    (lists([1, 5], count=3), INVALID_CANDIDATES),  # the third is padding
    (lists([1, 5, 7, 9], count=5), CANDIDATES_OVERFLOW),
    (lists([1, 5, 7], count=0), INVALID_CANDIDATES),
    (lists([1, 5, 7], count=-77), INVALID_CANDIDATES),  # no code
    (lists([1, 5, 7], count=NAN_GOOD), NAN_GOOD),
    (lists([7, 5, 1]), INVALID_CANDIDATES),
    (lists([5, 5, 7]), INVALID_CANDIDATES),
    (lists([1, 5, 7], [3.0, NAN, 1.0]), INVALID_CANDIDATES),
    (lists([1, 5, 7], [INF, 2.0, 1.0]), INVALID_CANDIDATES),  # the maximum is finite
    (lists([1, 5, 7], [3.0, 2.0, 1.0], best=NAN), INVALID_CANDIDATES),
    (lists([1, 5, 7], [3.0, 2.0, 1.0], best=-INF), INVALID_CANDIDATES),
    (lists([1, 5, 7], [INF, INF, INF], best=INF), 0),
    (lists([1, 5, 7], [INF, 2.0, INF], best=INF), INVALID_CANDIDATES),
    (lists([1, 5, 7], [3.0, -INF, 1.0]), 0),  # a candidate that has been excluded
    (lists([1, 5, 7], [-INF, -INF, -INF]), NOTHING_POSSIBLE),
]


@pytest.mark.parametrize(("made", "code"), HAND_MADE)
def test_a_list_made_by_hand_draws_or_is_reported(made, code) -> None:
    bad = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    for top_k, top_p, weight in [(0, 1.0, 1.0), (2, 0.8, 0.0)]:
        sampling = make_sampling_tensors(2, top_k=top_k, top_p=top_p, good_weight=weight)
        for implementation in IMPLEMENTATIONS:
            for logits, is_gathered in ((bad, False), (bad[:, :4].contiguous(), True), (None, False)):
                token = run_sample_candidates(implementation, made, logits, sampling, 50, True, is_gathered).token
                assert token[0] in (1, 5, 7)
                assert token[1] in (made.token[1] if code == 0 else [code])
    if code:
        with pytest.raises(RowFault, match="row 1: "):
            sample_candidates(made, bad, make_sampling_tensors(2))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_do_not_depend_on_an_edited_maximum(implementation) -> None:
    """Differences to a maximum of 1e17 would round to the same score."""
    good = torch.randn(300, 30, generator=torch.Generator().manual_seed(0))
    sampling = make_sampling_tensors(300, alpha=0)
    found = run_select_candidates(implementation, good, sampling.margin, None, 30, 30)
    wanted = run_sample_candidates(implementation, found, None, sampling, 30, True)
    for best in (1e17, -1e17, torch.finfo(torch.float32).max):
        edited = found._replace(max=torch.full((300,), best))
        drawn = run_sample_candidates(implementation, edited, None, sampling, 30, True)
        assert drawn.token.equal(wanted.token)
        torch.testing.assert_close(drawn.logprob, wanted.logprob)


def test_gather_logits_refuses_a_token_that_the_layer_does_not_have() -> None:
    hidden, weight = torch.randn(2, 4), torch.randn(50, 4)
    for token in ([1, 5, 60], [1, 5, -3]):
        with pytest.raises(RuntimeError, match=r"token -?\d+, which is out of range|out of bounds") as caught:
            gather_logits(hidden, weight, lists(token))
        assert "\n" not in str(caught.value)
    assert gather_logits(hidden, weight, lists([1, 60, 70], count=1))[1, 1:].isneginf().all()  # they are past the end
