"""The noise of a sequence is keyed by its prompt's content: any split, order or subset of prompts writes the same."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cdgen import ContrastiveLM, SamplingParams, sequence_number
from cdgen.engine.requests import Prompts, id_number
from cdgen.errors import InputError
from cdgen_kernels import contrastive_sample, make_sampling_tensors
from tests.helpers.engines import continued

PROMPTS = [[0, 5, 6, 7], [0, 9, 9, 9], [0, 5, 6, 7], [0, 11, 12], [0, 8], [0, 5, 6, 7], [0, 13, 14, 15, 16]]
EQUAL = (0, 2, 5)  # places of the prompt that occurs three times
N = 3

Tokens = tuple[tuple[int, ...], ...]


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"n": N, "max_tokens": 20, "ignore_eos": True, "seed": 4} | changes)


@pytest.fixture(scope="module", params=["paged", "static", "dropout"])
def lm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> ContrastiveLM:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "static":
            patch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
        bad = {"dropout": 0.5} if request.param == "dropout" else {"bad": folders["bad"]}
        return ContrastiveLM(folders["good"], **bad)


def texts(lm: ContrastiveLM, prompts: list[list[int]], **changes: Any) -> list[Tokens]:
    """Return the tokens of each prompt's continuations."""
    requests = lm.generate(prompts, params(**changes))
    return [tuple(tuple(output.token_ids) for output in request.outputs) for request in requests]


def test_any_order_writes_the_same_texts(lm: ContrastiveLM) -> None:
    """Equal prompts have different texts, which appear in the order of their occurrence."""
    expected = texts(lm, PROMPTS)
    assert len({text for continuations in expected for text in continuations}) == N * len(PROMPTS), "all differ"
    for seed in range(3):
        order = random.Random(seed).sample(range(len(PROMPTS)), len(PROMPTS))
        shuffled = texts(lm, [PROMPTS[at] for at in order])
        assert sorted(shuffled) == sorted(expected)
        assert [shuffled[at] for at in range(len(order)) if order[at] in EQUAL] == [expected[at] for at in EQUAL]


def test_any_split_or_subset_writes_the_same_texts(lm: ContrastiveLM) -> None:
    expected = texts(lm, PROMPTS)
    for at in (1, 3, 4):
        assert texts(lm, PROMPTS[:at]) == expected[:at]
        # Occurrences are counted per call, so equal prompts in another call write the texts of the first ones.
        again = texts(lm, PROMPTS[at:])
        assert [one for one, ids in zip(again, PROMPTS[at:], strict=True) if ids != PROMPTS[0]] == [
            one for one, ids in zip(expected[at:], PROMPTS[at:], strict=True) if ids != PROMPTS[0]
        ]
        equal = [one for one, ids in zip(again, PROMPTS[at:], strict=True) if ids == PROMPTS[0]]
        assert equal == [expected[at] for at in EQUAL[: len(equal)]]
    assert texts(lm, [PROMPTS[4]]) == [expected[4]]


def test_a_job_in_any_pieces_writes_the_same_texts(folders: dict[str, Path]) -> None:
    """Equal prompts keep their numbers in any call of a job, as in the shards of a corpus."""
    lm = ContrastiveLM(folders["good"], folders["bad"])
    pairs = [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(N)]
    prompts = Prompts(PROMPTS)
    expected = [output.token_ids for output in continued(lm, prompts, pairs, params())]
    for size in (1, 4, 10):
        pieces = [pairs[at : at + size] for at in range(0, len(pairs), size)]
        assert [output.token_ids for piece in pieces for output in continued(lm, prompts, piece, params())] == expected


def test_the_noise_of_a_seed_does_not_depend_on_the_other_seeds(folders: dict[str, Path]) -> None:
    """Equal prompts are told apart by their names, so any share of a corpus can be decoded alone, in any order."""
    lm = ContrastiveLM(folders["good"], folders["bad"])
    names = [f"seed {at}" for at in range(len(PROMPTS))]
    pairs = [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(N)]
    expected = [output.token_ids for output in continued(lm, Prompts(PROMPTS, names), pairs, params())]
    assert len(set(map(tuple, expected))) == len(expected), "all differ"
    for share in ([0], [5], [6, 5, 2], [2, 0]):
        prompts = Prompts([PROMPTS[at] for at in share], [names[at] for at in share])
        found = continued(lm, prompts, [(at, index) for at in range(len(share)) for index in range(N)], params())
        assert [output.token_ids for output in found] == [
            expected[at * N + index] for at in share for index in range(N)
        ]


