"""A small decode without graphs, run in a separate process under compute-sanitizer."""

import os

import torch

from cdgen.engine.requests import Prompts, make_requests
from tests.helpers.engines import outputs_of
from tests.helpers.gpu_engines import Setup, params


def main() -> None:
    """Decode two continuations of three tokens with each kind of BAD, with and without logits."""
    device = torch.device("cuda", 0) if os.environ["CDGEN_TEST_DEVICE"] == "cuda" else torch.device("cpu")
    setup, outputs = Setup(device), 0
    for kind, dtype in (("checkpoint", torch.bfloat16), ("dropout", torch.float32)):
        lm = setup.pair(kind, dtype)
        for logprobs in (False, True):
            few = params(n=2, max_tokens=3, temperature=1.0, logprobs=logprobs)
            requests = make_requests(Prompts([list(range(5, 22))]), [(0, 0), (0, 1)])
            outputs = len(outputs_of(lm.pair, setup.backend(lm, few, size=2, graphs=False), requests, few))
    print(f"{outputs} continuations")


if __name__ == "__main__":
    main()
