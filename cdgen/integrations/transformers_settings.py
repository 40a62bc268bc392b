"""What transformers' `generate` has prepared for a decoding function, in terms of the sampling op."""

from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.configuration_utils import GenerationMode

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError

# Processors that the op replaces: it applies their value to the contrastive scores.
_IN_OP = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
# Processors that transformers applies to the distribution that it draws from, by class name, and what to say about the
# arguments of `generate` that ask for them. Here they would act on GOOD's logits instead.
_REFUSED = {
    "MinPLogitsWarper": "min_p: use alpha, which is the same threshold",
    "TypicalLogitsWarper": "typical_p: not supported; use top_k or top_p",
    "TopHLogitsWarper": "top_h: not supported; use top_k or top_p",
    "EpsilonLogitsWarper": "epsilon_cutoff: not supported; use alpha",
    "EtaLogitsWarper": "eta_cutoff: not supported; use alpha",
    "WatermarkLogitsProcessor": "watermarking_config: not supported",
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config: not supported",
    "LogitNormalization": "renormalize_logits: not supported; normalise the scores that output_scores returns",
    "ContrastiveLogitsProcessor": "ContrastiveLogitsProcessor: contrastive_generate applies the contrast itself",
}
_CACHES = ("cache", "past_key_values")  # names of the cache's argument in versions of transformers
# What `generate` passes for every model. Of these, the decoding function reads the mask and the positions.
_MODEL_KWARGS = {"attention_mask", "position_ids", "logits_to_keep", "use_cache", *_CACHES}


class Settings(NamedTuple):
    """How a call of `generate` draws tokens."""

    params: SamplingParams
    processors: LogitsProcessorList  # for GOOD's logits, before the candidates are selected
    in_op: LogitsProcessorList  # temperature, top_k and top_p, which `params` holds as well


def read_settings(
    config: GenerationConfig,
    processors: LogitsProcessorList,
    input_ids: torch.Tensor,
    model_kwargs: dict[str, Any],
    **contrast: Any,
) -> Settings:
    """Return the settings of a call of `generate`.

    Args:
        config: the prepared generation config.
        processors: the prepared logits processors.
        input_ids: int64 [B, W], the prompts.
        model_kwargs: further arguments that `generate` has prepared for the model.
        contrast: the fields of SamplingParams that `generate` does not know.
    Raises:
        InputError: an argument asks for something that contrastive_generate cannot do, or a value is out of range. The
            message begins with the argument's name.
    """
    _check_mode(config)
    _check_model_kwargs(input_ids, model_kwargs)
    on_good, in_op = LogitsProcessorList(), LogitsProcessorList()
    for processor in processors:
        if (name := type(processor).__name__) in _REFUSED:
            raise InputError(_REFUSED[name])
        (in_op if type(processor) in _IN_OP else on_good).append(processor)
    values: dict[str, Any] = {}
    for processor in in_op:
        name = _IN_OP[type(processor)]
        if name in values or not config.do_sample:
            why = "is given twice" if name in values else "needs do_sample=True"
            raise InputError(f"logits_processor: {type(processor).__name__} {why}")
        values[name] = getattr(processor, name)
    if not config.do_sample:
        values["temperature"] = 0.0
    return Settings(SamplingParams(**values, **contrast), on_good, in_op)


def _check_mode(config: GenerationConfig) -> None:
    """Raise InputError unless a config asks for greedy decoding or sampling, with a cache of the default kind."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        beams = f"num_beams = {config.num_beams}: " if (config.num_beams or 1) > 1 else ""
        remedy = "; ContrastiveLogitsProcessor works with beam search" if beams else ""
        raise InputError(f"{beams}contrastive_generate samples or decodes greedily, without {mode.value}{remedy}")
    if config.use_cache is False:
        raise InputError("use_cache = False: contrastive_generate always uses a cache; pass use_cache=True")
    if config.cache_implementation not in (None, "static"):
        raise InputError(f"cache_implementation = {config.cache_implementation!r}: use 'static', or leave it out")
    if config.prefill_chunk_size is not None:
        raise InputError("prefill_chunk_size: contrastive_generate reads prompts in one pass")


def _check_model_kwargs(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
    """Raise InputError if there is something for GOOD that BAD would not read, or that does not fit the prompts."""
    for name, value in model_kwargs.items():
        if name not in _MODEL_KWARGS and value is not None:
            raise InputError(f"{name}: contrastive_generate passes only token ids to the models; leave it out")
        if name in _CACHES and getattr(value, "_is_user_defined", False):
            raise InputError(f"{name}: contrastive_generate fills caches of its own; pass the whole prompt instead")
    batch, width = input_ids.shape
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    for tensor, rows in ((mask, [batch]), (positions, [batch, 1])):
        if tensor is not None and tuple(tensor.shape) not in [(count, width) for count in rows]:
            # `generate` replaces a mask without padding by the positions that it computes from it.
            shape = tuple(tensor.shape)
            raise InputError(f"attention_mask, position_ids: shape {shape} does not fit prompts of {(batch, width)}")
    if mask is not None and not mask[:, -1:].all():
        raise InputError("attention_mask: ends with padding; pad on the left (tokenizer.padding_side = 'left')")
