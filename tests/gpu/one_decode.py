"""A small decode without graphs, run in a separate process under compute-sanitizer."""

import os

import torch

from cdgen.engine.requests import Prompts, make_requests
from cdgen.engine.shared_lengths import MIN_SHARED
from tests.helpers.engines import outputs_of
from tests.helpers.gpu_engines import Setup, params


def main() -> None:
    """Decode two continuations of three tokens with each kind of BAD, with and without logits and a shared prefix."""
    device = torch.device("cuda", 0) if os.environ["CDGEN_TEST_DEVICE"] == "cuda" else torch.device("cpu")
    setup, outputs = Setup(device), 0
    for kind, dtype in (("checkpoint", torch.bfloat16), ("dropout", torch.float32)):
        lm = setup.pair(kind, dtype)
        for logprobs, length in ((False, 17), (True, 17), (False, MIN_SHARED + 9)):
            few, prompts = params(n=2, max_tokens=3, temperature=1.0, logprobs=logprobs), [list(range(5, 5 + length))]
            backend = setup.backend(lm, few, size=2, graphs=False, prompts=prompts)
            outputs = len(outputs_of(lm.pair, backend, make_requests(Prompts(prompts), [(0, 0), (0, 1)]), few))
    print(f"{outputs} continuations")


if __name__ == "__main__":
    main()
