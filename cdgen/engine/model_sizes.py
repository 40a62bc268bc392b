"""Sizes of models, read from their configs alone, on which memory and time of a generation job depend."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from cdgen.engine.page_store import CacheShape
from cdgen.errors import InputError
from cdgen.models.bad import parse_bad
from cdgen.models.configs import load_config
from cdgen.models.load_errors import loading


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that a plan needs."""

    parameters: int  # all parameters
    products: int  # parameters that a step multiplies with, except those of the output layer
    output: int  # parameters of the output layer
    cache: CacheShape  # what a token stores in the cache, in float32
    activation: int  # numbers that a token needs while it passes through a layer
    vocab_size: int

    @classmethod
    def of(cls, config: PretrainedConfig, layers: int | None = None, trust_remote_code: bool = False) -> "Shape":
        """Return the shape of the model with this transformers config, or of its first `layers` layers."""
        if layers is not None:
            total = config.num_hidden_layers
            if not 1 <= layers < total:
                raise InputError(f"layers = {layers}: must be 1 to {total - 1}; GOOD has {total} layers")
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        total = sum(parameter.numel() for parameter in model.parameters())
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        outer = embedding.numel() + (0 if output is embedding else output.numel())
        inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
        return cls(
            total,
            total - outer,
            output.numel(),
            CacheShape(config.num_hidden_layers, heads, dim, torch.float32),
            3 * inner + 6 * config.hidden_size,  # gate, up and their product; the residual, a norm, q, k, v, attention
            config.vocab_size,
        )

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that a token takes in a cache of this dtype."""
        return self.cache._replace(dtype=dtype).bytes_per_token


class PairShapes(NamedTuple):
    """The shapes of GOOD and BAD.

    Attributes:
        bad: None if there is no BAD. shared: whether BAD's weights are GOOD's.
    """

    good: Shape
    bad: Shape | None = None
    shared: bool = False

    @property
    def weights(self) -> int:
        """Number of weights that both models keep in memory."""
        return self.good.parameters + (self.bad.parameters if self.bad and not self.shared else 0)

    @property
    def multiplied(self) -> int:
        """Number of weights that steps multiply with, without an output layer of BAD's own."""
        good = self.good.products + self.good.output
        return good + (self.bad.products if self.bad and not self.shared else 0)

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that a token takes in a cache of both models of this dtype."""
        return self.good.cache_bytes(dtype) + (self.bad.cache_bytes(dtype) if self.bad else 0)


def shapes(good: str, bad: str | None, trust_remote_code: bool = False) -> PairShapes:
    """Return the shapes of two models from their configs alone; `bad` is as for :func:`~cdgen.models.bad.parse_bad`."""

    def shape(source: str, layers: int | None = None) -> Shape:
        with loading(source, "the config"):
            config = load_config(source, trust_remote_code=trust_remote_code)
            return Shape.of(config, layers, trust_remote_code)

    first = shape(good)
    if bad is None:
        return PairShapes(first)
    rule = parse_bad(bad)
    if "bad" in rule:
        return PairShapes(first, shape(rule["bad"]))
    return PairShapes(first, shape(good, rule.get("layers")), shared=True)
