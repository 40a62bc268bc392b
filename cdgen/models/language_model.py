"""A causal language model of transformers, with what the decode loop needs to know of it."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cdgen.errors import InputError
from cdgen.models.dtypes import DTYPES, dtype_name
from cdgen.models.in_place_cache import InPlaceCache
from cdgen.rng import private_noise
from cdgen.storage.folder import file_sha256

# Layer types that the caches can hold.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "moe", "mlp"}


@dataclass
class LanguageModel:
    """A causal language model, ready to decode.

    Attributes:
        module: the transformers model, in evaluation mode.
        name: the name that the user gave.
        files: config and weights, from which the fingerprint is computed; empty for a model that was passed loaded.
        rule: how this BAD was made from GOOD, such as "layers:6"; empty for any other model.
        parent: that GOOD.
        dropout: probability of dropping an attention weight while it decodes.
        width: number of logits per token, including padding.
        forward: what is called for a forward pass: the module, or a compiled version of it.
    Raises:
        InputError: the architecture is not supported.
    """

    module: PreTrainedModel
    name: str
    files: tuple[Path, ...] = ()
    rule: str = ""
    parent: "LanguageModel | None" = None
    dropout: float = 0.0
    width: int = field(init=False)
    forward: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        config = self.module.config
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        if config.is_encoder_decoder:
            raise InputError(f"{self.name}: {config.model_type} is an encoder-decoder; give a decoder-only model")
        if getattr(self.module, "_is_stateful", False) or kinds - _ATTENTION:
            raise InputError(
                f"{self.name}: {config.model_type} keeps a state instead of attention keys and values; not supported"
            )
        if not self.module.can_generate():
            kind = type(self.module).__name__
            raise InputError(f"{self.name}: {kind} is not a causal language model; load it with AutoModelForCausalLM")
        self._accepts = frozenset(inspect.signature(self.module.forward).parameters)
        self.forward = self.module
        self.width = self._probe()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.module.device
        return device

    @property
    def noisy(self) -> bool:
        """Whether its forward pass draws random numbers."""
        return self.dropout > 0

    @property
    def num_layers(self) -> int:
        return int(self.module.config.get_text_config().num_hidden_layers)

    @property
    def position_limit(self) -> int | None:
        """The number of positions the model was made for, or None if its config does not state it."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos_token_ids(self) -> set[int]:
        """All token ids that the model's configs declare as end of text and for which it has a logit."""
        found: set[int] = set()
        for config in (self.module.config.get_text_config(), self.module.config, self.module.generation_config):
            ids = getattr(config, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, (list, tuple)) else set() if ids is None else {ids}
        return {token for token in found if 0 <= token < self.width}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of config and weights; for a BAD made from GOOD, GOOD's fingerprint and the rule."""
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

    @property
    def cache_argument(self) -> str:
        """The name of the cache's argument in the module's forward; newer versions of transformers have renamed it."""
        return "cache" if "cache" in self._accepts else "past_key_values"

    def new_cache(self, max_len: int) -> InPlaceCache:
        """Return an empty cache for up to `max_len` positions."""
        return InPlaceCache(self.num_layers, max_len)

    def last_logits(
        self, ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, cache: InPlaceCache
    ) -> torch.Tensor:
        """Run one forward pass; return the logits of the last position, [B, width]. See :meth:`logits`."""
        return self.logits(ids, attention_mask, position_ids, cache, last_only=True)[:, -1]

    def logits(
        self,
        ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: InPlaceCache,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Run one forward pass; return the logits of all new positions, [B, T, width].

        Args:
            ids: int64 [B, T], the new tokens.
            attention_mask: int64 [B, length so far + T], 0 at padding.
            position_ids: int64 [B, T].
            cache: extended by T positions.
            last_only: whether the logits of the last position suffice: those of the others are left out if the model
                can do without them.
        """
        inputs = {"input_ids": ids, "attention_mask": attention_mask, self.cache_argument: cache, "use_cache": True}
        if "position_ids" in self._accepts:  # not for ALiBi, which counts positions from the mask
            inputs["position_ids"] = position_ids
        if last_only and "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = 1
        logits: torch.Tensor = self.forward(**inputs).logits
        return logits

    def _probe(self) -> int:
        """Return the width of the logits. The pass over one token also shows whether the cache is used."""
        one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        cache = self.new_cache(1)
        with torch.inference_mode(), private_noise(self.device):
            logits = self.last_logits(one, one + 1, one, cache)  # [1, width]
        if logits.dtype not in DTYPES.values():
            raise InputError(f"{self.name}: its logits are {dtype_name(logits.dtype)}; convert it to float32")
        if logits.isnan().any():
            raise InputError(f"{self.name}: its logits are NaN; its config or its dtype does not fit its weights")
        if cache.get_seq_length() != 1:
            kind = self.module.config.model_type
            raise InputError(f"{self.name}: {kind} does not keep its attention in transformers' cache; not supported")
        return logits.shape[-1]
