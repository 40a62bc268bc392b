"""Caches filled with noise instead of computed prompts, for both backends of the engine and for transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from cdgen.engine.backend import Round, Start
from cdgen.engine.graphs import StepGraphs
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.paged_prompts import PagedPrompts
from cdgen.engine.requests import Request
from cdgen.engine.static_backend import StaticBackend
from cdgen.models.language_model import LanguageModel


class NoisePagedBackend(PagedBackend):
    """PagedBackend that fills the pages of prompts with noise."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._prompts = _NoisePrompts(self.cache, self._runner, self._seed)


class _NoisePrompts(PagedPrompts):
    """The prompts of a NoisePagedBackend."""

    def _prefill(self, requests: Sequence[Request], graphs: StepGraphs | None) -> None:
        for store in self._cache.stores:
            store.keys.normal_()
            store.values.normal_()
        for request in requests:
            weights = (runner.output_weight for runner in self._runner.runners)
            self._prompts[request].outputs = [torch.randn(x.shape[1], device=x.device, dtype=x.dtype) for x in weights]


class NoiseStaticBackend(StaticBackend):
    """StaticBackend that fills its caches with noise."""

    def start(self, starts: list[Start]) -> Round:
        """See :class:`cdgen.engine.backend.Backend`."""
        models, self._models = self._models, [_NoiseModel(model) for model in self._models]
        try:
            return super().start(starts)
        finally:
            self._models = models


class _NoiseModel:
    """Stands in for a model: fills the model's cache with noise instead of computing it."""

    noisy = False

    def __init__(self, model: LanguageModel) -> None:
        self.width, self.new_cache, self._module = model.width, model.new_cache, model.module

    def last_logits(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        for layer in cache.layers:
            layer.update(*noise(self._module, len(ids), ids.shape[1]))
        return torch.randn(len(ids), self.width, device=ids.device)


NOISE: dict[type, type] = {PagedBackend: NoisePagedBackend, StaticBackend: NoiseStaticBackend}


def noise(model: PreTrainedModel, sequences: int, length: int) -> tuple[torch.Tensor, ...]:
    """Return random keys and values [sequences, heads, length, head_dim] of one layer."""
    config = model.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (2, sequences, config.num_key_value_heads, length, dim)
    return torch.randn(shape, device=model.device, dtype=model.dtype).unbind()


def fill(cache: Cache, model: PreTrainedModel, sequences: int, length: int) -> Cache:
    """Add noise for `length` tokens of each sequence to the cache, and return it."""
    if length:
        for layer in range(model.config.num_hidden_layers):
            cache.update(*(x.clone() for x in noise(model, sequences, length)), layer)
    return cache
