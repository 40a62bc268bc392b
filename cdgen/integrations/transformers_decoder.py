"""The decoding loop of contrastive_generate: two models, one call of the sampling op per step."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from cdgen.engine.device_state import sampling_tensors
from cdgen.engine.requests import Prompts, sequence_number
from cdgen.integrations.transformers_models import Reader, check_positions, shared_vocabulary
from cdgen.integrations.transformers_processor import contrastive_scores
from cdgen.integrations.transformers_settings import Settings
from cdgen.models.language_model import LanguageModel
from cdgen_kernels import RowFault, SamplingTensors, contrastive_sample

if TYPE_CHECKING:
    from transformers.generation import BaseStreamer


class Decoder:
    """Draws the next token of each sequence of a batch, step by step.

    Args:
        good, bad: the models.
        input_ids: int64 [B, W], prompts padded on the left.
        model_kwargs: `attention_mask` [B, W] and `position_ids` [B, W] or [1, W], which may be missing or None.
        settings: how tokens are drawn.
        config: the prepared generation config.
        length: greatest number of tokens of a sequence, padding included.
    Attributes:
        logits: GOOD's logits of each step, float32 [B, V'], if the config has `output_logits`.
        scores: the scores of the distribution drawn from, float32 [B, V'], if it has `output_scores`.
        cache: GOOD's cache.
    """

    def __init__(
        self,
        good: LanguageModel,
        bad: LanguageModel,
        input_ids: torch.Tensor,
        model_kwargs: dict[str, Any],
        settings: Settings,
        config: GenerationConfig,
        length: int,
    ) -> None:
        self._vocab_size = shared_vocabulary(good, bad)
        self._settings, self._config = settings, config
        mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
        mask = torch.ones_like(input_ids) if mask is None else mask
        positions = (mask.cumsum(1) - 1).clamp(min=0) if positions is None else positions.expand_as(input_ids)
        longest = int(mask.sum(1).max()) + length - input_ids.shape[1]  # without padding
        for model in (good, bad):
            check_positions(model, longest)
        cache_length = max(length - 1, config.max_cache_len or 0)  # the last token is not read
        self._readers = [Reader(model, mask, positions, cache_length, config) for model in (good, bad)]
        self._sampling = _sampling_tensors(settings, input_ids, mask, config.num_return_sequences)
        self._started = False
        keeps = config.return_dict_in_generate
        self.logits: tuple[torch.Tensor, ...] | None = () if keeps and config.output_logits else None
        self.scores: tuple[torch.Tensor, ...] | None = () if keeps and config.output_scores else None
        self.cache = {good.cache_argument: self._readers[0].cache}

    def draw(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Read what is new in the sequences [B, T], and draw the next tokens, int64 [B]; negative: a fault code."""
        if self._started:
            logits = [reader.step(input_ids[:, -1]) for reader in self._readers]
        else:
            logits = [reader.prefill(input_ids) for reader in self._readers]
        self._started = True
        good, bad = (x.to(input_ids.device) for x in logits)  # [B, V'], [B, V'']
        if self.logits is not None:
            self.logits += (good.to(torch.float32, copy=True),)
        if self._settings.processors:
            good = self._settings.processors(input_ids, good.to(torch.float32, copy=True))
        params = self._settings.params
        token = contrastive_sample(
            good,
            bad,
            self._sampling,
            vocab_size=self._vocab_size,
            outside_head=params.outside_head,
            raise_faults=False,
        ).token
        self._sampling.position.add_(1)
        if self.scores is not None:
            scores = contrastive_scores(good, bad, params, self._vocab_size)
            self.scores += (self._settings.in_op(input_ids, scores),)
        return token


def _sampling_tensors(
    settings: Settings, input_ids: torch.Tensor, mask: torch.Tensor, per_prompt: int
) -> SamplingTensors:
    """Return the parameters of the op, with the noise of ContrastiveLM.generate for the same prompts."""
    rows = zip(input_ids.tolist(), mask.tolist(), strict=True)
    tokens = [[token for token, real in zip(*row, strict=True) if real] for row in rows]
    prompts = Prompts(tokens[::per_prompt])
    numbers = [
        sequence_number(ids, continuation, occurrence)
        for ids, occurrence in zip(prompts.token_ids, prompts.occurrences, strict=True)
        for continuation in range(per_prompt)
    ]
    common = sampling_tensors(settings.params, len(tokens), input_ids.device)
    positions = [len(ids) for ids in tokens]
    sequence, position = torch.tensor([numbers, positions], device=input_ids.device)
    return common._replace(sequence=sequence, position=position)


def decode(
    decoder: Decoder,
    input_ids: torch.Tensor,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    streamer: "BaseStreamer | None",
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Draw tokens until all sequences have ended; see :func:`cdgen.integrations.transformers.contrastive_generate`."""
    # As in transformers: rows that have ended are only filled up with padding if end-of-text tokens are known.
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while unfinished.any():
        token = decoder.draw(input_ids)
        if pads:
            token = torch.where(unfinished, token, config._pad_token_tensor.to(token.device))
        codes = token.tolist()
        if min(codes) < 0:
            raise RowFault(*next((row, code) for row, code in enumerate(codes) if code < 0))
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        if streamer is not None:
            streamer.put(token.cpu())
        unfinished &= ~stopping_criteria(input_ids, decoder.scores).to(unfinished.device)
    if streamer is not None:
        streamer.end()
    if not config.return_dict_in_generate:
        return input_ids
    return GenerateDecoderOnlyOutput(sequences=input_ids, scores=decoder.scores, logits=decoder.logits, **decoder.cache)
