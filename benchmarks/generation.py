"""Several ways to decode contrastively, as objects with the same methods, so that one step of each can be timed.

A loop can start at any length: its caches are filled with noise instead of a computed prompt, since the time of a step
does not depend on what the cache contains.
"""

import math
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, Cache, DynamicCache, LogitsProcessor, PreTrainedModel, StaticCache

from benchmarks.noise_cache import NOISE, fill
from cdgen import CompletionOutput, SamplingParams
from cdgen.bench.rivals import literal_chain
from cdgen.engine.engine import Engine
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, make_requests
from cdgen.engine.static_backend import StaticBackend
from cdgen.models.language_model import LanguageModel

STEPS = 12  # new tokens that a loop has room for by default


class Loop(Protocol):
    """A way to decode, constructed from GOOD, BAD and the sampling parameters."""

    def start(self, prompts: list[list[int]]) -> list[int]:
        """Compute prompts of one length; return the first token of each sequence."""
        ...

    def start_at(self, sequences: int, length: int) -> None:
        """Start `sequences` sequences that have `length` tokens each, without computing those tokens."""
        ...

    def step(self) -> list[int]:
        """Draw the next token of every sequence; return the tokens."""
        ...

    def close(self) -> None:
        """Free caches and threads."""
        ...


LoopFactory = Callable[[LanguageModel, LanguageModel, SamplingParams], Loop]


