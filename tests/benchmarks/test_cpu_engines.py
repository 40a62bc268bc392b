"""The process in which the benchmark of several engines runs each of them."""

import sys
from pathlib import Path

import pytest

from benchmarks.cpu.bench_engines import leading
from benchmarks.cpu.engine_workers.worker import Settings, Worker
from benchmarks.generation import random_llama
from cdgen import ContrastiveLM, SamplingParams

PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.mark.slow
def test_a_worker_continues_prompts(tmp_path: Path) -> None:
    random_llama(2, 32, 2, 64, vocab_size=100).save_pretrained(tmp_path)
    params = SamplingParams(max_tokens=4, alpha=0.0, contrast_strength=0.0, temperature=0.0, ignore_eos=True)
    expected = [list(output.outputs[0].token_ids) for output in ContrastiveLM(tmp_path).generate(PROMPTS, params)]
    worker = Worker("cdgen", sys.executable, Settings(str(tmp_path), "float32", 1, 2, 7), sys.path)
    try:
        assert worker.about.startswith("cdgen ")
        assert worker.generate(PROMPTS, 4, greedy=True) == expected
        drawn = [worker.generate(PROMPTS, 4) for _ in range(2)]
        assert [[len(new) for new in tokens] for tokens in drawn] == [[4, 4], [4, 4]] and drawn[0] != drawn[1]
        with pytest.raises(RuntimeError, match=r"(?s)cdgen ended with exit code 1: .*token id 100 is out of range"):
            worker.generate([[100]], 4)
        with pytest.raises(RuntimeError, match="cdgen ended"):
            worker.generate(PROMPTS, 4)
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)absent ended with exit code 2: .*absent_worker\.py"):
        Worker("absent", sys.executable, Settings("", "float32", 1, 1, 1))


def test_leading() -> None:
    assert leading([[1, 2, 3], [1, 2, 4], [1, 2, 3]]) == 2
    assert leading([[1, 2], [1, 2]]) == 2
    assert leading([[1], [2]]) == 0
