"""Scoring speed on the CPU, compared with lm-evaluation-harness on the same items.

    CDGEN_DATA=data python -m pytest benchmarks/cpu/bench_evaluate.py --benchmark-only

SmolLM2-135M-Instruct in float32. It needs lm-eval, and the folders `blimp` and `xcopa` in CDGEN_DATA, with the files of
the data sets. Log-probabilities are compared before any time is reported. The rival is HFLM with its fastest batch
size; both run on one thread, so that a busy second core does not matter.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cpu.harness import compare
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.scoring.evaluator import Evaluator
from cdgen.evaluation.tasks import parse_task, rows
from cdgen.models.loading import load
from cdgen.models.smollm2 import smollm2_folder

DATA = Path(os.environ.get("CDGEN_DATA", "data"))
BATCH_SIZES = (8, 16, 32)  # HFLM is timed with each, since its best one depends on the data
PER_FILE = {"blimp": 6, "xcopa": 20}  # items of each file


def blimp() -> Iterator[Query]:
    """Yield both sentences of minimal pairs, after the space that the harness puts before them."""
    for row in rows(parse_task(f"blimp={DATA / 'blimp'}", limit=PER_FILE["blimp"])):
        yield from (Query("", f" {row.values[which]}") for which in ("good", "bad"))


def xcopa() -> Iterator[Query]:
    """Yield both choices of items in three languages, which share their context."""
    for language in ("it", "qu", "sw"):
        path = DATA / "xcopa" / f"val.{language}.jsonl"
        for row in rows(parse_task(f"xcopa_{language}={path}", limit=PER_FILE["xcopa"])):
            yield from (Query(row.values["context"], f" {choice}") for choice in row.values["choices"])


@pytest.mark.parametrize("name", ["blimp", "xcopa"])
def test_scoring(name: str, benchmark: BenchmarkFixture) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="it compares cdgen with lm-eval")
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; set CDGEN_DATA to a folder with the data")
    queries = list({"blimp": blimp, "xcopa": xcopa}[name]())
    torch.set_num_threads(1)
    model, tokenizer = load(smollm2_folder(), dtype="float32", device="cpu")
    requests = [SimpleNamespace(args=tuple(query), task_name=name) for query in queries]

    def rival(size: int) -> Callable[[], list[tuple[float, bool]]]:
        lm = huggingface.HFLM(
            pretrained=model.module, tokenizer=tokenizer, batch_size=size, device="cpu", dtype="float32"
        )
        return lambda: lm.loglikelihood(requests, disable_tqdm=True)

    evaluator = Evaluator(model, tokenizer, "lm-eval")
    rivals = {f"HFLM, batch size {size}": rival(size) for size in BATCH_SIZES}
    own = evaluator.continuations(queries)
    for call in rivals.values():
        found = call()
        np.testing.assert_allclose([score.logprob for score in own], [each[0] for each in found], rtol=1e-5, atol=1e-3)
        assert [score.greedy for score in own] == [each[1] for each in found]
    benchmark.group = f"scoring {name}: {len(queries)} continuations, SmolLM2-135M, float32, 1 thread"
    compare(benchmark, ("cdgen", lambda: evaluator.continuations(queries)), rivals, rounds=3)