def random_llama(
    layers: int,
    width: int,
    heads: int,
    intermediate: int,
    vocab_size: int = 32_000,
    kv_heads: int | None = None,
    tied: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> transformers.LlamaForCausalLM:
    """Create a Llama with random weights on the device.

    Its logits have standard deviation 3, so that its distributions are peaked like those of a trained model.

    Args:
        kv_heads: default: `heads`. tied: whether the output layer is the embedding.
    """
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.lm_head.weight.data.normal_(std=3 / width**0.5)
    return model


def random_model(*shape: Any, **options: Any) -> LanguageModel:
    """Return :func:`random_llama` as a :class:`LanguageModel`, which the engine takes."""
    module = random_llama(*shape, **options)
    return LanguageModel(module, f"{module.config.num_hidden_layers} x {module.config.hidden_size}")


def sampling_params(**changes: Any) -> SamplingParams:
    """Return the sampling parameters of the benchmarks, with changes."""
    return SamplingParams(**{"max_tokens": STEPS, "ignore_eos": True} | changes)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PaperLoop:
    """The paper's program: two transformers models, DynamicCache, the literal chain of logits, multinomial."""

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        self.models = (good.module, bad.module)
        self.device, self.room = good.device, params.max_tokens
        self.draw = greedy if params.temperature == 0 else literal_chain
        self.caches: list[Cache] = []

    def start(self, prompts: list[list[int]]) -> list[int]:
        """See :class:`Loop`. Every sequence's prompt is computed, even if prompts are equal."""
        self.caches = [self._new_cache(model, len(prompts[0])) for model in self.models]
        self.ids = torch.tensor(prompts, device=self.device)
        return self.step()

    def start_at(self, sequences: int, length: int) -> None:
        """See :class:`Loop`."""
        self.caches = [fill(self._new_cache(model, length), model, sequences, length) for model in self.models]
        self.ids = torch.zeros(sequences, 1, dtype=torch.long, device=self.device)

    def step(self) -> list[int]:
        """See :class:`Loop`."""
        self.advance()
        return self.ids[:, 0].tolist()

    @torch.inference_mode()
    def advance(self) -> None:
        """Make a step without waiting for the device."""
        pairs = zip(self.models, self.caches, strict=True)
        good, bad = (self._forward(model, self.ids, cache) for model, cache in pairs)
        self.ids = self.draw(good, bad).unsqueeze(1)

    def close(self) -> None:
        """See :class:`Loop`."""
        self.caches = []

    def _new_cache(self, model: PreTrainedModel, length: int) -> Cache:
        return DynamicCache()

    def _forward(self, model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        return _last_logits(model, ids, cache)


def _last_logits(model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Return the logits [B, V] of the last token."""
    return model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]


class StaticLoop(PaperLoop):
    """The paper's program with StaticCache, for sequences of one length."""

    def _new_cache(self, model: PreTrainedModel, length: int) -> Cache:
        return StaticCache(config=model.config, max_cache_len=length + self.room)


class CompiledLoop(StaticLoop):
    """The same, with each model's forward under torch.compile and in CUDA graphs."""

    options: ClassVar[dict[str, Any]] = {"mode": "reduce-overhead"}  # passed to torch.compile

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        super().__init__(good, bad, params)
        self._compiled = {model: torch.compile(_last_logits, **self.options) for model in self.models}

    def _forward(self, model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        if ids.shape[1] > 1:  # a prompt is computed once and not worth compiling
            return _last_logits(model, ids, cache)
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled[model](model, ids, cache).clone()


class ContrastProcessor(LogitsProcessor):
    """BAD as a processor of GOOD's logits in `generate`: the way to stay within transformers."""

    def __init__(self, bad: PreTrainedModel, cache: Cache) -> None:
        self.bad, self.cache = bad, cache

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = ids[:, self.cache.get_seq_length() :]
        p_good = torch.softmax(scores.float(), -1)
        p_bad = torch.softmax(_last_logits(self.bad, new, self.cache).float(), -1)
        is_candidate = p_good >= 0.1 * p_good.amax(-1, keepdim=True)
        return torch.where(is_candidate, torch.log(p_good) - torch.log(p_bad), -torch.inf)


class GenerateLoop:
    """transformers' `generate`, in a thread that waits after every token until `step` is called."""

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        self.good, self.bad = good.module, bad.module
        self.options = {"do_sample": False} if params.temperature == 0 else {"do_sample": True, "top_k": 0}
        self.tokens: list[int] = []

    def start(self, prompts: list[list[int]]) -> list[int]:
        """See :class:`Loop`."""
        return self._start(torch.tensor(prompts, device=self.good.device), 0)

    def start_at(self, sequences: int, length: int) -> None:
        """See :class:`Loop`."""
        self._start(torch.zeros(sequences, length + 1, dtype=torch.long, device=self.good.device), length)

    def _start(self, ids: torch.Tensor, length: int) -> list[int]:
        caches = [fill(DynamicCache(), model, len(ids), length) for model in (self.good, self.bad)]
        self.requested, self.drawn, self.closing = threading.Semaphore(0), threading.Semaphore(0), False
        self.thread = threading.Thread(target=self._run, args=(ids, caches))
        self.thread.start()
        self.drawn.acquire()
        return self.tokens

    def _run(self, ids: torch.Tensor, caches: list[Cache]) -> None:
        with torch.inference_mode():
            self.good.generate(
                ids,
                past_key_values=caches[0],
                attention_mask=torch.ones_like(ids),
                max_new_tokens=STEPS,
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=[ContrastProcessor(self.bad, caches[1])],
                stopping_criteria=[self._wait],
                **self.options,
            )

    def _wait(self, ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """Serve as a stopping criterion of `generate`, which is called after every token."""
        self.tokens = ids[:, -1].tolist()
        self.drawn.release()
        self.requested.acquire()
        return torch.full((len(ids),), self.closing, device=ids.device)

    def step(self) -> list[int]:
        """See :class:`Loop`."""
        self.requested.release()
        self.drawn.acquire()
        return self.tokens

    def close(self) -> None:
        """See :class:`Loop`."""
        self.closing = True
        self.requested.release()
        self.thread.join()


class EngineLoop:
    """cdgen's engine with the paged backend."""

    backend: ClassVar[type] = PagedBackend

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        self.pair, self.params = ModelPair(good, bad, None, good.width, ()), params

    def start(self, prompts: list[list[int]], batch: int | None = None) -> list[int]:
        """See :class:`Loop`.

        Args:
            batch: number of sequences that run together; default: all.
        """
        return self._start(self.backend, prompts, batch)

    def start_at(self, sequences: int, length: int) -> None:
        """See :class:`Loop`. Every sequence has pages of its own, as if no two prompts were equal."""
        self._start(NOISE[self.backend], [[0] * length] * sequences)

    @torch.inference_mode()
    def _start(self, backend: type, prompts: list[list[int]], batch: int | None = None) -> list[int]:
        requests = make_requests(Prompts(prompts), [(prompt, 0) for prompt in range(len(prompts))])
        length = (len(prompts[0]) + self.params.max_tokens,) if issubclass(backend, PagedBackend) else ()
        running = backend(self.pair, self.params, batch or len(prompts), *length)
        self.finished: dict[int, CompletionOutput] = {}
        self.engine = Engine(self.pair, running, requests, self.params, self.finished.__setitem__)
        self.engine.refill()
        self.engine.read()
        return self._newest()

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Draw the next token of every sequence, or the next several on a GPU; return the newest tokens."""
        self.engine.step()
        return self._newest()

    def new_tokens(self) -> list[list[int]]:
        """Return all new tokens of each running sequence that have been read, in the order of the prompts."""
        running = self.engine.running
        rows = np.flatnonzero(running.limit)
        return [running.tokens(int(row)) for row in rows[np.argsort(running.place[rows])]]

    def _newest(self) -> list[int]:
        return [tokens[-1] for tokens in self.new_tokens()]

    def close(self) -> None:
        """See :class:`Loop`."""
        self.engine.backend.close()
        del self.engine


class StaticEngineLoop(EngineLoop):
    """cdgen's engine with the static backend, which runs models of other families than Llama."""

    backend = StaticBackend


def greedy(good: torch.Tensor, bad: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """Return the candidate with the highest contrastive score in each row."""
    p_good, p_bad = good.log_softmax(-1), bad.log_softmax(-1)
    is_candidate = p_good >= p_good.amax(-1, keepdim=True) + math.log(alpha)
    return torch.where(is_candidate, p_good - p_bad, -torch.inf).argmax(-1)
