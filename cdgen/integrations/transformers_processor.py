"""The contrastive scores in plain torch, and a logits processor of transformers that computes them."""

import math
from typing import Literal

import torch
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.integrations.transformers_models import (
    bad_language_model,
    check_ids,
    check_positions,
    check_widths,
    language_model,
    shared_vocabulary,
)


def contrastive_scores(good: torch.Tensor, bad: torch.Tensor, params: SamplingParams, vocab_size: int) -> torch.Tensor:
    """Compute contrastive scores as their definition says (Li et al. 2023, arXiv 2210.15097, section 3).

    Args:
        good: GOOD's logits [B, V'], any floating-point dtype; -inf for tokens that must not be drawn.
        bad: BAD's logits [B, V''].
        params: alpha, contrast_strength, good_weight, temperature and outside_head are used.
        vocab_size: number of entries that are tokens in both.
    Returns:
        float32 [B, V'], -inf for tokens that cannot be drawn. `softmax(scores / temperature)` is the distribution of
        :func:`cdgen_kernels.contrastive_sample` before top-k and top-p.
    """
    temperature = params.temperature or 1.0
    z_good, z_bad = (x[:, :vocab_size].float() / temperature for x in (good, bad))
    margin = -math.log(params.alpha) if params.alpha else math.inf
    possible = z_good > -torch.inf
    is_candidate = possible & (z_good >= z_good.amax(1, keepdim=True) - margin)
    contrast = params.good_weight * z_good.log_softmax(1) - params.contrast_strength * z_bad.log_softmax(1)
    scores = contrast.masked_fill(~is_candidate, -torch.inf)
    if params.outside_head == "shifted_good":
        worst = contrast.masked_fill(~is_candidate, torch.inf).amin(1, keepdim=True)
        best_outside = z_good.masked_fill(is_candidate, -torch.inf).amax(1, keepdim=True)
        scores = torch.where(possible & ~is_candidate, worst + (z_good - best_outside), scores)
    elif params.outside_head != "mask":
        scores = scores.masked_fill(possible & ~is_candidate, float(params.outside_head))
    return torch.nn.functional.pad(scores * temperature, (0, good.shape[1] - vocab_size), value=-torch.inf)


