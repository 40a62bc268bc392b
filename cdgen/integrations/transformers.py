"""Contrastive decoding in transformers' `generate`: a decoding loop for `custom_generate`, and a logits processor.

model.generate(**inputs, custom_generate=contrastive_generate, bad_model=bad, alpha=0.1)
model.generate(**inputs, logits_processor=[ContrastiveLogitsProcessor(bad, good=model)])
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from cdgen.errors import InputError
from cdgen.integrations.transformers_decoder import Decoder, decode
from cdgen.integrations.transformers_models import bad_language_model, check_ids, language_model
from cdgen.integrations.transformers_processor import ContrastiveLogitsProcessor
from cdgen.integrations.transformers_settings import read_settings
from cdgen.values import shown

if TYPE_CHECKING:
    from transformers.generation import BaseStreamer

__all__ = ["ContrastiveLogitsProcessor", "contrastive_generate"]


@torch.no_grad()
def contrastive_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    bad_model: PreTrainedModel,
    alpha: float = 0.1,
    contrast_strength: float = 1.0,
    good_weight: float = 1.0,
    outside_head: str | float = "mask",
    seed: int | None = None,
    token_streamer: "BaseStreamer | None" = None,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Decode with GOOD and BAD: pass this function to `generate` as `custom_generate` (Li et al. 2023, section 3).

    `generate` fills in the first five arguments and `model_kwargs`; pass the others to `generate`. The generation
    config's `temperature`, `top_k` (50 by default) and `top_p` are those of :func:`cdgen_kernels.contrastive_sample`;
    all other logits processors change GOOD's logits before the candidates are selected.

    Args:
        model: GOOD.
        input_ids: int64 [B, W], the prompts, padded on the left and repeated `num_return_sequences` times each.
        logits_processor, stopping_criteria, generation_config: what `generate` has prepared.
        bad_model: BAD, a causal language model with GOOD's vocabulary.
        alpha, contrast_strength, good_weight, outside_head: as in :class:`cdgen.SamplingParams`.
        seed: key of the random numbers. The tokens are those that `ContrastiveLM.generate` draws with this seed, up to
            rounding. Default: a number from torch's generator, which `transformers.set_seed` seeds.
        token_streamer: receives the prompts and each new token. `generate` does not pass on its argument `streamer`.
        model_kwargs: `attention_mask` and `position_ids`.
    Returns:
        The prompts and their continuations [B, T]; if `return_dict_in_generate`, a `GenerateDecoderOnlyOutput` with
        GOOD's cache, GOOD's logits if `output_logits`, and the scores drawn from if `output_scores`.
    Raises:
        InputError: an argument is out of range or not supported, BAD does not share GOOD's vocabulary, or a sequence
            may exceed a model's positions.
        RowFault: no token can be drawn, since logits are NaN, or -inf for all tokens.
    """
    good, bad = language_model("model", model), bad_language_model("bad_model", bad_model)
    if token_streamer is not None and not all(hasattr(token_streamer, name) for name in ("put", "end")):
        raise InputError(f"token_streamer = {shown(token_streamer)}: give a streamer such as TextStreamer")
    settings = read_settings(
        generation_config,
        logits_processor,
        input_ids,
        model_kwargs,
        alpha=alpha,
        contrast_strength=contrast_strength,
        good_weight=good_weight,
        outside_head=outside_head,
        seed=int(torch.randint(2**63 - 1, ())) if seed is None else seed,
    )
    check_ids(input_ids, good, bad)
    length = stopping_criteria.max_length
    decoder = Decoder(good, bad, input_ids, model_kwargs, settings, generation_config, length)
    return decode(decoder, input_ids, stopping_criteria, generation_config, token_streamer)
