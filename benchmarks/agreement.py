"""Log-probabilities of sentences, item by item, compared with lm-evaluation-harness and with minicons.

    CDGEN_DATA=data python -m benchmarks.agreement lm-eval 40      # first 40 items of each file in data/blimp
    CDGEN_DATA=data python -m benchmarks.agreement minicons 40

SmolLM2-135M-Instruct in float32 on the CPU. lm-eval is compared in the convention lm-eval, minicons in babylm.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.scoring.evaluator import Evaluator
from cdgen.evaluation.tasks import parse_task, rows
from cdgen.models.loading import load
from cdgen.models.smollm2 import smollm2_folder

BATCH_SIZE = 16


def main(rival: str, items_per_file: int) -> None:
    """Print how far the log-probabilities of a rival are from cdgen's."""
    data = Path(os.environ.get("CDGEN_DATA", "data")) / "blimp"
    items = list(rows(parse_task(f"blimp={data}", limit=items_per_file)))
    sentences = [row.values[which] for row in items for which in ("good", "bad")]
    model, tokenizer = load(smollm2_folder(), dtype="float32", device="cpu")
    if rival == "lm-eval":
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model.module, tokenizer=tokenizer, batch_size=BATCH_SIZE, device="cpu", dtype="float32")
        requests = [SimpleNamespace(args=("", f" {sentence}"), task_name="blimp") for sentence in sentences]
        theirs = [logprob for logprob, _ in lm.loglikelihood(requests)]
        own = Evaluator(model, tokenizer, "lm-eval").continuations([Query("", f" {one}") for one in sentences])
    else:
        from minicons.scorer import IncrementalLMScorer

        scorer = IncrementalLMScorer(model.module, "cpu", tokenizer=tokenizer)
        theirs = []
        for start in range(0, len(sentences), BATCH_SIZE):
            batch = sentences[start : start + BATCH_SIZE]
            theirs += scorer.sequence_score(batch, reduction=lambda x: x.sum(0).item(), bow_correction=False)
        own = Evaluator(model, tokenizer, "babylm").continuations([Query("", one) for one in sentences])
    ours = np.array([score.logprob for score in own])
    difference = np.abs(ours - theirs)
    correct = [pairs[:, 0] > pairs[:, 1] for pairs in (ours.reshape(-1, 2), np.reshape(theirs, (-1, 2)))]
    print(f"{rival}: {len(items)} items, {np.sum(correct[0] != correct[1])} decisions differ")
    print(f"accuracy: cdgen {correct[0].mean():.4f}, {rival} {correct[1].mean():.4f}")
    print(f"largest difference {difference.max():.1e}, relative {(difference / np.abs(theirs)).max():.1e}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