class ContrastiveLogitsProcessor(LogitsProcessor):
    """Turn GOOD's logits into contrastive scores: a logits processor for any call of transformers' `generate`.

    It is plain torch, so `generate` draws the tokens: greedily, by sampling, or by beam search. BAD reads each new
    token with a cache of its own, which follows the beams.

        processor = ContrastiveLogitsProcessor(bad, good=good, attention_mask=inputs.attention_mask)
        good.generate(**inputs, logits_processor=[processor], do_sample=True, top_k=0)

    Args:
        bad: BAD, a causal language model of transformers.
        good: the model that generates. If both models were loaded from folders or hub names that hold tokenizers, their
            vocabularies are compared token by token, and padding of the output layers is left out. Without it, the
            numbers of tokens that the models score must be equal.
        attention_mask: int64 [P, W], the mask of the prompts, which `generate` does not pass to logits processors. It
            may be left out if there is one prompt, without padding.
        alpha, contrast_strength, good_weight, outside_head: as in :class:`cdgen.SamplingParams`.
        temperature: the temperature that `generate` applies to the scores afterwards; it decides which tokens are
            candidates.
    Raises:
        InputError: a value is out of range, BAD is not supported, or it does not share GOOD's vocabulary. When called:
            there are several prompts and no mask, the mask is that of other prompts, or a sequence exceeds BAD's
            positions.
    """

    def __init__(
        self,
        bad: PreTrainedModel,
        *,
        good: PreTrainedModel | None = None,
        attention_mask: torch.Tensor | None = None,
        alpha: float = 0.1,
        contrast_strength: float = 1.0,
        good_weight: float = 1.0,
        temperature: float = 1.0,
        outside_head: Literal["mask", "shifted_good"] | float = "mask",
    ) -> None:
        self._params = SamplingParams(
            alpha=alpha,
            contrast_strength=contrast_strength,
            good_weight=good_weight,
            temperature=temperature,
            outside_head=outside_head,
        )
        self._bad = bad_language_model("bad", bad)
        self._vocab_size = shared_vocabulary(language_model("good", good), self._bad) if good is not None else None
        if attention_mask is not None:
            attention_mask = torch.as_tensor(attention_mask).to(self._bad.device, torch.long)
            if attention_mask.dim() != 2 or not attention_mask.numel() or not attention_mask[:, -1].all():
                raise InputError("attention_mask: must be [prompts, tokens], and end with a token; pad on the left")
        self._prompt_mask = attention_mask
        self._prompts: torch.Tensor | None = None  # int64 [B, W], those that `attention_mask` belongs to
        self._cache = DynamicCache()
        self._read: torch.Tensor | None = None  # int64 [B, T], the tokens that BAD has read, -1 for padding

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the contrastive scores, float32 [B, V'].

        Args:
            input_ids: int64 [B, T], the sequences so far.
            scores: GOOD's logits or log-probabilities [B, V'].
        """
        if self._vocab_size is None:
            check_widths(scores.shape[1], self._bad)
        bad_logits = self._bad_logits(input_ids.to(self._bad.device)).to(scores.device)
        return contrastive_scores(scores, bad_logits, self._params, self._vocab_size or scores.shape[1])

    def _bad_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Let BAD read what is new in `ids` [B, T]; return the logits of the next token, [B, V'']."""
        mask = self._mask(ids)
        tokens = ids.masked_fill(mask == 0, -1)
        limit = self._bad.position_limit
        if limit is not None and mask.shape[1] > limit:  # a sync, which only long sequences need
            check_positions(self._bad, int(mask.sum(1).max()))
        if self._follows(tokens[:, :-1]):
            new = ids[:, -1:]
        else:
            if self._prompt_mask is None and not (ids == ids[:1]).all():
                raise InputError("attention_mask: required for more than one prompt; pass inputs.attention_mask")
            check_ids(ids, self._bad)
            self._cache, new = DynamicCache(), ids
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        self._read = None  # an interrupted pass may have extended some layers of the cache
        logits = self._bad.last_logits(new, mask, positions, self._cache)
        self._read = tokens
        return logits

    def _follows(self, earlier: torch.Tensor) -> bool:
        """Return whether BAD has read these tokens [B, T - 1]; bring the rows of its cache into their order."""
        if self._read is None or self._read.shape != earlier.shape:
            return False
        if torch.equal(self._read, earlier):
            return True
        equal = (earlier[:, None] == self._read[None]).all(2)  # [B, B]
        if not equal.any(1).all():
            return False
        self._cache.reorder_cache(equal.int().argmax(1))  # beam search has chosen other beams
        return True

    def _mask(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the attention mask of the sequences, int64 [B, T]."""
        if self._prompt_mask is None:
            return torch.ones_like(ids)
        prompts, width = self._prompt_mask.shape
        if self._prompts is None:
            if not _repeats(ids, prompts, width):
                shape = tuple(ids.shape)
                raise InputError(
                    f"attention_mask: has shape ({prompts}, {width}), which does not fit prompts of {shape}; "
                    "pass inputs.attention_mask"
                )
            self._prompts = ids.clone()
        elif not torch.equal(self._prompts, ids[:, :width]):
            raise InputError("attention_mask: belongs to other prompts; make one ContrastiveLogitsProcessor per call")
        mask = self._prompt_mask.repeat_interleave(ids.shape[0] // prompts, dim=0)
        return torch.nn.functional.pad(mask, (0, ids.shape[1] - width), value=1)


def _repeats(ids: torch.Tensor, prompts: int, width: int) -> bool:
    """Return whether ids [B, T] are this number of prompts of this width, repeated equally often: once per beam."""
    if ids.shape[0] % prompts or ids.shape[1] != width:
        return False
    rows = ids.unflatten(0, (prompts, -1))  # [P, B / P, T]
    return bool((rows == rows[:, :1]).all())
