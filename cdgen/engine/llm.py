"""ContrastiveLM: two models decoded together, and `generate`."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgen.engine.chat import ChatTemplate
from cdgen.engine.display import progress_shown
from cdgen.engine.explain import explain
from cdgen.engine.jobs import Job, batchable, decode_paged, decode_static
from cdgen.engine.kept_backend import KeptBackend
from cdgen.engine.model_pair import load_pair
from cdgen.engine.outputs import CompletionOutput, RequestOutput
from cdgen.engine.page_store import check_cache_dtype
from cdgen.engine.paged_backend import CacheOptions
from cdgen.engine.prompts import list_prompts, prompt_ids, text_of
from cdgen.engine.requests import Prompts, default_batch
from cdgen.engine.sampling_params import SamplingParams, params_of_each
from cdgen.errors import InputError
from cdgen.models.dtypes import cache_dtype, dtype_name
from cdgen.models.llama import unsupported
from cdgen.values import INT32_MAX, INT64_MAX, integer
from cdgen.viewer.explanation import Explanation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cdgen.engine.chat import Message, Tool
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
        max_num_seqs: greatest number of sequences decoded at the same time. Default: 512 on a GPU, and 64 on a CPU and
            for models that are decoded in static batches.
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
        max_num_seqs: int | None = None,
        kv_cache_dtype: "str | torch.dtype | None" = None,
        kv_cache_memory_bytes: int | None = None,
    ) -> None:
        if max_num_seqs is not None:
            max_num_seqs = integer("max_num_seqs", max_num_seqs, 1, INT32_MAX)
        if kv_cache_memory_bytes is not None:
            kv_cache_memory_bytes = integer("kv_cache_memory_bytes", kv_cache_memory_bytes, 1, INT64_MAX)
        self.kv_cache: CacheOptions = {
            "kv_cache_dtype": cache_dtype(kv_cache_dtype) if kv_cache_dtype else None,
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
        }
        self.pair = load_pair(
            good,
            bad,
            dropout=dropout,
            layers=layers,
            tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        check_cache_dtype(self.kv_cache["kv_cache_dtype"], self.pair.good.device)
        self._kept = KeptBackend()
        weakref.finalize(self, self._kept.close).atexit = False
        models = (model for model in (self.pair.good, self.pair.bad) if model is not None)
        reasons = {model.name: unsupported(model.module) for model in models}
        self.static_reason = next((f"{name}: {reason}" for name, reason in reasons.items() if reason), None)
        if self.static_reason:
            log.warning(
                "%s; decoded in static batches by transformers' own forward, which is slower", self.static_reason
            )
        self.max_num_seqs = max_num_seqs or default_batch("cpu" if self.static_reason else self.pair.good.device.type)

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
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
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
            sampling_params: one for all prompts, or a list with one per prompt. Default: `SamplingParams()`.
            progress: True shows a progress bar on standard error or in a notebook, and lines if standard error is no
                terminal; a function is called after each round of steps with the number of tokens drawn.
        Returns:
            one :class:`~cdgen.RequestOutput` per prompt, in the same order.
        Raises:
            InputError (a ValueError): a prompt cannot be used (the message gives its index), a parameter does not fit
                the models, or there is no BAD for a contrastive method.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        listed = list_prompts(prompts)
        each = params_of_each(params, len(listed))
        token_ids = self._all_prompt_ids(listed, each)
        self.pair.check(token_ids, params)
        requests = [
            RequestOutput(text_of(self.tokenizer, *both), both[1], []) for both in zip(listed, token_ids, strict=True)
        ]
        total = sum(own.n for own in each)
        if total > _MOST_OUTPUTS:
            raise InputError(
                f"n: {len(listed)} prompts have {total:,} continuations, but one call "
                f"returns at most {_MOST_OUTPUTS:,}; split the prompts over several calls"
            )
        sequences = [(prompt, index) for prompt, own in enumerate(each) for index in range(own.n)]
        limits = {own.max_tokens for own in each}
        most_new = limits.pop() if len(limits) == 1 else None
        outputs: dict[int, CompletionOutput] = {}
        with progress_shown(progress, total, most_new, outputs.__setitem__) as callbacks:
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

    def _all_prompt_ids(self, prompts: "Sequence[Prompt]", params: Sequence[SamplingParams]) -> list[list[int]]:
        """Return the token ids of prompts with these parameters."""
        distinct = {id(own): own for own in params}  # the keys are id()s, since hashing parameters is slower
        longest = {key: self.longest_prompt(own) for key, own in distinct.items()}
        return [
            prompt_ids(self.tokenizer, self.bos_token_id, prompt, f"prompt {index}", longest=longest[id(own)])
            for index, (prompt, own) in enumerate(zip(prompts, params, strict=True))
        ]

    def chat(
        self,
        messages: "Sequence[Message] | Sequence[Sequence[Message]]",
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool | Callable[[int], None] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: "Sequence[Tool] | None" = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer chat messages: the tokenizer's template makes a prompt of each conversation; names as in vLLM.

        Args:
            messages: a conversation, which is a list of messages such as {"role": "user", "content": "Hello"}; or a
                list of conversations. Strings such as `"</s>"` in a message are special tokens if the tokenizer has
                them.
            sampling_params, progress: see :meth:`generate`.
            chat_template: a Jinja template, or the name of one of the tokenizer's; default: the tokenizer's own.
            add_generation_prompt: end the prompt with what begins an answer.
            continue_final_message: continue the last message instead of answering it; needs
                `add_generation_prompt=False`.
            tools: functions or JSON schemas that the template describes to the model.
            chat_template_kwargs: more variables of the template.
        Returns:
            one :class:`~cdgen.RequestOutput` per conversation, in the same order; `prompt` is the text that the
            template made.
        Raises:
            InputError (a ValueError): the tokenizer has no chat template, the template refuses the messages, or
                what :meth:`generate` raises.
        """
        template = ChatTemplate(
            chat_template, add_generation_prompt, continue_final_message, tools, chat_template_kwargs or {}
        )
        return self.generate(template.prompts(self.tokenizer, messages), sampling_params, progress)

    def explain(
        self, text: "Prompt", sampling_params: SamplingParams | None = None, *, prompt_length: int | None = None
    ) -> Explanation:
        """Return what GOOD and BAD predict at each token of a text, and how likely the token was to be drawn.

        The distribution is the one from which :meth:`generate` draws, bans and penalties included. For
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
        params: SamplingParams | Sequence[SamplingParams],
        *,
        on_finished: Callable[[int, CompletionOutput], None],
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        """Decode any sequences of a job; unlike :meth:`generate`, this checks nothing.

        Args:
            prompts: all prompts of the job.
            sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent. A pair determines the
                noise, so a job can be split into any number of calls.
            params: sampling parameters of all prompts, or of each.
            on_finished: called for each sequence that finishes, with its index in `sequences` and its output.
            on_tokens: called after each round of steps with the number of tokens drawn.
        """
        if not sequences:
            return
        static = self.static_reason is not None
        if isinstance(params, SamplingParams):
            jobs = iter([Job(prompts, sequences, params, on_finished, on_tokens)])
        else:
            first = params[sequences[0][0]]
            jobs = batchable(Job(prompts, sequences, first, on_finished, on_tokens, params), self.pair, static)
        for job in jobs:
            if static:
                decode_static(job, self.pair, self.max_num_seqs)
            else:
                decode_paged(job, self.pair, self._kept, self.kv_cache, self.max_num_seqs)

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
