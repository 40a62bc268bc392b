"""One small decode without graphs, in a process of its own, for compute-sanitizer to watch."""

import os
from collections import deque

import torch

from cdgen.engine.engine import Engine, Request
from tests.helpers.gpu_engines import Setup, params


def main() -> None:
    """Two texts of three tokens, of each kind of BAD, with and without logits."""
    device = torch.device("cuda", 0) if os.environ["CDGEN_TEST_DEVICE"] == "cuda" else torch.device("cpu")
    setup, texts = Setup(device), 0
    for kind, dtype in (("checkpoint", torch.bfloat16), ("dropout", torch.float32)):
        lm = setup.pair(kind, dtype)
        for logprobs in (False, True):
            few = params(n=2, max_tokens=3, temperature=1.0, logprobs=logprobs)
            request = Request(list(range(5, 22)), deque([(0, 0), (1, 1)]), 0)
            texts = len(Engine(lm.pair, setup.backend(lm, few, size=2, sync_every=0), [request], few).run())
    print(f"{texts} texts")


if __name__ == "__main__":
    main()
