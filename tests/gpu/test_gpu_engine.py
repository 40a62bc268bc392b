"""On a GPU the engine draws the same tokens as on the CPU.

float32 sums in another order change logits by about 1e-6 of their size, far less than the gaps between the scores of
these models. If tokens are sampled, about one draw in 10^5 may still differ, and with it the rest of its continuation.
"""

from collections.abc import Callable

import pytest
import torch

from cdgen import ContrastiveLM
from cdgen.engine.backend import Round
from cdgen.engine.outputs import CompletionOutput
from tests.helpers.engines import outputs_of
from tests.helpers.families import family
from tests.helpers.gpu_engines import NEW, PROMPTS, N, drawn, on, params, requests

ENDS = tuple(range(40, 60))  # 20 of 1003 tokens, so that sequences end at any time
SIXTEEN_BITS = [torch.bfloat16, torch.float16]


def assert_same_tokens(found: list[CompletionOutput], expected: list[CompletionOutput], may_differ: int = 0) -> None:
    differing = sum(one != other for one, other in zip(drawn(found), drawn(expected), strict=True))
    assert differing <= may_differ, f"{differing} of {len(expected)} continuations differ"


@pytest.mark.parametrize("kind", ["checkpoint", "dropout", "layers"])
def test_greedy_tokens_match_the_cpu(setup, kind) -> None:
    """The mask of the dropout BAD is the same function on every device."""
    greedy = params()
    assert_same_tokens(setup.run(setup.pair(kind), greedy), setup.on_cpu(kind, greedy))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"contrast_strength": 0, "alpha": 0},
        {"top_k": 5},
        {"top_p": 0.8},
        {"outside_head": "shifted_good"},
        {"good_weight": 1.5, "contrast_strength": 0.5, "alpha": 0.01},
    ],
    ids=str,
)
def test_sampled_tokens_match_the_cpu(setup, changes) -> None:
    sampled = params(temperature=0.8, seed=2**63 - 5, **changes)
    expected = setup.on_cpu("checkpoint", sampled)
    assert len({tuple(output.token_ids) for output in expected}) > len(expected) // 2
    assert_same_tokens(setup.run(setup.pair(), sampled), expected, may_differ=1)


def test_finished_sequences_and_refills_match_the_cpu(setup) -> None:
    """Five rows for 32 sequences: graphs of several sizes with unused rows, and a prefill after most steps."""
    greedy = params(stop_token_ids=ENDS, temperature=0.8)
    expected = setup.on_cpu("checkpoint", greedy)
    assert len({len(output.token_ids) for output in expected}) > 5
    assert_same_tokens(setup.run(setup.pair(), greedy, size=5), expected, may_differ=1)


