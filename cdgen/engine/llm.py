"""ContrastiveLM: two models decoded together, and `generate`."""

import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgen.engine.display import progress_shown
from cdgen.engine.engine import Engine
from cdgen.engine.explain import explain
from cdgen.engine.kept_backend import KeptBackend
from cdgen.engine.outputs import CompletionOutput, RequestOutput
from cdgen.engine.page_store import check_cache_dtype
from cdgen.engine.paged_backend import CacheOptions
from cdgen.engine.prompts import list_prompts, prompt_ids, text_of
from cdgen.engine.requests import ModelPair, Prompts, batches, make_requests
from cdgen.engine.sampling_params import SamplingParams, check_params
from cdgen.engine.static_backend import StaticBackend
from cdgen.errors import InputError
from cdgen.models.bad import derived, dropout_rate
from cdgen.models.dtypes import cache_dtype, dtype_name
from cdgen.models.llama import unsupported
from cdgen.models.loading import load
from cdgen.models.tokenizers import load_tokenizer
from cdgen.values import INT32_MAX, INT64_MAX, integer, switch
from cdgen.viewer.explanation import Explanation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cdgen.engine.prompts import Prompt

log = logging.getLogger("cdgen")

_MOST_OUTPUTS = 10_000_000  # continuations that one call of `generate` keeps in memory


