"""ContrastiveLM: two models decoded together, and `generate`."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cdgen.engine.engine import Engine
from cdgen.engine.outputs import CompletionOutput, RequestOutput
from cdgen.engine.paged_backend import CacheOptions, PagedBackend
from cdgen.engine.requests import ModelPair, make_requests
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.static_backend import StaticBackend
from cdgen.engine.text import decode, encode
from cdgen.errors import InputError
from cdgen.models.bad import attention_dropout, first_layers
from cdgen.models.dtypes import float_dtype
from cdgen.models.llama import unsupported
from cdgen.models.loading import load
from cdgen.models.vocabulary import shared_vocab_size

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cdgen.engine.backend import Backend
    from cdgen.models.language_model import LanguageModel

log = logging.getLogger("cdgen")

_Item = TypeVar("_Item")


class ContrastiveLM:
    """Two causal language models with one vocabulary, decoded together.

    BAD is given by at most one of `bad`, `dropout` and `layers`. Without it, only plain sampling from GOOD is possible.

    Args:
        good: a folder with config and safetensors, a checkpoint of a training run such as run@best, a GGUF file or a
            folder with one, a hub name, or a transformers model.
        bad: BAD, given like `good`.
        dropout: BAD is GOOD with attention dropout of this probability while it decodes.
        layers: BAD is GOOD's first `layers` layers, under GOOD's final norm and output layer.
        tokenizer: a transformers tokenizer; default: the one found with GOOD, otherwise with BAD.
        dtype: dtype of the weights. Default: float32 on the CPU; on a GPU the checkpoint's 16-bit dtype, otherwise
            bfloat16. With float32 on a GPU, `generate` computes matrix products in TF32.
        device: device of both models; default: cuda if available.
        trust_remote_code: run Python code that comes with a checkpoint.
        max_num_seqs: greatest number of sequences decoded at the same time.
        kv_cache_dtype: dtype of the cache's pages, float32, bfloat16 or float16; default: that of the models.
        kv_cache_memory_bytes: cache budget of both models together. Default: enough for `max_num_seqs` sequences, but
            on a GPU at most 90 % of the memory that is free once the weights are loaded.
    Attributes:
        pair: the models and what they share.
        static_reason: why the models are decoded in static batches by transformers' own forward; None if they run on
            the paged cache with continuous batching, as Llama, Mistral, Qwen2 and Qwen3 do.
    Raises:
        InputError (a ValueError): the models cannot be loaded, or do not share a vocabulary.
    """

    def __init__(
        self,
        good: "str | Path | PreTrainedModel",
        bad: "str | Path | PreTrainedModel | None" = None,
        *,
        dropout: float | None = None,
        layers: int | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        dtype: "str | torch.dtype | None" = None,
        device: "str | torch.device | None" = None,
        trust_remote_code: bool = False,
        max_num_seqs: int = 64,
        kv_cache_dtype: "str | torch.dtype | None" = None,
        kv_cache_memory_bytes: int | None = None,
    ) -> None:
        if sum(choice is not None for choice in (bad, dropout, layers)) > 1:
            raise InputError("bad, dropout, layers: give one of them")
        if max_num_seqs < 1:
            raise InputError(f"max_num_seqs = {max_num_seqs}: must be 1 or more")
        self.max_num_seqs = max_num_seqs
        loaded, good_tokenizer = load(good, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        other, bad_tokenizer = None, None
        if bad is not None:
            other, bad_tokenizer = load(bad, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        elif dropout is not None:
            other = attention_dropout(loaded, dropout)
        elif layers is not None:
            other = first_layers(loaded, layers)
        if other is not None and other.device != loaded.device:
            raise InputError(f"GOOD is on {loaded.device}, BAD on {other.device}; put both on one device")
        if tokenizer is not None:
            good_tokenizer, bad_tokenizer = tokenizer, None
        self.pair = _pair(loaded, other, good_tokenizer, bad_tokenizer)
        reasons = {model.name: unsupported(model.module) for model in (loaded, other) if model is not None}
        self.static_reason = next((f"{name}: {reason}" for name, reason in reasons.items() if reason), None)
        if self.static_reason:
            log.warning(
                "%s; decoded in static batches by transformers' own forward, which is slower", self.static_reason
            )
        self.kv_cache: CacheOptions = {
            "kv_cache_dtype": float_dtype("kv_cache_dtype", kv_cache_dtype) if kv_cache_dtype else None,
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
        }

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        return self.pair.tokenizer

    @property
    def bos_token_id(self) -> int | None:
        """The start-of-text token of the tokenizer, otherwise of GOOD; or None."""
        if self.tokenizer is not None and self.tokenizer.bos_token_id is not None:
            return int(self.tokenizer.bos_token_id)
        token: int | None = getattr(self.pair.good.module.config.get_text_config(), "bos_token_id", None)
        return token

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt `sampling_params.n` times.

        A continuation is a function of the seed, its prompt's index in the list, and its own index among the n. It does
        not depend on the batches in which it is decoded, with two exceptions. Batches of another size may round
        differently, which changes a token if two scores tie to the last bits of the logits' dtype. And if
        `static_reason` is not None, the noise of a dropout BAD depends on the batch.

        Args:
            prompts: a string, a list of token ids, or a list of either kind.
            sampling_params: default: `SamplingParams()`.
            progress: called after each step with the number of tokens drawn.
        Returns:
            one :class:`~cdgen.RequestOutput` per prompt, in the same order.
        Raises:
            InputError (a ValueError): a prompt cannot be used (the message gives its index), or there is no BAD for a
                contrastive method.
        """
        params = sampling_params or SamplingParams()
        listed = _as_list(prompts)
        token_ids = [self.prompt_ids(prompt, f"prompt {index}") for index, prompt in enumerate(listed)]
        self.check(token_ids, params)
        requests = [RequestOutput(self._text(*both), both[1], []) for both in zip(listed, token_ids, strict=True)]
        sequences = [(prompt, index) for prompt in range(len(listed)) for index in range(params.n)]
        outputs = self.continue_sequences(token_ids, sequences, params, progress)
        for (prompt, _), output in zip(sequences, outputs, strict=True):
            requests[prompt].outputs.append(output)
        return requests

    def continue_sequences(
        self,
        token_ids: Sequence[list[int]],
        sequences: Sequence[tuple[int, int]],
        params: SamplingParams,
        on_tokens: Callable[[int], None] | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[CompletionOutput]:
        """Decode any sequences of a job; unlike :meth:`generate`, this checks nothing.

        Args:
            token_ids: all prompts of the job, as lists of ids.
            sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent. A pair determines the
                noise, so a job can be split into any number of calls.
            params: sampling parameters.
            on_tokens: called after each step with the number of tokens drawn.
            on_finished: called with the number of sequences that finished.
        Returns:
            one output per pair, in the same order.
        """
        if not sequences:
            return []
        if self.static_reason is None:
            return self._engine(token_ids, sequences, params, on_tokens, on_finished).run()
        outputs = []
        for batch in batches(sequences, params.n, self.max_num_seqs):
            outputs += self._engine(token_ids, batch, params, on_tokens, on_finished).run()
        return outputs

    def _engine(
        self,
        token_ids: Sequence[list[int]],
        sequences: Sequence[tuple[int, int]],
        params: SamplingParams,
        on_tokens: Callable[[int], None] | None,
        on_finished: Callable[[int], None] | None,
    ) -> Engine:
        requests = make_requests(token_ids, sequences)
        size = min(self.max_num_seqs, len(sequences))
        backend: Backend
        if self.static_reason:
            backend = StaticBackend(self.pair, params, size)
        else:
            longest = max(len(request.token_ids) for request in requests) + params.max_tokens
            backend = PagedBackend(self.pair, params, size, longest, **self.kv_cache)
        return Engine(self.pair, backend, requests, params, on_tokens, on_finished)

    def prompt_ids(self, prompt: str | Sequence[int], name: str) -> list[int]:
        """Return the token ids of a prompt; an empty prompt is the start-of-text token.

        Args:
            prompt: a string, or token ids, which are returned as they are.
            name: the prompt's name for error messages.
        Raises:
            InputError: a string without a tokenizer, or an empty prompt without a start-of-text token.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(f"{name}: is a string, but there is no tokenizer; pass tokenizer=, or token ids")
            prompt = encode(self.tokenizer, prompt)
        ids = list(map(int, prompt))
        if not ids:
            if self.bos_token_id is None:
                raise InputError(f"{name}: is empty, and the tokenizer has no start-of-text token to begin with")
            ids = [self.bos_token_id]
        return ids

    def check(
        self, token_ids: Sequence[Sequence[int]], params: SamplingParams, names: Sequence[str] | None = None
    ) -> None:
        """Check that these prompts can be continued.

        Args:
            token_ids: the prompts as lists of ids.
            params: sampling parameters.
            names: the prompts' names for error messages; default: `prompt 0`, `prompt 1` and so on.
        Raises:
            InputError: a prompt or parameter that cannot be used.
        """
        vocab_size = self.pair.vocab_size
        if params.contrast_strength and self.pair.bad is None:
            raise InputError(
                f"contrast_strength = {params.contrast_strength:g}: there is no BAD; pass bad=, dropout= or layers=, "
                "or set contrast_strength=0"
            )
        limits = [model.position_limit for model in self.pair.models(params)]
        limit = min((limit for limit in limits if limit), default=None)
        for token in params.stop_token_ids:
            if token >= vocab_size:
                raise InputError(f"stop_token_ids: {token} is out of range; the vocabulary has {vocab_size} tokens")
        for index, ids in enumerate(token_ids):
            name = names[index] if names else f"prompt {index}"
            wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
            if wrong is not None:
                raise InputError(f"{name}: token id {wrong} is out of range; the vocabulary has {vocab_size} tokens")
            if limit is not None and len(ids) + params.max_tokens > limit:
                raise InputError(
                    f"{name}: {len(ids)} tokens and max_tokens = {params.max_tokens} more exceed the models' {limit} "
                    "positions; shorten the prompt or lower max_tokens"
                )

    def _text(self, prompt: str | Sequence[int], ids: list[int]) -> str | None:
        if isinstance(prompt, str):
            return prompt
        return None if self.tokenizer is None else decode(self.tokenizer, ids, False)


def batches(sequences: Sequence[_Item], n: int, max_num_seqs: int) -> list[Sequence[_Item]]:
    """Split `sequences`, n adjacent ones per prompt, into batches of at most max_num_seqs.

    The n sequences of a prompt stay in one batch if n <= max_num_seqs.
    """
    size = max_num_seqs - max_num_seqs % n if n <= max_num_seqs else max_num_seqs
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]


def _pair(
    good: "LanguageModel",
    bad: "LanguageModel | None",
    good_tokenizer: "PreTrainedTokenizerBase | None",
    bad_tokenizer: "PreTrainedTokenizerBase | None",
) -> ModelPair:
    vocab_size = shared_vocab_size(good, bad, good_tokenizer, bad_tokenizer)
    tokenizer = good_tokenizer or bad_tokenizer
    eos = set(good.eos_token_ids)
    if tokenizer and tokenizer.eos_token_id is not None:
        eos.add(tokenizer.eos_token_id)
    return ModelPair(good, bad, tokenizer, vocab_size, tuple(sorted(token for token in eos if token < vocab_size)))


def _as_list(prompts: str | Iterable[int] | Iterable[str | Sequence[int]]) -> "list[str | Sequence[int]]":
    """Return a list of prompts, also for a single one."""
    if isinstance(prompts, str):
        return [prompts]
    listed = list(prompts)
    single = bool(listed) and all(isinstance(token, int) for token in listed)
    return [listed] if single else listed  # type: ignore[list-item, return-value]