@pytest.mark.parametrize("kind", ["checkpoint", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BITS], ids=str)
def test_graphs_draw_what_single_launches_draw(setup, dtype, kind) -> None:
    """All tokens are equal: in batches of one size, the same kernels compute the same numbers."""
    lm, sampled = setup.pair(kind, dtype), params(temperature=1.0)
    expected = setup.run(lm, sampled, graphs=False)
    for steps in (1, 4, 7):
        assert_same_tokens(setup.run(lm, sampled, steps=steps), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_candidates_that_overflow_their_list(setup, dtype, monkeypatch) -> None:
    """The graph reports such rows by their token, which is drawn again from a longer list."""
    lm, sampled = setup.pair(dtype=dtype), params(temperature=1.0, alpha=1e-3)
    expected = setup.run(lm, sampled)
    monkeypatch.setattr("cdgen.engine.paged_backend.CAPACITY", 8)
    assert_same_tokens(setup.run(lm, sampled), expected, may_differ=dtype != torch.float32)


def test_launching_does_not_wait_for_the_device(setup, monkeypatch) -> None:
    """Prefills, refills, and tokens that are drawn again included; the host waits only when it reads a round."""
    if setup.device.type != "cuda":
        pytest.skip("only torch for CUDA can report what waits")
    monkeypatch.setattr("cdgen.engine.paged_backend.CAPACITY", 8)
    sampled = params(temperature=1.0, alpha=1e-3, stop_token_ids=ENDS, min_tokens=2, no_repeat_ngram_size=3)
    lm = setup.pair()
    paged = setup.backend(lm, sampled, size=8)
    outputs_of(lm.pair, paged, requests(), sampled)  # captures graphs, which waits

    def watched(call: Callable[..., Round]) -> Callable[..., Round]:
        def checked(*given: object) -> Round:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return call(*given)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return checked

    for name in ("start", "launch", "redraw"):
        monkeypatch.setattr(paged, name, watched(getattr(paged, name)))
    outputs_of(lm.pair, paged, requests(), sampled)


def test_log_probabilities_match_the_cpu(setup) -> None:
    sampled = params(temperature=1.0, logprobs=True)
    found, expected = setup.run(setup.pair(), sampled), setup.on_cpu("checkpoint", sampled)
    assert_same_tokens(found, expected, may_differ=1)
    for one, other in zip(found, expected, strict=True):
        if one.token_ids == other.token_ids:
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_sixteen_bit_errors_are_within_twice_those_of_transformers(setup, dtype) -> None:
    """The error of GOOD's log-probabilities against float64 is at most twice that of transformers."""
    lm = setup.pair(dtype=dtype)
    outputs = setup.run(lm, params(max_tokens=12, logprobs=True))
    module = lm.pair.good.module
    exact = on(module, torch.device("cpu")).double()
    own, usual = [], []
    for prompt, output in zip(PROMPTS, outputs[::N], strict=True):
        ids, drawn = torch.tensor([prompt + output.token_ids]), torch.tensor(output.token_ids).unsqueeze(1)
        with torch.inference_mode():
            logits = [exact(ids).logits, module(ids.to(setup.device)).logits.cpu().float()]
        wanted, found = (x[0, len(prompt) - 1 : -1].log_softmax(1).gather(1, drawn).squeeze(1).tolist() for x in logits)
        usual += [one - other for one, other in zip(found, wanted, strict=True)]
        own += [each.good - other for each, other in zip(output.logprobs, wanted, strict=True)]
    assert max(map(abs, own)) <= 2 * max(map(abs, usual)) + 1e-5


def test_banned_tokens_are_not_drawn(setup) -> None:
    """No n-gram occurs twice, and no stop token occurs before min_tokens, as on the CPU."""
    held = params(no_repeat_ngram_size=2, min_tokens=NEW // 2, stop_token_ids=ENDS)
    found = setup.run(setup.pair(), held)
    assert_same_tokens(found, setup.on_cpu("checkpoint", held))
    for output in found:
        pairs = list(zip(output.token_ids, output.token_ids[1:], strict=False))
        assert len(set(pairs)) == len(pairs)
        assert len(output.token_ids) > NEW // 2 and not set(output.token_ids[: NEW // 2]) & set(ENDS)


def test_a_row_with_nan_ends_alone(setup) -> None:
    """The embedding of token 7 is NaN, which one model then gives for every text that holds it."""
    expected = setup.run(setup.pair(), params())
    for role in ("good", "bad"):
        lm = setup.pair()
        getattr(lm.pair, role).module.model.embed_tokens.weight.data[7] = torch.nan
        for at, (found, healthy) in enumerate(zip(setup.run(lm, params()), expected, strict=True)):
            if 7 in PROMPTS[at // N]:
                assert (found.token_ids, found.finish_reason) == ([], "error")
                assert f"{role.upper()}'s logits contain NaN" in found.error
            elif 7 not in healthy.token_ids:
                assert (found.token_ids, found.finish_reason, found.error) == (healthy.token_ids, "length", None)


def test_other_families_run_in_static_batches(setup) -> None:
    """transformers' own forward on the device, followed by the fused sampling op."""
    greedy = params(max_tokens=12, n=1)
    outputs = []
    for device in (torch.device("cpu"), setup.device):
        lm = ContrastiveLM(on(family("gpt2"), device), on(family("gpt2", 1), device), max_num_seqs=8)
        assert lm.static_reason
        prompts = [[token % 300 for token in prompt] for prompt in PROMPTS]
        outputs.append([[output.token_ids for output in r.outputs] for r in lm.generate(prompts, greedy)])
    assert outputs[0] == outputs[1]


def test_generate_as_users_call_it(setup) -> None:
    """ContrastiveLM's defaults on this device draw the same tokens as the engine with the same batch size."""
    lm, sampled = setup.pair(dtype=torch.bfloat16), params(temperature=1.0)
    lm.max_num_seqs = 32
    found = [output.token_ids for request in lm.generate(PROMPTS, sampled) for output in request.outputs]
    expected = setup.run(lm, sampled)
    assert found == [output.token_ids for output in expected]
    assert all(len(tokens) == NEW for tokens in found)


def test_models_on_a_device_other_than_the_current_one(setup) -> None:
    """Triton launches on the current device."""
    if setup.device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")
    greedy = params()
    setup.device = torch.device("cuda", 1)
    with torch.cuda.device(0):
        assert_same_tokens(setup.run(setup.pair(), greedy), setup.on_cpu("checkpoint", greedy))
