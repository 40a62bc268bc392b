"""A causal language model of transformers, and what the decode loop asks of it."""

import hashlib
import inspect
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from cdgen.errors import InputError
from cdgen.models.in_place_cache import InPlaceCache
from cdgen.rng import private_noise
from cdgen.storage.folder import file_sha256

_ATTENTION = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "moe",
    "mlp",
}  # layer types the cache can hold


@dataclass
class LanguageModel:
    """A causal language model, ready to decode.

    `name` is what the user called it. `files` are what its fingerprint is taken of; empty for a model that was handed
    over already loaded. `rule` names what was done to GOOD to make this BAD, where it was, and `parent` is that GOOD.
    """

    module: PreTrainedModel
    name: str
    files: tuple[Path, ...] = ()
    rule: str = ""
    parent: "LanguageModel | None" = None
    dropout: float = 0.0  # of attention weights while it decodes
    width: int = field(init=False)  # of its logits, padding included

    def __post_init__(self):
        config = self.module.config
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        if config.is_encoder_decoder:
            raise InputError(f"{self.name}: {config.model_type} is an encoder-decoder; give a decoder-only model")
        if getattr(self.module, "_is_stateful", False) or kinds - _ATTENTION:
            raise InputError(
                f"{self.name}: {config.model_type} keeps a state instead of attention's keys and values; not supported"
            )
        self._accepts = frozenset(inspect.signature(self.module.forward).parameters)
        self.width = self._probe()

    @property
    def device(self):
        return self.module.device

    @property
    def noisy(self):
        """Whether its forward pass draws random numbers."""
        return self.dropout > 0

    @property
    def num_layers(self):
        return self.module.config.get_text_config().num_hidden_layers

    @property
    def position_limit(self):
        """Positions the model was made for, or None where it does not say."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos_token_ids(self):
        """Every id that the model's configs call end of text."""
        found = set()
        for config in (self.module.config.get_text_config(), self.module.config, self.module.generation_config):
            ids = getattr(config, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, (list, tuple)) else set() if ids is None else {ids}
        return found

    @cached_property
    def fingerprint(self):
        """sha256 over config and weights; for a BAD made of GOOD, GOOD's fingerprint and the rule."""
        if self.parent is not None:
            return f"{self.parent.fingerprint}+{self.rule}"
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(file_sha256(path).encode())
        if not self.files:
            digest.update(json.dumps(self.module.config.to_dict(), sort_keys=True, default=str).encode())
            for name, tensor in sorted(self.module.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return f"sha256:{digest.hexdigest()}"

    def new_cache(self, max_len):
        return InPlaceCache(self.num_layers, max_len)

    def last_logits(self, ids, attention_mask, position_ids, cache):
        """One forward pass; logits of the last position only.

        Args:
            ids, position_ids: int64 [B, T]. attention_mask: int64 [B, length so far + T], 0 at padding.
            cache: :class:`InPlaceCache`, extended by T positions.
        Returns:
            float [B, width]
        """
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in self._accepts:  # models with ALiBi count positions from the mask
            inputs["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = 1
        return self.module(**inputs).logits[:, -1]

    def _probe(self):
        """Width of the logits, seen in one pass over one token, which also shows that the cache is used."""
        one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        cache = self.new_cache(1)
        with torch.inference_mode(), private_noise(self.device):
            width = self.last_logits(one, one + 1, one, cache).shape[-1]
        if cache.get_seq_length() != 1:
            kind = self.module.config.model_type
            raise InputError(f"{self.name}: {kind} does not keep its attention in transformers' cache; not supported")
        return width
