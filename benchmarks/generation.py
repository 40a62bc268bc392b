"""Several ways to decode contrastively, as objects that make one step a call, from texts of a given length on.

What comes before the first step is prefilled with noise, not computed: a step costs the same whatever the cache holds.
"""

import math
import threading
from collections import deque
from typing import Any, ClassVar

import torch
import transformers
from transformers import AutoModelForCausalLM, Cache, DynamicCache, LogitsProcessor, PreTrainedModel, StaticCache

from benchmarks.noise_cache import NOISE, fill
from benchmarks.rivals import literal_chain
from cdgen import SamplingParams
from cdgen.engine.engine import Engine, Pair, Request
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.static_backend import StaticBackend
from cdgen.models.language_model import LanguageModel

STEPS = 12  # room for so many steps from the given length on


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
    """A Llama made on the device, whose logits have standard deviation 3: peaked, as a trained model's are.

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


def paper_model(*shape: Any, **options: Any) -> LanguageModel:
    """:func:`random_llama` as the engine takes it."""
    module = random_llama(*shape, **options)
    return LanguageModel(module, f"{module.config.num_hidden_layers} x {module.config.hidden_size}")


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

    def compute(self, prompts: list[list[int]]) -> list[int]:
        """Prompts of one length, repeated before they are computed, as there; returns the first tokens."""
        self.caches = [self._new_cache(model, len(prompts[0])) for model in self.models]
        self.ids = torch.tensor(prompts, device=self.device)
        return self.step()

    def place(self, rows: int, length: int) -> None:
        """Stand before the step on token number `length` of so many texts, without computing what is before."""
        self.caches = [fill(self._new_cache(model, length), model, rows, length) for model in self.models]
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=self.device)

    def step(self) -> list[int]:
        """A token more for each text; returns the tokens."""
        self.advance()
        return self.ids[:, 0].tolist()

    @torch.inference_mode()
    def advance(self) -> None:
        """The same, without waiting for the device."""
        pairs = zip(self.models, self.caches, strict=True)
        logits = [self._forward(model, self.ids, cache) for model, cache in pairs]
        self.ids = self.draw(*logits).unsqueeze(1)

    def close(self) -> None:
        self.caches = None

    def _new_cache(self, model: PreTrainedModel, length: int) -> Cache:
        return DynamicCache()

    def _forward(self, model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        return _last_logits(model, ids, cache)


def _last_logits(model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Logits [B, V] of the last token."""
    return model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]


class StaticLoop(PaperLoop):
    """The same with StaticCache, for texts of one length."""

    def _new_cache(self, model: PreTrainedModel, length: int) -> Cache:
        return StaticCache(config=model.config, max_cache_len=length + self.room)


class CompiledLoop(StaticLoop):
    """The same, with each model's pass under torch.compile and in CUDA graphs."""

    options: ClassVar[dict] = {"mode": "reduce-overhead"}  # passed to torch.compile

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        super().__init__(good, bad, params)
        self._compiled = {model: torch.compile(_last_logits, **self.options) for model in self.models}

    def _forward(self, model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        if ids.shape[1] > 1:  # a prompt is computed once
            return _last_logits(model, ids, cache)
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled[model](model, ids, cache).clone()


class Contrast(LogitsProcessor):
    """BAD as a processor of GOOD's logits, in `generate`: what one would write to stay within transformers."""

    def __init__(self, bad: PreTrainedModel, cache: Cache) -> None:
        self.bad, self.cache = bad, cache

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = ids[:, self.cache.get_seq_length() :]
        p_good = torch.softmax(scores.float(), -1)
        logits = self.bad(new, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
        p_bad = torch.softmax(logits.float(), -1)
        head = p_good >= 0.1 * p_good.amax(-1, keepdim=True)
        return torch.where(head, torch.log(p_good) - torch.log(p_bad), -torch.inf)


class Generate:
    """transformers' `generate`, in a thread that waits after every token until `step` is called."""

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        self.good, self.bad = good.module, bad.module
        self.sampling = {"do_sample": False} if params.temperature == 0 else {"do_sample": True, "top_k": 0}

    def compute(self, prompts: list[list[int]]) -> list[int]:
        return self._begin(torch.tensor(prompts, device=self.good.device), 0)

    def place(self, rows: int, length: int) -> None:
        self._begin(torch.zeros(rows, length + 1, dtype=torch.long, device=self.good.device), length)

    def _begin(self, ids: torch.Tensor, length: int) -> list[int]:
        caches = [fill(DynamicCache(), model, len(ids), length) for model in (self.good, self.bad)]
        self.go, self.arrived, self.closing = threading.Semaphore(0), threading.Semaphore(0), False
        self.thread = threading.Thread(target=self._run, args=(ids, caches))
        self.thread.start()
        self.arrived.acquire()
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
                logits_processor=[Contrast(self.bad, caches[1])],
                stopping_criteria=[self._wait],
                **self.sampling,
            )

    def _wait(self, ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """A stopping criterion of `generate`: called after every token."""
        self.tokens = ids[:, -1].tolist()
        self.arrived.release()
        self.go.acquire()
        return torch.full((len(ids),), self.closing, device=ids.device)

    def step(self) -> list[int]:
        self.go.release()
        self.arrived.acquire()
        return self.tokens

    def close(self) -> None:
        self.closing = True
        self.go.release()
        self.thread.join()


class OfEngine:
    """cdgen's engine on pages; `Static` is that with static batches."""

    backend = PagedBackend

    def __init__(self, good: LanguageModel, bad: LanguageModel, params: SamplingParams) -> None:
        self.pair, self.params = Pair(good, bad, None, good.width, ()), params

    def compute(self, prompts: list[list[int]], batch: int | None = None) -> list[int]:
        """`batch`: texts that run together; default: all."""
        return self._begin(self.backend, prompts, batch)

    def place(self, rows: int, length: int) -> None:
        """Every text has pages of its own: what texts of one prompt share is short beside what they write."""
        self._begin(NOISE[self.backend], [[0] * length] * rows)

    @torch.inference_mode()
    def _begin(self, backend: type, prompts: list[list[int]], batch: int | None = None) -> list[int]:
        requests = [Request(ids, deque([(at, at << 32)]), at << 32) for at, ids in enumerate(prompts)]
        length = (len(prompts[0]) + self.params.max_tokens,) if issubclass(backend, PagedBackend) else ()
        running = backend(self.pair, self.params, batch or len(prompts), *length)
        self.engine = Engine(self.pair, running, requests, self.params)
        self.engine.refill()
        return self._tokens()

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One token more for each text, on a GPU several; returns the newest."""
        self.engine.step()
        return self._tokens()

    def written(self) -> list[list[int]]:
        """All new tokens of each text."""
        return [list(text.tokens) for text in self.engine.texts]

    def _tokens(self) -> list[int]:
        return [text.tokens[-1] for text in self.engine.texts]

    def close(self) -> None:
        self.engine.backend.close()
        self.engine = None


class Static(OfEngine):
    """The engine as it runs other families: transformers' forward, a cache in place, one batch to its end."""

    backend = StaticBackend


def greedy(good: torch.Tensor, bad: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """The best contrast in the head."""
    p_good, p_bad = good.log_softmax(-1), bad.log_softmax(-1)
    head = p_good >= p_good.amax(-1, keepdim=True) + math.log(alpha)
    return torch.where(head, p_good - p_bad, -torch.inf).argmax(-1)


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": STEPS, "ignore_eos": True} | changes)
