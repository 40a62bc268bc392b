"""ContrastiveLM: two models, and generate()."""

import logging
from collections import deque
from itertools import groupby

from cdgen.engine.engine import Engine, Pair, Request
from cdgen.engine.outputs import CompletionOutput, RequestOutput
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.static_backend import StaticBackend
from cdgen.engine.text import decode, encode
from cdgen.errors import InputError
from cdgen.models.bad import attention_dropout, first_layers
from cdgen.models.dtypes import float_dtype
from cdgen.models.llama import unsupported
from cdgen.models.loading import load
from cdgen.models.vocabulary import shared_vocab_size

log = logging.getLogger("cdgen")

SEQUENCES_PER_PROMPT = 2**32  # continuation c of prompt p is text number p * 2**32 + c


class ContrastiveLM:
    """Two causal language models with one vocabulary, decoded together.

    Args:
        good: a folder (config and safetensors), a GGUF file or a folder with one, a hub name, or a transformers model.
        bad: the same; or use one of the two following; or none of the three, for plain sampling of GOOD.
        dropout: BAD is GOOD with attention dropout of this probability while it decodes.
        layers: BAD is GOOD's first layers, so many, under GOOD's final norm and output head.
        tokenizer: a transformers tokenizer. Default: the one found with GOOD, or with BAD.
        dtype: dtype of the weights. Default: float32 on the CPU; on a GPU the checkpoint's 16-bit dtype, otherwise
            bfloat16. With float32 on a GPU, `generate` computes matrix products in TF32.
        device: default cuda where there is one.
        trust_remote_code: run Python code that comes with a checkpoint.
        max_num_seqs: texts decoded together.
        kv_cache_dtype: of the cache's pages: float32, bfloat16 or float16; default the models' own.
        kv_cache_memory_bytes: cache budget of both models together. Default: enough for `max_num_seqs` texts, but on a
            GPU at most 90 % of the memory that is free once the weights are loaded.
    Attributes:
        static_reason: why these models are decoded in static batches by transformers' own forward, or None: Llama,
            Mistral, Qwen2 and Qwen3 run on a paged cache, and a waiting text takes the place of each that ends.
    Raises:
        InputError (a ValueError): models that cannot be loaded or do not share a vocabulary.
    """

    def __init__(
        self,
        good,
        bad=None,
        *,
        dropout=None,
        layers=None,
        tokenizer=None,
        dtype=None,
        device=None,
        trust_remote_code=False,
        max_num_seqs=64,
        kv_cache_dtype=None,
        kv_cache_memory_bytes=None,
    ):
        if sum(choice is not None for choice in (bad, dropout, layers)) > 1:
            raise InputError("bad, dropout, layers: give one of them")
        if max_num_seqs < 1:
            raise InputError(f"max_num_seqs = {max_num_seqs}: must be 1 or more")
        self.max_num_seqs = max_num_seqs
        options = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        good, good_tokenizer = load(good, **options)
        bad_tokenizer = None
        if bad is not None:
            bad, bad_tokenizer = load(bad, **options)
        elif dropout is not None:
            bad = attention_dropout(good, dropout)
        elif layers is not None:
            bad = first_layers(good, layers)
        if bad is not None and bad.device != good.device:
            raise InputError(f"GOOD is on {good.device}, BAD on {bad.device}; put both on one device")
        if tokenizer is not None:
            good_tokenizer, bad_tokenizer = tokenizer, None
        vocab_size = shared_vocab_size(good, bad, good_tokenizer, bad_tokenizer)
        tokenizer = good_tokenizer or bad_tokenizer
        eos = good.eos_token_ids | (
            {tokenizer.eos_token_id} if tokenizer and tokenizer.eos_token_id is not None else set()
        )
        self.pair = Pair(good, bad, tokenizer, vocab_size, tuple(sorted(i for i in eos if i < vocab_size)))
        reasons = {model.name: unsupported(model.module) for model in (good, bad) if model is not None}
        self.static_reason = next((f"{name}: {reason}" for name, reason in reasons.items() if reason), None)
        if self.static_reason:
            log.warning(
                "%s; decoded in static batches by transformers' own forward, which is slower", self.static_reason
            )
        self.kv_cache = {
            "kv_cache_dtype": kv_cache_dtype and float_dtype("kv_cache_dtype", kv_cache_dtype),
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
        }

    @property
    def tokenizer(self):
        return self.pair.tokenizer

    @property
    def bos_token_id(self):
        """The tokenizer's start of text, or the model's, or None."""
        if self.tokenizer is not None and self.tokenizer.bos_token_id is not None:
            return self.tokenizer.bos_token_id
        return getattr(self.pair.good.module.config.get_text_config(), "bos_token_id", None)

    def generate(self, prompts, sampling_params=None, progress=None):
        """Continue every prompt `sampling_params.n` times.

        A text is a function of the seed, its prompt's place in the list and its own number among the n, whatever
        batches they are decoded in; if `static_reason` is not None, a dropout BAD is an exception: its noise belongs to
        the batch. (Batches of another size round otherwise; where two scores tie to the last bits of the logits'
        dtype, a token may turn.)

        Args:
            prompts: a string, a list of token ids, or a list of either kind.
            sampling_params: :class:`SamplingParams`; default `SamplingParams()`.
            progress: called after each step with the number of tokens it drew.
        Returns:
            list of :class:`RequestOutput`, in the order of the prompts.
        Raises:
            InputError (a ValueError): a prompt that cannot be used, by its index; contrast without a BAD.
        """
        params = sampling_params or SamplingParams()
        prompts = _as_list(prompts)
        token_ids = [self.prompt_ids(prompt, f"prompt {index}") for index, prompt in enumerate(prompts)]
        self.check(token_ids, params)
        requests = [RequestOutput(self._text(*both), both[1], []) for both in zip(prompts, token_ids, strict=True)]
        rows = [(prompt, index) for prompt in range(len(prompts)) for index in range(params.n)]
        drawn = self.continue_rows(token_ids, rows, params, progress)
        for (prompt, index), text in zip(rows, drawn, strict=True):
            output = CompletionOutput(index, text.text, text.token_ids, text.finish_reason, text.logprobs)
            requests[prompt].outputs.append(output)
        return requests

    def continue_rows(self, token_ids, rows, params, progress=None, finished=None):
        """Decode any texts of a run.

        Args:
            token_ids: the run's prompts, as lists of ids; the place in this list is part of a text's number.
            rows: list of (prompt, continuation) index pairs, each prompt's rows together.
            progress: called after each step with the number of tokens it drew.
            finished: called with the number of texts that ended.
        Returns:
            list of :class:`~cdgen.engine.engine.Continuation`, one for each row.
        """
        if not self.static_reason:
            return self._engine(token_ids, rows, params, progress, finished).run() if rows else []
        drawn = []
        for batch in batches(rows, params.n, self.max_num_seqs):
            drawn += self._engine(token_ids, batch, params, progress, finished).run()
        return drawn

    def _engine(self, token_ids, rows, params, progress, finished):
        requests, place = [], 0
        for prompt, group in groupby(rows, key=lambda row: row[0]):
            first, texts = prompt * SEQUENCES_PER_PROMPT, deque()
            for _, index in group:
                texts.append((place, first + index))
                place += 1
            requests.append(Request(token_ids[prompt], texts, first))
        size = min(self.max_num_seqs, len(rows))
        if self.static_reason:
            backend = StaticBackend(self.pair, params, size)
        else:
            longest = max(len(request.token_ids) for request in requests) + params.max_tokens
            backend = PagedBackend(self.pair, params, size, longest, **self.kv_cache)
        return Engine(self.pair, backend, requests, params, progress, finished)

    def prompt_ids(self, prompt, name):
        """Token ids of a string, or of ids as given; an empty prompt is the start of text. `name` is for messages."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(f"{name}: is a string, but there is no tokenizer; give tokenizer=, or token ids")
            prompt = encode(self.tokenizer, prompt)
        ids = list(map(int, prompt))
        if not ids:
            if self.bos_token_id is None:
                raise InputError(f"{name}: is empty, and the tokenizer has no start-of-text token to begin with")
            ids = [self.bos_token_id]
        return ids

    def check(self, token_ids, params, names=None):
        """Raise InputError for the first prompt (list of ids) that cannot be continued with `params`."""
        if params.contrast_strength and self.pair.bad is None:
            raise InputError(
                f"contrast_strength = {params.contrast_strength:g}: there is no BAD; give bad=, dropout= or layers=, "
                "or set contrast_strength=0"
            )
        used = [self.pair.good, self.pair.bad] if params.contrast_strength else [self.pair.good]
        limit = min((model.position_limit for model in used if model.position_limit), default=None)
        for token in params.stop_token_ids:
            if token >= self.pair.vocab_size:
                raise InputError(
                    f"stop_token_ids: {token} is out of range; the vocabulary has {self.pair.vocab_size} tokens"
                )
        for index, ids in enumerate(token_ids):
            name = names[index] if names else f"prompt {index}"
            wrong = next((token for token in ids if not 0 <= token < self.pair.vocab_size), None)
            if wrong is not None:
                raise InputError(
                    f"{name}: token id {wrong} is out of range; the vocabulary has {self.pair.vocab_size} tokens"
                )
            if limit is not None and len(ids) + params.max_tokens > limit:
                raise InputError(
                    f"{name}: {len(ids)} tokens and max_tokens = {params.max_tokens} more exceed the models' {limit} "
                    "positions; shorten the one or lower the other"
                )

    def _text(self, prompt, ids):
        if isinstance(prompt, str):
            return prompt
        return None if self.tokenizer is None else decode(self.tokenizer, ids, False)


def batches(rows, n, max_num_seqs):
    """Cut `rows` (n of each prompt, together) into batches of at most max_num_seqs, whole prompts where they fit."""
    size = max_num_seqs - max_num_seqs % n if n <= max_num_seqs else max_num_seqs
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _as_list(prompts):
    if isinstance(prompts, str):
        return [prompts]
    prompts = list(prompts)
    return [prompts] if prompts and all(isinstance(token, int) for token in prompts) else prompts
