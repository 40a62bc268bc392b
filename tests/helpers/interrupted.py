"""Interrupt calls of a ContrastiveLM with SIGINT at random times; tests/engine/test_interrupted.py runs this file.

Arguments: the folder of GOOD, "paged" or "static", and the number of signals for each method. BAD is GOOD with
dropout, which takes its noise from torch's own generator in static batches and in explain.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import cdgen.engine.llm
from cdgen import ContrastiveLM, SamplingParams

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
PROMPTS = ["The quick brown", "Once", [5, 6, 7]]


def calls(lm: ContrastiveLM) -> dict[str, Callable[[], Any]]:
    """Return what can be interrupted, by name."""
    params = SamplingParams(n=2, max_tokens=6, ignore_eos=True, logprobs=2, seed=3)
    messages = [[{"role": "user", "content": "The fox"}], [{"role": "user", "content": "A cat"}]]
    return {
        "generate": lambda: lm.generate(PROMPTS, params, progress=True),
        "chat": lambda: lm.chat(messages, params, chat_template=TEMPLATE),
        "explain": lambda: lm.explain("The quick brown fox " * 5),
    }


def interrupt(call: Callable[[], Any], delay: float) -> bool:
    """Call until a signal that is sent after `delay` seconds ends the call; return whether it did."""
    sender = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    sender.start()
    end = time.monotonic() + delay + 10
    try:
        while time.monotonic() < end:
            call()
    except KeyboardInterrupt:
        return True
    return False


def check(call: Callable[[], Any], count: int) -> None:
    """Interrupt a call, and check each time that the next one returns what it returned before."""
    expected = call()
    state, start = torch.get_rng_state(), time.monotonic()
    assert call() == expected
    duration, times = time.monotonic() - start, random.Random(0)
    precision = torch.get_float32_matmul_precision()
    for _ in range(count):
        assert interrupt(call, duration * times.uniform(0, 1.5)), "no call ended"
        assert torch.get_rng_state().equal(state), "the user's random numbers changed"
        assert torch.get_float32_matmul_precision() == precision
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        assert call() == expected


def main(good: str, backend: str, count: str) -> None:
    """Interrupt every method."""
    if backend == "static":
        cdgen.engine.llm.unsupported = lambda module: "for the test"
    torch.set_num_threads(1)
    torch.manual_seed(5)
    lm = ContrastiveLM(good, dropout=0.3, max_num_seqs=3)
    for call in calls(lm).values():
        check(call, int(count))
    lm.close()
    print("usable")


if __name__ == "__main__":
    main(*sys.argv[1:])
