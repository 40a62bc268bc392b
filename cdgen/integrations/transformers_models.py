"""The two models of a call of transformers' `generate`, and what they share."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from cdgen.errors import InputError
from cdgen.models.language_model import LanguageModel
from cdgen.models.tokenizers import find_tokenizer
from cdgen.models.vocabulary import shared_vocab_size

_shared: dict[tuple[str, int, str, int], int] = {}  # results of shared_vocabulary, since tokenizers load slowly


def language_model(argument: str, model: Any) -> LanguageModel:
    """Wrap a model of transformers.

    Raises:
        InputError: it is something else, or its architecture is not supported. The message begins with `argument`.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{argument}: is of type {type(model).__name__}; use a causal language model of transformers")
    return LanguageModel(model, f"{argument} ({model.config.name_or_path or type(model).__name__})")


def bad_language_model(argument: str, model: Any) -> LanguageModel:
    """Wrap BAD like :func:`language_model`, but refuse a model in training mode, in which dropout is active."""
    bad = language_model(argument, model)
    if model.training:
        raise InputError(f"{bad.name}: is in training mode; call its method eval()")
    return bad


def shared_vocabulary(good: LanguageModel, bad: LanguageModel) -> int:
    """Return the number of token ids that two models share, without the padding of their output layers.

    Their tokenizers are compared if both are stored where the models were loaded from; otherwise only sizes are.

    Raises:
        InputError: the vocabularies differ; the message names BAD and the difference.
    """
    key = (good.module.config.name_or_path, good.width, bad.module.config.name_or_path, bad.width)
    if key not in _shared:
        tokenizers = [_tokenizer(model.module.config.name_or_path) for model in (good, bad)]
        if None in tokenizers:
            check_widths(good.width, bad)
            tokenizers = [None, None]
        try:
            _shared[key] = shared_vocab_size(good, bad, *tokenizers)
        except InputError as error:
            raise InputError(f"{bad.name}: {error}") from error
    return _shared[key]


def check_widths(width: int, bad: LanguageModel) -> None:
    """Raise InputError if BAD scores another number of tokens than GOOD."""
    if bad.width != width:
        raise InputError(f"{bad.name}: does not share GOOD's vocabulary: it scores {bad.width} tokens, GOOD {width}")


def check_positions(model: LanguageModel, count: int) -> None:
    """Raise InputError if sequences of `count` tokens exceed the positions that a model was made for."""
    limit = model.position_limit
    if limit is not None and count > limit:
        raise InputError(
            f"{model.name}: has {limit} positions, but a sequence may have {count} tokens; shorten the prompts or "
            "lower max_new_tokens"
        )


def check_ids(ids: torch.Tensor, *models: LanguageModel) -> None:
    """Raise InputError unless prompts, int64 [B, W], consist of tokens of all models."""
    if not ids.numel():
        raise InputError("input_ids: are empty; each prompt needs a token")
    width = min(model.width for model in models)
    wrong = ids[(ids < 0) | (ids >= width)]
    if len(wrong):
        raise InputError(f"input_ids: token id {int(wrong[0])} is out of range; the models share {width} tokens")


def _tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a folder or a hub name, or None if there is none on this machine."""
    if not name:
        return None
    try:
        if Path(name).is_dir():
            return find_tokenizer(Path(name))
        return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):  # InputError is a ValueError
        return None


class Reader:
    """One model with a cache: it reads the prompts, then one token per sequence and step.

    The cache is static if the model supports that. All steps then have the same shapes, so they can be compiled.
    Attention of other models, such as GPT-Neo, may take the cache's length for the number of tokens so far.

    Args:
        model: the model.
        mask: int64 [B, W], attention mask of the prompts, which are padded on the left.
        position_ids: int64 [B, W].
        length: number of positions of the cache, padding included.
        config: if `cache_implementation` is "static", steps are compiled where `generate` itself would.
    """

    def __init__(
        self,
        model: LanguageModel,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        length: int,
        config: GenerationConfig,
    ) -> None:
        module = model.module
        self._is_static = bool(module._can_compile_fullgraph)
        self.cache = (
            StaticCache(config=module.config, max_cache_len=length) if self._is_static else model.new_cache(length)
        )
        self._model = model
        self._filled, spare = mask.shape[1], length - mask.shape[1]
        self._mask = torch.nn.functional.pad(mask.to(model.device, torch.long), (0, spare))  # [B, length]
        self._position_ids = position_ids.to(model.device)
        static = config.cache_implementation == "static"
        self._compiles = static and module._valid_auto_compile_criteria({model.cache_argument: self.cache}, config)
        self._compile_config = config.compile_config

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Read the prompts, int64 [B, W]; return the logits of the next tokens, [B, V']."""
        logits = self._read(ids)
        self._position_ids = self._position_ids[:, -1:]
        if self._compiles:
            self._model.forward = self._model.module.get_compiled_call(self._compile_config)
        return logits

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Read the newest tokens, int64 [B]; return the logits of the next tokens, [B, V']."""
        self._position_ids = self._position_ids + 1
        self._mask[:, self._filled] = 1
        self._filled += 1
        logits = self._read(token.unsqueeze(1))
        # The next replay of a CUDA graph, of either model, may overwrite its outputs.
        return logits.clone() if self._compiles else logits

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        mask = self._mask if self._is_static else self._mask[:, : self._filled]
        return self._model.last_logits(ids.to(self._model.device), mask, self._position_ids, self.cache)
