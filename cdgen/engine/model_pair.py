"""The pair of models that is decoded: what GOOD and BAD share, and whether prompts and parameters fit them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.models.bad import derived, dropout_rate
from cdgen.models.language_model import LanguageModel
from cdgen.models.loading import load
from cdgen.models.tokenizers import encode, load_tokenizer
from cdgen.models.vocabulary import shared_vocab_size
from cdgen.values import INT32_MAX, integer, switch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class ModelPair:
    """GOOD, BAD (or None), and what they share."""

    good: LanguageModel
    bad: LanguageModel | None
    tokenizer: "PreTrainedTokenizerBase | None"
    vocab_size: int  # token ids in use; wider output layers are padded
    eos_token_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        good: LanguageModel,
        bad: LanguageModel | None,
        good_tokenizer: "PreTrainedTokenizerBase | None",
        bad_tokenizer: "PreTrainedTokenizerBase | None",
    ) -> "ModelPair":
        """Return the pair of two models, whose tokenizer is GOOD's, otherwise BAD's.

        Raises:
            InputError: the models and tokenizers do not share a vocabulary.
        """
        vocab_size = shared_vocab_size(good, bad, good_tokenizer, bad_tokenizer)
        tokenizer = good_tokenizer or bad_tokenizer
        eos = set(good.eos_token_ids)
        if tokenizer and tokenizer.eos_token_id is not None:
            eos.add(tokenizer.eos_token_id)
        return cls(good, bad, tokenizer, vocab_size, tuple(sorted(token for token in eos if token < vocab_size)))

    def models(self, params: SamplingParams) -> list[LanguageModel]:
        """Return the models that `params` need: GOOD, and BAD if there is contrast."""
        return [self.good, self.bad] if self.bad is not None and params.contrast_strength else [self.good]

    def position_limit(self, params: SamplingParams) -> int | None:
        """Return the least number of positions of the models that `params` need; None if they do not state it."""
        return min((limit for model in self.models(params) if (limit := model.position_limit)), default=None)

    def max_new_tokens(self, params: SamplingParams, prompt_length: int) -> int:
        """Return how many tokens a continuation may have: `params.max_tokens`, or the positions that are left."""
        if params.max_tokens is not None:
            return params.max_tokens
        limit = self.position_limit(params)
        assert limit is not None, "`check` refuses this"
        return limit - prompt_length

    def longest_sequence(self, params: SamplingParams, prompt_lengths: Iterable[int]) -> int:
        """Return the greatest number of tokens, prompt included, that a continuation of these prompts may have."""
        return max(length + self.max_new_tokens(params, length) for length in set(prompt_lengths))

    def check(
        self,
        token_ids: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        names: Sequence[str] | None = None,
    ) -> None:
        """Check that these prompts can be continued.

        Args:
            token_ids: the prompts as lists of ids.
            params: sampling parameters of all prompts, or of each.
            names: the prompts' names for error messages; default: `prompt 0`, `prompt 1` and so on.
        Raises:
            InputError: a prompt or parameter that cannot be used.
        """
        limits: dict[int, int | None] = {}  # the keys are id()s, since hashing parameters is slower
        if isinstance(params, SamplingParams):
            each: Sequence[SamplingParams] = [params] * len(token_ids)
            limits[id(params)] = self._checked_limit(params)
        else:
            each = params
            for index, own in enumerate(params):
                try:
                    if id(own) not in limits:
                        limits[id(own)] = self._checked_limit(own)
                except InputError as error:
                    raise InputError(f"sampling_params[{index}]: {error}") from error
        for index, (ids, own) in enumerate(zip(token_ids, each, strict=True)):
            name = names[index] if names else f"prompt {index}"
            self.check_ids(ids, f"{name}: token id")
            most_new, limit = own.max_tokens or 1, limits[id(own)]
            if limit is not None and len(ids) + most_new > limit:
                raise InputError(
                    f"{name}: {len(ids)} tokens and max_tokens = {most_new} more exceed the models' {limit} "
                    "positions; shorten the prompt or lower max_tokens"
                )

    def _checked_limit(self, params: SamplingParams) -> int | None:
        """Return :meth:`position_limit` of parameters with which these models can continue prompts."""
        self.check_params(params)
        if not any(model.noisy for model in self.models(params)):
            params.check_distinct()
        limit = self.position_limit(params)
        if limit is None and params.max_tokens is None:
            raise InputError("max_tokens = None: the models do not state for how many positions they were made")
        return limit

    def check_params(self, params: SamplingParams) -> None:
        """Raise InputError if `params` need a BAD that is missing, or tokens that the models do not have."""
        if params.contrast_strength and self.bad is None:
            raise InputError(
                f"contrast_strength = {params.contrast_strength:g}: there is no BAD; pass bad=, dropout= or layers=, "
                "or set contrast_strength=0"
            )
        self.check_ids(params.stop_token_ids, "stop_token_ids:")
        self.check_ids((token for token, _ in params.logit_bias), "logit_bias:")
        self.bad_word_ids(params)

    def bad_word_ids(self, params: SamplingParams) -> list[list[int]]:
        """Return the token sequences of `params.bad_words`: those of each word, and of the word after a space.

        Raises:
            InputError: there is no tokenizer, or it cannot encode a word.
        """
        if params.bad_words and self.tokenizer is None:
            raise InputError("bad_words: words need a tokenizer; pass tokenizer=")
        found: list[list[int]] = []
        for word in params.bad_words:
            name = f"bad_words: {word!r}"
            texts = [word.lstrip(), " " + word.lstrip()]
            alone, after_space = (encode(self.tokenizer, text, name, parse_special=True) for text in texts)
            if not alone:
                raise InputError(f"{name} has no tokens")
            # If only the space is added in front, the word alone bans both.
            found += [alone] if after_space[-len(alone) :] == alone else [alone, after_space]
        self.check_ids((token for ids in found for token in ids), "bad_words: token id")
        return found

    def check_ids(self, ids: Iterable[int], name: str) -> None:
        """Raise InputError if a token id is out of range; the message begins with `name`."""
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise InputError(f"{name} {wrong} is out of range; the vocabulary has {self.vocab_size} tokens")


def load_pair(
    good: "str | Path | PreTrainedModel",
    bad: "str | Path | PreTrainedModel | None",
    *,
    dropout: float | None,
    layers: int | None,
    tokenizer: "PreTrainedTokenizerBase | str | Path | None",
    dtype: "str | torch.dtype | None",
    device: "str | torch.device | None",
    trust_remote_code: bool,
) -> ModelPair:
    """Load GOOD and BAD; see :class:`cdgen.ContrastiveLM` for arguments and errors."""
    if sum(choice is not None for choice in (bad, dropout, layers)) > 1:
        raise InputError("bad, dropout, layers: give one of them")
    if dropout is not None:
        dropout = dropout_rate(dropout)
    if layers is not None:
        layers = integer("layers", layers, 1, INT32_MAX)
    trust_remote_code = switch("trust_remote_code", trust_remote_code)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    elif tokenizer is not None and not hasattr(tokenizer, "get_vocab"):
        raise InputError(f"tokenizer: is of type {type(tokenizer).__name__}; give a transformers tokenizer or a folder")
    options: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "with_tokenizer": tokenizer is None,
    }
    loaded, good_tokenizer = load(good, **options)
    other, bad_tokenizer = derived(loaded, dropout, layers), None
    if bad is not None:
        other, bad_tokenizer = load(bad, **options)
    if other is not None and other.device != loaded.device:
        raise InputError(f"GOOD is on {loaded.device}, BAD on {other.device}; put both on one device")
    return ModelPair.of(loaded, other, tokenizer or good_tokenizer, bad_tokenizer)
