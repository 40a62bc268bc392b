"""The worker of cdgen's own engine; see worker.py."""

from itertools import count

import torch
from worker import Generate, Settings, serve

import cdgen


def start(settings: Settings) -> tuple[str, Generate]:
    """Load the model; see :func:`worker.serve`."""
    torch.set_num_threads(settings.threads)
    lm = cdgen.ContrastiveLM(settings.model, device="cpu", dtype=settings.dtype, max_num_seqs=settings.sequences)
    seeds = count()

    def generate(prompts: list[list[int]], max_tokens: int, greedy: bool) -> list[list[int]]:
        params = cdgen.SamplingParams(
            max_tokens=max_tokens,
            alpha=0.0,
            contrast_strength=0.0,
            temperature=0.0 if greedy else 1.0,
            ignore_eos=True,
            seed=next(seeds),
        )
        return [list(output.outputs[0].token_ids) for output in lm.generate(prompts, params)]

    return f"cdgen {cdgen.__version__}, torch {torch.__version__}", generate


if __name__ == "__main__":
    serve(start)