def test_different_prompts_share_no_noise(good: LlamaForCausalLM) -> None:
    """Two halves of a list of prompts, one seed, and a model that gives the same logits everywhere.

    Equal noise would draw equal tokens, so no token may agree more often than it does by chance, 1 in 300.
    """
    flat = type(good)(good.config).eval()
    flat.lm_head.weight.data.zero_()
    lm = ContrastiveLM(flat)
    halves = [[[half, at] for at in range(20)] for half in (10, 20)]
    first, second = (
        np.array([one[0] for one in texts(lm, half, n=1, max_tokens=50, contrast_strength=0.0)]) for half in halves
    )
    assert (first == second).mean() < 0.03 and (first[1:] == first[:-1]).mean() < 0.03


def test_a_loop_of_ones_own_draws_the_texts_of_the_engine(good: LlamaForCausalLM, bad: LlamaForCausalLM) -> None:
    """Two continuations of equal prompts."""
    expected = ContrastiveLM(good, bad).generate([PROMPTS[0]] * 2, params(n=2))
    for occurrence in range(2):
        for continuation in range(2):
            ids = list(PROMPTS[0])
            sampling = make_sampling_tensors(
                1,
                alpha=0.1,
                contrast_strength=1.0,
                seed=4,
                sequence=sequence_number(ids, continuation=continuation, occurrence=occurrence),
                position=len(ids),
            )
            with torch.inference_mode():
                for _ in range(20):
                    logits = [model(torch.tensor([ids])).logits[:, -1] for model in (good, bad)]
                    ids.append(int(contrastive_sample(*logits, sampling).token))
                    sampling.position.add_(1)
            assert ids[len(PROMPTS[0]) :] == expected[occurrence].outputs[continuation].token_ids


def test_the_loop_in_the_docs(good: LlamaForCausalLM, bad: LlamaForCausalLM) -> None:
    """Its assertion compares every token with the engine's."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")
    *_, block = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"good": good, "bad": bad}
    exec(compile(block, "docs/engine.md", "exec"), names)
    assert names["continuation"] == 1 and names["ids"].shape[1] > 5


def test_the_number_is_a_function_of_the_content() -> None:
    number = sequence_number([5, 6])
    assert 0 <= number < 2**63 and sequence_number((5, 6)) == number
    assert sequence_number(np.array([5, 6])) == sequence_number(torch.tensor([5, 6])) == number
    others = [([5], 6, 0), ([5, 6, 0], 0, 0), ([6, 5], 0, 0), ([5, 6], 1, 0), ([5, 6], 0, 1), ([], 0, 0)]
    assert len({number, *(sequence_number(*other) for other in others)}) == 1 + len(others)
    assert list(Prompts(PROMPTS).occurrences) == [0, 0, 1, 0, 0, 2, 0]
    some = Prompts(PROMPTS, ["a", None, None, None, None, None, None])  # the first of three equal prompts has an id
    assert list(some.occurrences) == [id_number("a"), 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("arguments", [([1.5],), ([2**63],), (["a"],), ([5], 1.5), ([5], 0, 10**400)], ids=str)
def test_what_is_no_whole_number_of_64_bits_has_no_number(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="token_ids, continuation, occurrence: must be whole numbers of 64 bits"):
        sequence_number(*arguments)


def test_equal_prompts_are_counted_once_per_job(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus of a million seeds calls continue_sequences for every shard."""
    lm, prompts, seen = ContrastiveLM(folders["good"], folders["bad"]), Prompts([[at] for at in range(200)]), []
    from cdgen.engine import requests

    monkeypatch.setattr(requests, "sequence_number", lambda *given: seen.append(given) or sequence_number(*given))
    continued(lm, prompts, [(7, 0), (8, 0)], params(max_tokens=2))
    assert {tuple(ids) for ids, *_ in seen} == {(7,), (8,)}


def test_each_finished_sequence_is_reported_with_its_place(lm: ContrastiveLM) -> None:
    """Sequences end at different times, and static batches are several."""
    lm.max_num_seqs, before = 4, lm.max_num_seqs
    pairs = [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(N)]
    seen: list[tuple[int, Any]] = []
    stops = params(stop_token_ids=tuple(range(40, 120)), alpha=0.01)
    lm.continue_sequences(Prompts(PROMPTS), pairs, stops, on_finished=lambda *finished: seen.append(finished))
    lm.max_num_seqs = before
    assert [place for place, _ in seen] != list(range(len(pairs))), "they must end in another order"
    assert len(dict(seen)) == len(seen) == len(pairs)
    assert all(output.index == pairs[place][1] for place, output in seen)
    expected = [output for request in lm.generate(PROMPTS, stops) for output in request.outputs]
    assert [output for _, output in sorted(seen, key=lambda item: item[0])] == expected
