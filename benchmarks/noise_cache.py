"""Caches that hold noise in the place of computed prompts, for both of the engine's backends and for transformers."""

import torch
from transformers import Cache, PreTrainedModel

from cdgen.engine.engine import Request
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.static_backend import StaticBackend
from cdgen.models.language_model import LanguageModel


class NoisePaged(PagedBackend):
    def _prefill(self, requests: list[Request]) -> None:
        for store in (*self.cache.keys, *self.cache.values):
            store.normal_()
        for request in requests:
            weights = (runner.output_weight for runner in self._runners)
            request.outputs = [torch.randn(x.shape[1], device=x.device, dtype=x.dtype) for x in weights]


class NoiseStatic(StaticBackend):
    def start(self, starts: list) -> tuple:
        models, self._models = self._models, [_Noise(model) for model in self._models]
        try:
            return super().start(starts)
        finally:
            self._models = models


class _Noise:
    """Fills a model's cache as a pass would, with noise."""

    noisy = False

    def __init__(self, model: LanguageModel) -> None:
        self.width, self.new_cache, self._module = model.width, model.new_cache, model.module

    def last_logits(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        for layer in cache.layers:
            layer.update(*noise(self._module, len(ids), ids.shape[1]))
        return torch.randn(len(ids), self.width, device=ids.device)


NOISE = {PagedBackend: NoisePaged, StaticBackend: NoiseStatic}


def noise(model: PreTrainedModel, rows: int, length: int) -> tuple[torch.Tensor, ...]:
    """Keys and values [rows, heads, length, head_dim] of a layer."""
    config = model.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (2, rows, config.num_key_value_heads, length, dim)
    return torch.randn(shape, device=model.device, dtype=model.dtype).unbind()


def fill(cache: Cache, model: PreTrainedModel, rows: int, length: int) -> Cache:
    """The cache with noise for `length` tokens of each row."""
    if length:
        for layer in range(model.config.num_hidden_layers):
            cache.update(*(x.clone() for x in noise(model, rows, length)), layer)
    return cache
