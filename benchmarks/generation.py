"""Four ways to decode contrastively, as objects that make one step a call, from texts of a given length on.

What comes before the first step is prefilled with noise, not computed: a step costs the same whatever the cache holds.
"""

import threading
from collections import deque

import torch
import transformers
from transformers import DynamicCache, LogitsProcessor

from benchmarks.rivals import literal_chain
from cdgen import SamplingParams
from cdgen.engine import Engine, Pair, Request
from cdgen.models import LanguageModel
from cdgen.paged import PagedTexts
from cdgen.static_batch import StaticBatch

STEPS = 12  # room for so many steps from the given length on


def paper_model(layers, width, heads, intermediate, vocab_size=32_000, seed=0):
    """A Llama with random weights whose logits have standard deviation 3: peaked, as a trained model's are."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.normal_(std=3 / width**0.5)
    return LanguageModel(model, f"{layers} x {width}")


class PaperLoop:
    """The paper's program: two transformers models, DynamicCache, the literal chain of logits, multinomial."""

    def __init__(self, good, bad, params):
        self.models = (good.module, bad.module)
        self.draw = greedy if params.temperature == 0 else literal_chain

    def compute(self, prompts):
        """Prompts of one length, repeated before they are computed, as there; returns the first tokens."""
        self.caches = [DynamicCache() for _ in self.models]
        self.ids = torch.tensor(prompts)
        return self.step()

    def place(self, rows, length):
        """Stand before the step on token number `length` of so many texts, without computing what is before."""
        self.caches = [noise_cache(model, rows, length) for model in self.models]
        self.ids = torch.zeros(rows, 1, dtype=torch.long)

    @torch.inference_mode()
    def step(self):
        """A token more for each text; returns the tokens."""
        pairs = zip(self.models, self.caches, strict=True)
        logits = [model(self.ids, past_key_values=cache, logits_to_keep=1).logits[:, -1] for model, cache in pairs]
        self.ids = self.draw(*logits).unsqueeze(1)
        return self.ids[:, 0].tolist()

    def close(self):
        self.caches = None


class Contrast(LogitsProcessor):
    """BAD as a processor of GOOD's logits, in `generate`: what one would write to stay within transformers."""

    def __init__(self, bad, cache):
        self.bad, self.cache = bad, cache

    def __call__(self, ids, scores):
        new = ids[:, self.cache.get_seq_length() :]
        p_good = torch.softmax(scores.float(), -1)
        logits = self.bad(new, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
        p_bad = torch.softmax(logits.float(), -1)
        head = p_good >= 0.1 * p_good.amax(-1, keepdim=True)
        return torch.where(head, torch.log(p_good) - torch.log(p_bad), -torch.inf)


class Generate:
    """transformers' `generate`, in a thread that waits after every token until `step` is called."""

    def __init__(self, good, bad, params):
        self.good, self.bad = good.module, bad.module
        self.sampling = {"do_sample": False} if params.temperature == 0 else {"do_sample": True, "top_k": 0}

    def compute(self, prompts):
        return self._begin(torch.tensor(prompts), 0)

    def place(self, rows, length):
        self._begin(torch.zeros(rows, length + 1, dtype=torch.long), length)

    def _begin(self, ids, length):
        caches = [noise_cache(model, len(ids), length) for model in (self.good, self.bad)]
        self.go, self.arrived, self.closing = threading.Semaphore(0), threading.Semaphore(0), False
        self.thread = threading.Thread(target=self._run, args=(ids, caches))
        self.thread.start()
        self.arrived.acquire()
        return self.tokens

    def _run(self, ids, caches):
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

    def _wait(self, ids, scores, **options):
        """A stopping criterion of `generate`: called after every token."""
        self.tokens = ids[:, -1].tolist()
        self.arrived.release()
        self.go.acquire()
        return torch.full((len(ids),), self.closing)

    def step(self):
        self.go.release()
        self.arrived.acquire()
        return self.tokens

    def close(self):
        self.closing = True
        self.go.release()
        self.thread.join()


class OfEngine:
    """cdgen's engine on pages; `Static` is that with static batches."""

    backend = PagedTexts

    def __init__(self, good, bad, params):
        self.pair, self.params = Pair(good, bad, None, good.width, ()), params

    def compute(self, prompts):
        return self._begin(self.backend, prompts)

    def place(self, rows, length):
        """Every text has pages of its own: what texts of one prompt share is short beside what they write."""
        self._begin(NOISE[self.backend], [[0] * length] * rows)

    @torch.inference_mode()
    def _begin(self, backend, prompts):
        requests = [Request(ids, deque([(at, at << 32)]), at << 32) for at, ids in enumerate(prompts)]
        length = (len(prompts[0]) + self.params.max_tokens,) if issubclass(backend, PagedTexts) else ()
        self.engine = Engine(self.pair, backend(self.pair, self.params, len(prompts), *length), requests, self.params)
        self.engine.refill()
        return self._tokens()

    @torch.inference_mode()
    def step(self):
        self.engine.step()
        return self._tokens()

    def _tokens(self):
        return [text.tokens[-1] for text in self.engine.texts]

    def close(self):
        self.engine = None


class Static(OfEngine):
    """The engine as it runs other families: transformers' forward, a cache in place, one batch to its end."""

    backend = StaticBatch


class NoisePaged(PagedTexts):
    def _prefill(self, requests):
        for store in (*self.cache.keys, *self.cache.values):
            store.normal_()
        for request in requests:
            request.outputs = [torch.randn(runner.output_weight.shape[1]) for runner in self._runners]


class NoiseStatic(StaticBatch):
    def start(self, starts):
        models, self._models = self._models, [_Noise(model) for model in self._models]
        try:
            return super().start(starts)
        finally:
            self._models = models


class _Noise:
    """Fills a model's cache as a pass would, with noise."""

    noisy = False

    def __init__(self, model):
        self.width, self.new_cache, self._config = model.width, model.new_cache, model.module.config

    def last_logits(self, ids, mask, positions, cache):
        for layer in cache.layers:
            layer.update(*noise(self._config, len(ids), ids.shape[1]))
        return torch.randn(len(ids), self.width)


NOISE = {PagedTexts: NoisePaged, StaticBatch: NoiseStatic}


def noise(config, rows, length):
    """Keys and values [rows, heads, length, head_dim] of a layer."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return torch.randn(2, rows, config.num_key_value_heads, length, dim).unbind()


def noise_cache(model, rows, length):
    cache = DynamicCache()
    if length:
        for layer in range(model.config.num_hidden_layers):
            cache.update(*(x.clone() for x in noise(model.config, rows, length)), layer)
    return cache


def greedy(good, bad, alpha=0.1):
    """The best contrast in the head."""
    p_good, p_bad = good.log_softmax(-1), bad.log_softmax(-1)
    head = p_good >= p_good.amax(-1, keepdim=True) + torch.log(torch.tensor(alpha))
    return torch.where(head, p_good - p_bad, -torch.inf).argmax(-1)


def params(**changes):
    return SamplingParams(**{"max_tokens": STEPS, "ignore_eos": True} | changes)
