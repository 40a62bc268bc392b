"""Attention gives the same results whether it reads a shared prefix once or for each sequence."""

from collections.abc import Sequence

import pytest
import torch

from cdgen import CompletionOutput, ContrastiveLM, SamplingParams
from cdgen.engine.shared_lengths import MIN_SHARED
from tests.helpers.engines import outputs_of
from tests.helpers.gpu_engines import N, Setup, drawn, on, params, requests

# Prefixes of one and several tiles of keys, a prompt of full pages only, and one that is too short to be shared.
LONG = [
    list(range(20, 20 + MIN_SHARED + 2)),
    [5, 6, 7],
    list(range(30, 30 + MIN_SHARED + 65)),
    list(range(40, 40 + MIN_SHARED + 32)),
]
NEW = 12


def run(setup: Setup, lm: ContrastiveLM, given: SamplingParams, shared: bool, **options: int) -> list[CompletionOutput]:
    """Decode continuations of LONG, and check which kinds of steps have graphs."""
    with pytest.MonkeyPatch.context() as patch:
        if not shared:
            patch.setattr("cdgen.engine.shared_lengths.MIN_SHARED", 10**6)
        paged = setup.backend(lm, given, prompts=LONG, **options)
        outputs = outputs_of(lm.pair, paged, requests(LONG), given)
    assert paged._graphs is not None
    assert (1 in {kind for kind, _ in paged._graphs.decode._graphs}) == shared
    paged.close()
    return outputs


@pytest.mark.parametrize("kind", ["checkpoint", "dropout"])
def test_float32_tokens_are_the_same(setup, kind) -> None:
    """float32 attention ignores shared lengths: both kinds of graphs draw the same tokens. Some sequences wait."""
    lm, sampled = setup.pair(kind), params(temperature=1.0, max_tokens=NEW)
    assert drawn(run(setup, lm, sampled, True, size=5)) == drawn(run(setup, lm, sampled, False, size=5))


@pytest.mark.parametrize("kind", ["checkpoint", "dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_log_probabilities_are_the_same_to_rounding(setup, dtype, kind) -> None:
    """GOOD's largest error against float64 is at most twice that without shared prefixes."""
    lm, sampled = setup.pair(kind, dtype), params(temperature=1.0, max_tokens=NEW, logprobs=True)
    exact = on(lm.pair.good.module, torch.device("cpu")).double()
    worst = {shared: largest_error(exact, run(setup, lm, sampled, shared)) for shared in (True, False)}
    assert worst[True] <= 2 * worst[False] + 1e-5, worst


def largest_error(exact: torch.nn.Module, outputs: Sequence[CompletionOutput]) -> float:
    """Return the largest error of GOOD's log-probabilities in the first continuation of each prompt."""
    found = []
    for prompt, output in zip(LONG, outputs[::N], strict=True):
        ids, tokens = torch.tensor([prompt + output.token_ids]), torch.tensor(output.token_ids).unsqueeze(1)
        with torch.inference_mode():
            wanted = exact(ids).logits[0, len(prompt) - 1 : -1].log_softmax(1).gather(1, tokens).squeeze(1).tolist()
        found += [abs(each.good - other) for each, other in zip(output.logprobs, wanted, strict=True)]
    return max(found)