class ContrastiveLM:
    """Two causal language models with one vocabulary, decoded together.

    BAD is given by at most one of `bad`, `dropout` and `layers`. Without it, only plain sampling from GOOD is possible.
    The key-value cache is kept from one call to the next; :meth:`close` frees it.

    Args:
        good: a folder with config and safetensors, a checkpoint of a training run such as run@best, a GGUF file or a
            folder with one, a hub name, or a transformers model.
        bad: BAD, given like `good`.
        dropout: BAD is GOOD with attention dropout of this probability while it decodes.
        layers: BAD is GOOD's first `layers` layers, under GOOD's final norm and output layer.
        tokenizer: a transformers tokenizer, or a folder with one; default: the one found with GOOD, otherwise with BAD.
        dtype: dtype of the weights. Default: float32 on the CPU; on a GPU the checkpoint's 16-bit dtype, otherwise
            bfloat16. With float32 on a GPU, `generate` computes matrix products in TF32.
        device: device of both models; default: cuda if available.
        trust_remote_code: run Python code that comes with a checkpoint.
        max_num_seqs: greatest number of sequences decoded at the same time.
        kv_cache_dtype: dtype of the cache's pages, float32, bfloat16, float16 or fp8; default: that of the models. fp8
            takes 0.52 times the bytes of 16 bits, and needs an NVIDIA GPU of compute capability 8.9 or above; on the
            CPU it is slow.
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
        tokenizer: "PreTrainedTokenizerBase | str | Path | None" = None,
        dtype: "str | torch.dtype | None" = None,
        device: "str | torch.device | None" = None,
        trust_remote_code: bool = False,
        max_num_seqs: int = 64,
        kv_cache_dtype: "str | torch.dtype | None" = None,
        kv_cache_memory_bytes: int | None = None,
    ) -> None:
        if sum(choice is not None for choice in (bad, dropout, layers)) > 1:
            raise InputError("bad, dropout, layers: give one of them")
        self.max_num_seqs = integer("max_num_seqs", max_num_seqs, 1, INT32_MAX)
        if kv_cache_memory_bytes is not None:
            kv_cache_memory_bytes = integer("kv_cache_memory_bytes", kv_cache_memory_bytes, 1, INT64_MAX)
        if dropout is not None:
            dropout = dropout_rate(dropout)
        if layers is not None:
            layers = integer("layers", layers, 1, INT32_MAX)
        self.kv_cache: CacheOptions = {
            "kv_cache_dtype": cache_dtype(kv_cache_dtype) if kv_cache_dtype else None,
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
        }
        trust_remote_code = switch("trust_remote_code", trust_remote_code)
        if isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(tokenizer)
        elif tokenizer is not None and not hasattr(tokenizer, "get_vocab"):
            raise InputError(
                f"tokenizer: is of type {type(tokenizer).__name__}; give a transformers tokenizer or a folder"
            )
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
        check_cache_dtype(self.kv_cache["kv_cache_dtype"], loaded.device)
        self._kept = KeptBackend()
        weakref.finalize(self, self._kept.close).atexit = False
        self.pair = ModelPair.of(loaded, other, tokenizer or good_tokenizer, bad_tokenizer)
        reasons = {model.name: unsupported(model.module) for model in (loaded, other) if model is not None}
        self.static_reason = next((f"{name}: {reason}" for name, reason in reasons.items() if reason), None)
        if self.static_reason:
            log.warning(
                "%s; decoded in static batches by transformers' own forward, which is slower", self.static_reason
            )

    def __repr__(self) -> str:
        good, bad = self.pair.good, self.pair.bad
        return (
            f"ContrastiveLM(good={good.name!r}, bad={bad and bad.name!r}, dtype={dtype_name(good.module.dtype)}, "
            f"device={good.device}, vocab_size={self.pair.vocab_size}, max_num_seqs={self.max_num_seqs})"
        )

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
        prompts: "Prompt | Sequence[Prompt]",
        sampling_params: SamplingParams | None = None,
        progress: bool | Callable[[int], None] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt `sampling_params.n` times.

        A continuation is a function of the seed, its prompt's tokens, and its own index among the n; equal prompts are
        told apart by their order. It depends neither on other prompts nor on the batches in which it is decoded,
        with two exceptions. Batches of another size may round differently, which changes a token if two scores tie to
        the last bits of the logits' dtype. And if `static_reason` is not None, the noise of a dropout BAD depends on
        the batch. A continuation for which no further token can be drawn has the finish reason "error".

        Args:
            prompts: a string, which never contains special tokens; token ids as a list, array or tensor of integers;
                what a transformers tokenizer or chat template returns; or a list of these.
            sampling_params: default: `SamplingParams()`.
            progress: True shows a progress bar on standard error or in a notebook, and lines if standard error is no
                terminal; a function is called after each round of steps with the number of tokens drawn.
        Returns:
            one :class:`~cdgen.RequestOutput` per prompt, in the same order.
        Raises:
            InputError (a ValueError): a prompt cannot be used (the message gives its index), a parameter does not fit
                the models, or there is no BAD for a contrastive method.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        check_params(params)
        listed = list_prompts(prompts)
        longest = self.longest_prompt(params)
        token_ids = [
            prompt_ids(self.tokenizer, self.bos_token_id, prompt, f"prompt {index}", longest=longest)
            for index, prompt in enumerate(listed)
        ]
        self.pair.check(token_ids, params)
        requests = [
            RequestOutput(text_of(self.tokenizer, *both), both[1], []) for both in zip(listed, token_ids, strict=True)
        ]
        if len(listed) * params.n > _MOST_OUTPUTS:
            raise InputError(
                f"n = {params.n}: {len(listed)} prompts have {len(listed) * params.n:,} continuations, but one call "
                f"returns at most {_MOST_OUTPUTS:,}; split the prompts over several calls"
            )
        sequences = [(prompt, index) for prompt in range(len(listed)) for index in range(params.n)]
        outputs: dict[int, CompletionOutput] = {}
        with progress_shown(progress, len(sequences), params.max_tokens, outputs.__setitem__) as callbacks:
            self.continue_sequences(
                Prompts(token_ids),
                sequences,
                params,
                on_finished=callbacks.on_finished,
                on_tokens=callbacks.on_tokens,
            )
        for place, (prompt, _) in enumerate(sequences):
            requests[prompt].outputs.append(outputs[place])
        return requests

    def explain(
        self, text: "Prompt", sampling_params: SamplingParams | None = None, *, prompt_length: int | None = None
    ) -> Explanation:
        """Return what GOOD and BAD predict at each token of a text, and how likely the token was to be drawn.

        The distribution is the one from which :meth:`generate` draws with these parameters, bans included. For
        `prompt_token_ids + token_ids` of its outputs, the log-probabilities are those that it returns, up to rounding;
        only the noise of a dropout BAD differs, which is a function of the seed and the text here. BAD is run even if
        `contrast_strength` is 0. A notebook shows the result as a page in which each token can be selected.

        Args:
            text: a string, which never contains special tokens, or token ids in any form that :meth:`generate` accepts.
            sampling_params: default: `SamplingParams()`; without BAD, `SamplingParams(contrast_strength=0)`.
            prompt_length: number of tokens at the beginning that belong to the prompt, from which `min_tokens` counts.
                Default: 1 if the text begins with the start-of-text token, otherwise 0.
        Raises:
            InputError (a ValueError): the text cannot be used, is longer than the models' positions, or gets a logit
                that is not finite; or the parameters do not fit the models.
        """
        return explain(self.pair, self.bos_token_id, text, sampling_params, prompt_length)

    def continue_sequences(
        self,
        prompts: Prompts,
        sequences: Sequence[tuple[int, int]],
        params: SamplingParams,
        *,
        on_finished: Callable[[int, CompletionOutput], None],
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        """Decode any sequences of a job; unlike :meth:`generate`, this checks nothing.

        Args:
            prompts: all prompts of the job.
            sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent. A pair determines the
                noise, so a job can be split into any number of calls.
            params: sampling parameters.
            on_finished: called for each sequence that finishes, with its index in `sequences` and its output.
            on_tokens: called after each round of steps with the number of tokens drawn.
        """
        if not sequences:
            return
        if self.static_reason is None:
            lengths = (len(prompts.token_ids[prompt]) for prompt, _ in sequences)
            backend = self._kept.take(
                self.pair,
                params,
                self.kv_cache,
                size=min(self.max_num_seqs, len(sequences)),
                largest=self.max_num_seqs,
                longest=self.pair.longest_sequence(params, lengths),
            )
            requests = make_requests(prompts, sequences)
            Engine(self.pair, backend, requests, params, on_finished, on_tokens).run()
            self._kept.keep(backend)
            return
        done = 0
        for batch in batches(sequences, params.n, self.max_num_seqs):
            static, requests = StaticBackend(self.pair, params, len(batch)), make_requests(prompts, batch)

            def finished(place: int, output: CompletionOutput, before: int = done) -> None:
                on_finished(before + place, output)

            Engine(self.pair, static, requests, params, finished, on_tokens).run()
            static.close()
            done += len(batch)

    def close(self) -> None:
        """Free the cache and the CUDA graphs, which are kept between calls; the next call builds new ones."""
        self._kept.close()

    def prompt_ids(self, prompt: "Prompt", name: str, parse_special: bool = False) -> list[int]:
        """Return the token ids of a prompt; an empty prompt is the start-of-text token.

        Args:
            prompt: a string, or token ids in any form that :meth:`generate` accepts.
            name: the prompt's name for error messages.
            parse_special: read "</s>" and the like in a string as special tokens. By default they are text, as they are
                in a training corpus.
        Raises:
            InputError: a string without a tokenizer or with an unpaired surrogate, token ids that are not integers, or
                an empty prompt without a start-of-text token.
        """
        return prompt_ids(self.tokenizer, self.bos_token_id, prompt, name, parse_special)

    def longest_prompt(self, params: SamplingParams) -> int | None:
        """Return the greatest number of tokens that a prompt may have, or None if the models have no limit.

        Raises:
            InputError: `max_tokens` leaves no room for a prompt.
        """
        limit, new = self.pair.position_limit(params), params.max_tokens or 1
        if limit is not None and new >= limit:
            raise InputError(
                f"max_tokens = {new}: leaves no room for a prompt in the models' {limit} positions; lower max_tokens"
            )
        return None if limit is None else limit - new
